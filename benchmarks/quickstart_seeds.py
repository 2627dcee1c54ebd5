"""Tests on five seeds whether the quickstart learns, by a protocol fixed in advance.

    python benchmarks/quickstart_seeds.py --out out/benchmarks/quickstart

Protocol
1. For every seed k in 0..4: ``python tools/fit.py --config configs/ddpo/quickstart.yaml seed=k
   out_dir=<out>/seed<k>``, with nothing else changed. A seed whose run folder already holds an
   adapter is not run again.
2. Base model and adapter are evaluated on all *held-out* prompts of that configuration
   (word-instrument pairs that fine-tuning never uses), with ``--samples`` clips each (16), the
   configuration's evaluation sampler, and noise keyed by (1000003, prompt id, sample index): the
   same noise before and after, and for all seeds. Training never uses that seed.
3. Scores: (a) the training reward; (b) the held-out judge (VibeNet, ``benchmarks/judges.py``),
   fitted once on real clips: its probability of the requested mood. Accuracy, share in tune and
   onsets per second are reported as guards.
4. Each comparison is paired by clip, and a prompt counts once: mean over prompts of after - before,
   with its 95 % interval over prompts (Student's t). A seed *learned* when the reward's interval is
   above 0; the judge *fell* when its interval is below 0. (The published runs of 2026-11-21 used 2
   standard errors over clips, which treats the clips of one prompt as independent: too narrow by a
   factor of about five. This was changed afterwards, for all seeds alike.)
5. The last row is no training: of every ``BEST_OF`` clips of the base model the one of the highest
   training reward, as an expectation over all such groups (``zoo.evaluation.best_of_n``), with what
   it costs. The reward picks there, so its own column says nothing about quality. (Added on
   2026-11-29, after the published runs; it needs no clip that they had not.)
6. The whole table is published, whatever the result. No seed, prompt or clip is left out.

It writes table.md, results.json (every value of every clip) and table.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.evaluation import (
    REFERENCE_SEED,
    Measured,
    fitted_judge,
    generations,
    half_width,
    loaded_network,
    markdown_table,
    measure,
    real_clips,
    shown,
    write_json,
    write_text,
)
from datamodules.music.render import PROGRAMS
from zoo.diffusion import Sampler
from zoo.errors import UserError, reported
from zoo.evaluation.best_of_n import BestOfN, best_of_n, cost
from zoo.files import written_beside
from zoo.statistics.clustered import Clustered, clustered_mean
from zoo.types import Backbone, Prompt

ROOT = Path(__file__).resolve().parents[1]
NOISE_SEED = 1_000_003
BEST_OF = 4
PICKS = "reward"
JUDGE = "judge_probability"


@dataclass(frozen=True)
class Score:
    """A column of the table.

    - ``name``: in ``Measured.values``.
    - ``paired``: adds the difference with its interval.
    - ``legend``: puts it into the picture.
    - ``own``: is measured by the training reward, so it cannot judge what the reward picks.
    """

    name: str
    title: str
    digits: int = 2
    paired: bool = False
    legend: str = ""
    own: bool = False


SCORES = (
    Score("reward", "reward", 3, True, "training reward", own=True),
    Score("accuracy", "accuracy", legend="classifier accuracy", own=True),
    Score(JUDGE, "judge p(mood)", 3, True, "held-out judge p(mood)"),
    Score("judge_accuracy", "judge accuracy"),
    Score("in_tune", "in tune"),
    Score("onsets_per_s", "onsets/s", 1),
)


def train(seed: int, config: Path, run_dir: Path, overrides: Sequence[str] = ()) -> None:
    """Runs one training in another process; returns at once if its adapter exists.

    Raises ``subprocess.CalledProcessError`` when the run fails.
    """
    if not (run_dir / "adapter").is_dir():
        command = [
            sys.executable,
            str(ROOT / "tools" / "fit.py"),
            "--config",
            str(config),
            f"seed={seed}",
            f"out_dir={run_dir}",
        ]
        subprocess.run([*command, *overrides], check=True, cwd=ROOT)


def held_out_prompts(data_config: dict[str, Any], label: str) -> tuple[Prompt, ...]:
    """All held-out prompts of a run's data node.

    Raises ``UserError`` when they lack a value of ``label`` that is trained on.
    """
    from zoo.instantiate import instantiate

    data = instantiate({**data_config, "val_prompts": None}, "data")
    prompts = data.validation_prompts
    held = {prompt.labels.get(label) for prompt in prompts}
    absent = dict.fromkeys(
        str(prompt.labels.get(label))
        for prompt in data.train_prompts
        if prompt.labels.get(label) not in held
    )
    if absent:
        raise UserError(
            f"the configuration holds out no prompt of {', '.join(absent)}; hold out more of the"
            " prompts in data"
        )
    return prompts


def evaluation_sampler(module_config: dict[str, Any]) -> Sampler:
    """The sampler with which the run evaluates."""
    from lightning_modules.rl.settings import EvaluationSettings, SamplerSettings

    training = SamplerSettings(**module_config.get("sampler", {}))
    return EvaluationSettings(**module_config.get("evaluation", {})).sampler(training)


def differences(before: Measured, after: Measured, name: str) -> Clustered:
    """Mean over prompts of after - before (same prompt and noise), with its interval."""
    return clustered_mean(after.values[name] - before.values[name], before.prompts)


def direction(found: Clustered) -> str:
    """``rose`` or ``fell`` where the whole interval is on one side of 0, else ``unchanged``."""
    if found.low is None or found.high is None:
        return "unchanged"
    if found.low > 0:
        return "rose"
    return "fell" if found.high < 0 else "unchanged"


def best_of(before: Measured, n: int = BEST_OF) -> dict[str, BestOfN]:
    """Column -> the best of ``n`` base clips of a prompt by the training reward, as it sees them.

    Empty where a prompt has fewer clips; columns of some clips only are left out.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(before.prompts):
        places.setdefault(prompt, []).append(place)
    if min(map(len, places.values())) < n:
        return {}
    rows = {
        name: [column[own] for own in places.values()]
        for name, column in before.values.items()
        if len(column) == len(before.prompts)
    }
    return {name: best_of_n(rows, PICKS, name, n, list(places), show_itself=True) for name in rows}


