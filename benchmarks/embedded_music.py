"""Measures whether generations of the embedded music model have the requested mood (card table).

    python benchmarks/embedded_music.py --out out/benchmarks/embedded_music

Rows: real clips; the same through the codec; generations; generations for word-instrument pairs
that training captions never used; the generations with shuffled prompts (chance). Columns:
the project's own mood classifier (all, and per mood), the held-out judge (``benchmarks/judges.py``,
fitted on other real clips), share in tune, onsets per second per mood, stereo width. Values are
means over prompts with their 95 % intervals over prompts (Student's t; a real clip is its own
prompt). Writes table.md, clips.json (every value of every clip) and table.png. The held-out judge
is optional: ``--judge none``, or see ``benchmarks/judges.py`` for how to install it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.evaluation import (
    REAL_SEED,
    REFERENCE_SEED,
    Measured,
    codec_round_trip,
    fitted_judge,
    generations,
    half_width,
    loaded_network,
    markdown_table,
    measure,
    real_clips,
    shown,
    shuffled,
    write_json,
    write_text,
)
from datamodules.music.music import NEGATIVE, TEMPLATE, held_out_pairs
from datamodules.music.score import WORDS
from datamodules.prompt_sources import template_prompts
from zoo.diffusion import Sampler
from zoo.errors import reported
from zoo.files import written_beside
from zoo.rewards.mood import MOODS
from zoo.types import Backbone, Prompt, Reward


def prompts_of(instruments: Sequence[str], seconds: float) -> tuple[list[Prompt], list[Prompt]]:
    """(prompts of pairs in the training captions, prompts of held-out pairs)."""
    held_out = set(held_out_pairs(instruments))
    prompts = template_prompts(
        TEMPLATE,
        {mood: list(words) for mood, words in WORDS.items()},
        instruments,
        NEGATIVE,
        seconds,
    )
    new = [
        prompt
        for prompt in prompts
        if (prompt.labels["word"], prompt.labels["instrument"]) in held_out
    ]
    return [prompt for prompt in prompts if prompt not in new], new


def table(rows: dict[str, Measured]) -> str:
    """The markdown table, one row a set of clips."""
    judged = "judge_accuracy" in next(iter(rows.values())).values
    header = ["clips", "n", "classifier", *MOODS]
    header += ["held-out judge", "its p(mood)", "quadrant"] if judged else []
    header += ["in tune", "onsets/s " + ", ".join(MOODS), "side/mid dB"]
    lines = []
    for name, row in rows.items():
        line = [name, str(len(row.groups)), shown(row.estimate("accuracy"))]
        line += [f"{row.mean('accuracy', mood):.2f}" for mood in MOODS]
        line += [
            shown(row.estimate(column))
            for column in ("judge_accuracy", "judge_probability", "judge_quadrant")
            if judged
        ]
        line += [
            shown(row.estimate("in_tune")),
            " ".join(f"{row.mean('onsets_per_s', mood):.1f}" for mood in MOODS),
        ]
        lines.append([*line, f"{row.mean('side_to_mid_db'):.1f}"])
    return markdown_table(header, lines)


def picture(rows: dict[str, Measured], path: Path) -> None:
    """Draws accuracy by classifier and judge, one group of bars per row of the table."""
    from matplotlib.figure import Figure

    measures = [
        name
        for name in ("accuracy", "judge_accuracy", "in_tune")
        if name in next(iter(rows.values())).values
    ]
    labels = {
        "accuracy": "own classifier",
        "judge_accuracy": "held-out judge",
        "in_tune": "share in tune",
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for shift, name in enumerate(measures):
        found = [row.estimate(name) for row in rows.values()]
        places = [place + 0.27 * (shift - (len(measures) - 1) / 2) for place in range(len(rows))]
        halves = [half_width(each) for each in found]
        axes.bar(
            places, [each.value for each in found], 0.25, yerr=halves, label=labels[name], capsize=2
        )
    axes.axhline(0.25, color="black", linewidth=0.8, linestyle=":", label="chance of a mood")
    axes.set_xticks(range(len(rows)), rows, fontsize=8)
    axes.set_ylim(0, 1.05)
    axes.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150)


def run(
    backbone: Backbone,
    reward: Reward,
    network,
    sampler: Sampler,
    instruments: Sequence[str],
    seconds: float,
    per_cell: int,
    repeats: int,
    seed: int,
    renderer: str = "soundfont",
) -> dict[str, Measured]:
    """All rows: ``per_cell`` real clips per mood and instrument, ``repeats`` samples per prompt."""
    rate = backbone.sample_rate_hz
    judge = None
    if network is not None:
        judge = fitted_judge(
            real_clips(per_cell, instruments, seconds, rate, REFERENCE_SEED, renderer), network
        )
    real = real_clips(per_cell, instruments, seconds, rate, REAL_SEED, renderer)
    known, new = prompts_of(instruments, seconds)
    generated = generations(backbone, reward, sampler, known, repeats, seed)
    sets = {
        "real": real,
        "real, through the codec": codec_round_trip(backbone, real),
        "generated": generated,
        "generated, new word-instrument pairs": generations(
            backbone, reward, sampler, new, repeats, seed
        ),
        "generated, prompts shuffled": shuffled(generated),
    }
    return {name: measure(clips, reward, judge, network) for name, clips in sets.items()}


def main(argv: Sequence[str]) -> None:
    import zoo

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", default="embedded/music", help="name or path of the model that generates"
    )
    parser.add_argument(
        "--reward", default="embedded/mood", help="name or path of the mood classifier"
    )
    parser.add_argument(
        "--instruments",
        nargs="+",
        default=["piano", "guitar", "harp"],
        help="of the model's training data",
    )
    parser.add_argument("--seconds", type=float, default=4.096, help="length of a clip")
    parser.add_argument(
        "--per-cell", type=int, default=16, help="real clips per mood and instrument"
    )
    parser.add_argument("--repeats", type=int, default=6, help="samples per prompt")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (DDIM)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    parser.add_argument(
        "--eta", type=float, default=1.0, help="0 deterministic, 1 fresh noise in every step"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--judge", default="vibenet", help="vibenet or none")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/benchmarks/embedded_music"),
        help="folder for the results",
    )
    options = parser.parse_args(argv)
    network = loaded_network(options.judge)
    backbone, reward = zoo.load(options.backbone), zoo.load(options.reward)
    sampler = Sampler(options.steps, options.guidance, options.eta)
    with torch.no_grad():
        o = options
        rows = run(
            backbone,
            reward,
            network,
            sampler,
            o.instruments,
            o.seconds,
            o.per_cell,
            o.repeats,
            o.seed,
        )
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }
    write_json(
        options.out / "clips.json",
        {"settings": settings, "rows": {name: row.to_json() for name, row in rows.items()}},
    )
    write_text(options.out / "table.md", table(rows))
    picture(rows, options.out / "table.png")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(reported(main))
