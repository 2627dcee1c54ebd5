"""Does the quickstart learn? Five seeds, one protocol, fixed before any of them was run.

    python benchmarks/quickstart_seeds.py --out out/benchmarks/quickstart

Protocol
1. For every seed k in 0..4: ``python tools/fit.py --config configs/ddpo/quickstart.yaml seed=k out_dir=<out>/seed<k>``,
   nothing else changed. A seed whose run folder already holds an adapter is not run again.
2. Base model and adapter are evaluated on all *held-out* prompts of that configuration (word-instrument pairs that fine-tuning
   never sees), ``--samples`` clips each (16), with the configuration's evaluation sampler and noise keyed by (1000003, prompt id,
   sample index): the same noise before and after, and for all seeds. Training never uses that seed.
3. Scores: (a) the training reward; (b) the held-out judge (VibeNet, ``benchmarks/judges.py``), fitted once on real clips, its
   probability of the mood that was asked for. Beside them accuracy, share in tune and onsets per second, as guards.
4. Each comparison is paired by clip: mean of after - before ± its standard error over clips.
   A seed *learned* when the reward rose by more than 2 standard errors; the judge *fell* when its difference is below -2.
5. The whole table is published, whatever it says. No seed, prompt or clip is left out.

Writes table.md, results.json (every value of every clip) and table.png.
"""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.evaluation import (
    REFERENCE_SEED,
    Estimate,
    Measured,
    fitted_judge,
    generations,
    loaded_network,
    markdown_table,
    measure,
    real_clips,
    shown,
    write_json,
    write_text,
)
from datamodules.music_render import PROGRAMS
from zoo.errors import reported
from zoo.files import written_beside
from zoo.metrics.intervals import mean_and_error
from zoo.rewards.emotion import MOODS
from zoo.types import Prompt

ROOT = Path(__file__).resolve().parents[1]
NOISE_SEED = 1_000_003


def train(seed: int, config: Path, run_dir: Path, overrides: Sequence[str] = ()) -> None:
    """One quickstart run in its own process; returns at once when its adapter is there.

    Raises ``subprocess.CalledProcessError`` when the run fails.
    """
    if not (run_dir / "adapter").is_dir():
        command = [sys.executable, str(ROOT / "tools" / "fit.py"), "--config", str(config), f"seed={seed}", f"out_dir={run_dir}"]
        subprocess.run([*command, *overrides], check=True, cwd=ROOT)


def held_out_prompts(data_config: dict[str, Any]) -> tuple[Prompt, ...]:
    """All held-out prompts of a run's data node. Raises ``ValueError`` when some mood has none."""
    from zoo.targets import instantiate

    prompts = instantiate({**data_config, "val_prompts": None}, "data").validation_prompts
    absent = [mood for mood in MOODS if mood not in {prompt.labels.get("mood") for prompt in prompts}]
    if absent:
        raise ValueError(f"the configuration holds out no prompt of {', '.join(absent)}; add pairs to data.held_out")
    return prompts


def evaluation_sampler(module_config: dict[str, Any]):
    """The sampler that the run itself evaluates with."""
    from lightning_modules.ddpo import DDPO
    from lightning_modules.ddpo_settings import samplers

    defaults = {name: parameter.default for name, parameter in inspect.signature(DDPO).parameters.items()}
    return samplers({**defaults, **module_config})[1]


def differences(before: Measured, after: Measured, name: str) -> Estimate:
    """Mean and standard error of after - before over clips with the same prompt and noise."""
    return mean_and_error((after.values[name] - before.values[name]).tolist())


def table(before: Measured, after: dict[int, Measured]) -> str:
    """One row a seed: reward, judge and guards, before -> after."""
    judged = "judge_probability" in before.values
    header = ["seed", "reward", "difference", "accuracy"]
    header += ["judge p(mood)", "difference", "judge accuracy"] if judged else []
    lines = []
    for seed, row in after.items():

        def change(name: str, row: Measured = row, digits: int = 2) -> str:
            return f"{before.estimate(name)[0]:.{digits}f} -> {row.estimate(name)[0]:.{digits}f}"

        line = [str(seed), change("reward", digits=3), shown(differences(before, row, "reward"), 3), change("accuracy")]
        if judged:
            line += [change("judge_probability", digits=3), shown(differences(before, row, "judge_probability"), 3)]
            line += [change("judge_accuracy")]
        lines.append([*line, change("in_tune"), change("onsets_per_s", digits=1), verdict(before, row)])
    return markdown_table([*header, "in tune", "onsets/s", "verdict"], lines)