def _best_row(
    best: dict[str, BestOfN], scores: Sequence[Score], judge: str, sampler: Sampler
) -> list[str]:
    n = next(iter(best.values())).n
    row = [f"best of {n} (no training)"]
    for score in scores:
        found = best.get(score.name)
        if found is None:
            row += ["-"] * (2 if score.paired else 1)
            continue
        cells = [f"{found.mean.value:.{score.digits}f} -> {found.best.value:.{score.digits}f}"]
        cells += [shown(found.gain, score.digits)] if score.paired else []
        row += [f"({cell})" for cell in cells] if score.own else cells
    price = cost(sampler, n)
    words = f"{price.network_evaluations} network evaluations and {price.reward_calls} reward calls"
    words += f" a clip, {cost(sampler).network_evaluations} without"
    if judge in best:
        words = f"judge {direction(best[judge].gain)}; {words}"
    return [*row, words]


def table(
    before: Measured,
    after: dict[int, Measured],
    scores: Sequence[Score],
    judge: str,
    sampler: Sampler | None = None,
) -> str:
    """One row per seed: before -> after of every measured score, and the verdict.

    With the ``sampler`` of the clips a row of the best of n base clips follows, where each prompt
    has as many.
    """
    scores = [score for score in scores if score.name in before.values]
    header = [
        "seed",
        *(
            title
            for score in scores
            for title in ([score.title, "difference"] if score.paired else [score.title])
        ),
    ]
    lines = []
    for seed, row in after.items():
        line = [str(seed)]
        for score in scores:
            old, new = (measured.mean(score.name) for measured in (before, row))
            line.append(f"{old:.{score.digits}f} -> {new:.{score.digits}f}")
            line += (
                [shown(differences(before, row, score.name), score.digits)] if score.paired else []
            )
        lines.append([*line, verdict(before, row, judge)])
    best = {} if sampler is None else best_of(before)
    if best and sampler is not None:
        lines.append(_best_row(best, scores, judge, sampler))
    return markdown_table([*header, "verdict"], lines)


def verdict(before: Measured, after: Measured, judge: str) -> str:
    """The result in words, by rule 4 of the protocol; ``judge`` names the held-out score."""
    rose = direction(differences(before, after, "reward")) == "rose"
    words = "learned" if rose else "not certain"
    if judge in before.values:
        words += f", judge {direction(differences(before, after, judge))}"
    return words


def footnote(before: Measured) -> str:
    """The note below a table about its intervals and prompts."""
    prompts = len(set(before.prompts))
    return (
        f"\nDifferences: mean over {prompts} prompts ({len(before.prompts)} clips), in brackets the"
        " 95 % interval over prompts (Student's t). They hold for prompts like these, not for other"
        " wordings.\n"
    )