def verdict(before: Measured, after: Measured) -> str:
    """In words, by rule 4 of the protocol."""
    mean, error = differences(before, after, "reward")
    words = "learned" if mean > 2 * error else "did not learn"
    if "judge_probability" in before.values:
        mean, error = differences(before, after, "judge_probability")
        words += ", judge fell" if mean < -2 * error else ", judge rose" if mean > 2 * error else ", judge unchanged"
    return words


def picture(before: Measured, after: dict[int, Measured], path: Path) -> None:
    """Paired differences with two standard errors, one point a seed and score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scores = {"reward": "training reward", "judge_probability": "held-out judge p(mood)", "accuracy": "classifier accuracy"}
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for shift, (name, label) in enumerate((n, text) for n, text in scores.items() if n in before.values):
        means, errors = zip(*(differences(before, row, name) for row in after.values()))
        places = [place + 0.2 * (shift - 1) for place in range(len(after))]
        axes.errorbar(places, means, [2 * error for error in errors], fmt="o", capsize=3, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(after)), [f"seed {seed}" for seed in after])
    axes.set_ylabel("after - before, ± 2 SE")
    axes.legend(fontsize=8)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150)
    pyplot.close(figure)


def main(argv: Sequence[str]) -> None:
    from omegaconf import OmegaConf

    from zoo.backbones.lora import load_adapter
    from zoo.targets import instantiate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/ddpo/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=16, help="clips a held-out prompt")
    parser.add_argument("--reference-clips", type=int, default=24, help="real clips a mood and instrument, for the judge")
    parser.add_argument("--judge", default="vibenet", help="vibenet or none")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/quickstart"))
    parser.add_argument("overrides", nargs="*", help="key=value for tools/fit.py (a departure from the protocol: it is recorded)")
    options = parser.parse_args(argv)
    network = loaded_network(options.judge)  # before any hour is spent
    out = options.out.resolve()
    config = OmegaConf.to_container(OmegaConf.load(options.config), resolve=True)
    prompts, sampler = held_out_prompts(config["data"]), evaluation_sampler(config["module"])
    for seed in options.seeds:
        train(seed, options.config.resolve(), out / f"seed{seed}", options.overrides)
    reward = instantiate(config["module"]["reward"], "module.reward")
    base = instantiate(config["module"]["backbone"], "module.backbone")
    judge = None
    if network is not None:
        # real clips exist of the instruments that can be rendered; the base plays those whatever else is asked for
        instruments = sorted({prompt.labels["instrument"] for prompt in prompts} & set(PROGRAMS))
        reference = real_clips(options.reference_clips, instruments, prompts[0].seconds, base.sample_rate_hz, REFERENCE_SEED)
        judge = fitted_judge(reference, network)

    def evaluated(backbone) -> Measured:
        with torch.no_grad():
            clips = generations(backbone, reward, sampler, prompts, options.samples, NOISE_SEED)
        return measure(clips, reward, judge, network)

    before, after = evaluated(base), {}
    for seed in options.seeds:
        backbone = instantiate(config["module"]["backbone"], "module.backbone")
        load_adapter(backbone, out / f"seed{seed}" / "adapter")
        after[seed] = evaluated(backbone)
    record = {
        "config": str(options.config),
        "overrides": options.overrides,
        "samples": options.samples,
        "prompts": [prompt.text for prompt in prompts],
        "before": before.to_json(),
        "after": {str(seed): row.to_json() for seed, row in after.items()},
    }
    write_json(out / "results.json", record)
    write_text(out / "table.md", table(before, after))
    picture(before, after, out / "table.png")
    print(table(before, after))


if __name__ == "__main__":
    sys.exit(reported(main))