def picture(
    before: Measured, after: dict[int, Measured], scores: Sequence[Score], path: Path
) -> None:
    """Draws paired differences with 95 % intervals, one point per seed and score with a legend.

    At the right the gain of the best of n base clips, hollow for the reward that picks them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    drawn = [score for score in scores if score.legend and score.name in before.values]
    best = best_of(before)
    for shift, score in enumerate(drawn):
        found = [differences(before, row, score.name) for row in after.values()]
        places = [place + 0.2 * (shift - (len(drawn) - 1) / 2) for place in range(len(after))]
        halves = [half_width(each) for each in found]
        axes.errorbar(
            places, [each.value for each in found], halves, fmt="o", capsize=3, label=score.legend
        )
        chosen = best.get(score.name)
        if chosen is not None:
            place = len(after) + 0.2 * (shift - (len(drawn) - 1) / 2)
            style = {"color": f"C{shift}", "mfc": "white" if score.own else f"C{shift}"}
            axes.errorbar(
                [place], [chosen.gain.value], [half_width(chosen.gain)], fmt="o", capsize=3, **style
            )
    axes.axhline(0, color="black", linewidth=0.8)
    names = [f"seed {seed}" for seed in after] + ([f"best of {BEST_OF}"] if best else [])
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("after - before, 95 % over prompts")
    axes.legend(fontsize=8)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150)


def option_parser(description: str, config: str, samples: int, out: str) -> argparse.ArgumentParser:
    """The options of every protocol of seeds, with these defaults.

    ``config`` is relative to the project, ``out`` to the working folder.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / config)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=samples, help="clips per held-out prompt")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument(
        "overrides",
        nargs="*",
        help="key=value for tools/fit.py (recorded as a departure from the protocol)",
    )
    return parser


def read_config(path: Path) -> dict[str, Any]:
    """A configuration with resolved references."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


def built(config: dict[str, Any], run_dir: Path | None = None) -> Backbone:
    """The base model of a configuration, with the adapter of ``run_dir`` if given."""
    from zoo.hub.adapters import load_adapter
    from zoo.instantiate import instantiate

    backbone = instantiate(config["module"]["backbone"], "module.backbone")
    if run_dir is not None:
        load_adapter(backbone, run_dir / "adapter")
    return backbone


def publish(
    options: argparse.Namespace,
    prompts: Sequence[Prompt],
    before: Measured,
    after: dict[int, Measured],
    scores: Sequence[Score],
    judge: str,
    sampler: Sampler,
) -> None:
    """Writes results.json, table.md and table.png into ``options.out``, and prints the table.

    Args:
        options: of ``option_parser``.
        prompts: the evaluated ones.
        before: measurements of the base model.
        after: seed -> measurements of its run.
        scores: the columns.
        judge: name of the held-out score.
        sampler: of the clips.
    """
    record = {
        "config": str(options.config),
        "overrides": options.overrides,
        "samples": options.samples,
        "prompts": [prompt.text for prompt in prompts],
        "before": before.to_json(),
        "after": {str(seed): row.to_json() for seed, row in after.items()},
    }
    write_json(options.out / "results.json", record)
    text = table(before, after, scores, judge, sampler) + footnote(before)
    write_text(options.out / "table.md", text)
    picture(before, after, scores, options.out / "table.png")
    print(text)


def main(argv: Sequence[str]) -> None:
    from zoo.instantiate import instantiate

    parser = option_parser(__doc__, "configs/ddpo/quickstart.yaml", 16, "out/benchmarks/quickstart")
    parser.add_argument(
        "--reference-clips",
        type=int,
        default=24,
        help="real clips per mood and instrument, for the judge",
    )
    parser.add_argument("--judge", default="vibenet", help="vibenet or none")
    options = parser.parse_args(argv)
    network = loaded_network(options.judge)  # a missing judge is an error before the long runs
    out = options.out.resolve()
    config = read_config(options.config)
    prompts = held_out_prompts(config["data"], "mood")
    sampler = evaluation_sampler(config["module"])
    for seed in options.seeds:
        train(seed, options.config.resolve(), out / f"seed{seed}", options.overrides)
    reward = instantiate(config["module"]["reward"], "module.reward")
    base = built(config)
    judge = None
    if network is not None:
        # only these instruments can be rendered, and the base model plays no others
        instruments = sorted({prompt.labels["instrument"] for prompt in prompts} & set(PROGRAMS))
        reference = real_clips(
            options.reference_clips,
            instruments,
            prompts[0].seconds,
            base.sample_rate_hz,
            REFERENCE_SEED,
        )
        judge = fitted_judge(reference, network)

    def evaluated(backbone: Backbone) -> Measured:
        with torch.no_grad():
            clips = generations(backbone, reward, sampler, prompts, options.samples, NOISE_SEED)
        return measure(clips, reward, judge, network)

    before = evaluated(base)
    after = {seed: evaluated(built(config, out / f"seed{seed}")) for seed in options.seeds}
    publish(options, prompts, before, after, SCORES, JUDGE, sampler)


if __name__ == "__main__":
    sys.exit(reported(main))
