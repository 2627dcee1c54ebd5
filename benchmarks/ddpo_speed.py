"""Compares DDPO samples per second with the reference's schedule, change by change.

    # two minutes on one idle core; writes JSON and PNG to runs/ddpo_speed
    python benchmarks/ddpo_speed.py
    python benchmarks/ddpo_speed.py --samples 32 --steps 10 --repeats 5

One round on `embedded/music` with the mood reward: encode, roll out, decode, score, update (LoRA of
rank 8 on all attention, as the reference has it). The first side is the schedule of the reference
(``reference_schedule.py``: one sample at a time, both branches of guidance trained, one optimiser
step per sample). Its properties are then replaced by ours one by one, and the last side is ``DDPO``
itself. All sides run the same model, prompts, noise and steps in the same process, in turns; the
first turn does not count. On a shared machine ``--clock cpu`` counts the processor time of this
process. It prints the median of the turns with their range, and the ratio to the reference turn by
turn.

The last line trains half of the steps, which learns less from a sample, so it is not part of the
headline. Encoding a text costs this model almost nothing. With AudioLDM 2 it would be about an
eighth of one guided denoising step of 10 s (by operations: 45 GFLOP for T5, CLAP and GPT-2 on
prompt and negative, 334 for the step), which is also small.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import lightning as L
import torch
from rich.progress import Progress

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import zoo
from benchmarks.reference_schedule import Phases, Schedule, sampled, updated
from datamodules.batches import PromptBatch
from lightning_modules.rl.ddpo import DDPO
from lightning_modules.rl.settings import (
    AdvantageSettings,
    OptimizerSettings,
    SamplerSettings,
    UpdateSettings,
)
from lightning_modules.training_settings import AdapterSettings
from zoo.files import written_beside
from zoo.language import article_of
from zoo.rewards.mood import MOODS
from zoo.types import Backbone, Prompt, Reward

GUIDANCE = 2.0
SECONDS = 4.096
CLIP_RANGE = 1e-4
LEARNING_RATE = 1e-6
SEED = 0
CLOCKS = {"wall": perf_counter, "cpu": process_time}
OURS = "ours (DDPO)"
HALF = "ours, half of the steps trained"


def prompt_round(samples: int) -> PromptBatch:
    """A round of ``samples`` samples of four prompts in turns, one per mood."""
    texts = {
        mood: f"A recording of {article_of(mood)} {mood} piano solo, high quality" for mood in MOODS
    }
    negative = "Low quality, multiple sound sources"
    prompts = [
        Prompt(mood, text, negative, SECONDS, labels={"mood": mood}) for mood, text in texts.items()
    ]
    return PromptBatch(
        tuple(prompts[i % 4] for i in range(samples)), tuple(i // 4 for i in range(samples)), 0
    )


def ladder(rows: int) -> dict[str, Schedule]:
    """From the reference's schedule to ours, one change per line."""
    changes = {
        "reference": {},
        "+ texts encoded once": {"encode_once": True},
        "+ latents kept once": {"one_copy": True},
        f"+ {rows} samples per optimiser step": {"per_update": rows},
        f"+ {rows} samples per forward": {"rows": rows},
        "+ unconditional branch detached": {"detach": True},
    }
    lines = {}
    schedule = Schedule()
    for name, change in changes.items():
        lines[name] = schedule = replace(schedule, **change)
    return lines


@dataclass(frozen=True)
class Turn:
    """Seconds of one round, in total and per phase."""

    seconds: float
    phases: dict[str, float]


class OursTimed(L.Callback):
    """Times ``DDPO.training_step`` with its hooks, by ``clock``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: object) -> None:
        self.start = self.clock()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        seconds = self.clock() - self.start
        metrics = trainer.callback_metrics
        self.turn = Turn(
            seconds,
            {name: float(metrics[f"seconds/{name}"]) for name in ("sampling", "reward", "update")},
        )


class _Given:
    """A data loader of one batch."""

    def __init__(self, batch: PromptBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        return iter([self.batch])


def ours(module: DDPO, batch: PromptBatch, clock: Callable[[], float], share: float) -> Turn:
    """Times one round in Lightning; starting and stopping the trainer does not count."""
    timed = OursTimed(clock)
    module.update = replace(module.update, timestep_fraction=share)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[timed], **quiet).fit(
        module, _Given(batch)
    )
    return timed.turn


def restated(
    module: DDPO, batch: PromptBatch, clock: Callable[[], float], schedule: Schedule
) -> Turn:
    parameters = list(module.trainable().values())
    phases = Phases(clock)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    start = clock()
    sampler = replace(module.sampler, detach_unconditional=schedule.detach)
    samples = sampled(module.backbone, module.reward, sampler, batch, schedule, SEED, phases)
    updated(
        module.backbone,
        sampler,
        samples,
        schedule,
        optimizer,
        parameters,
        CLIP_RANGE,
        torch.Generator().manual_seed(SEED),
        phases,
    )
    return Turn(clock() - start, phases.seconds)


def ddpo(backbone: Backbone, reward: Reward, samples: int, steps: int, rows: int) -> DDPO:
    """Ours with an adapter that hardly moves, so that every turn does the same work."""
    module = DDPO(
        backbone,
        reward,
        SamplerSettings(steps, GUIDANCE, detach_unconditional=True, batch_size=rows),
        UpdateSettings(
            batch_size=rows,
            per_round=samples // rows,
            clip_range=CLIP_RANGE,
            clip_reference_elements=None,
            skip_last_step=False,
        ),
        AdvantageSettings("batch"),
        AdapterSettings(rank=8, targets="all"),
        OptimizerSettings(learning_rate=LEARNING_RATE),
        seed=SEED,
    )
    return module.eval()


def sides(
    module: DDPO, batch: PromptBatch, rows: int, clock: Callable[[], float]
) -> dict[str, Callable[[], Turn]]:
    """Name -> a function that runs one round; all share the model and its adapter."""
    lines = {
        name: partial(restated, module, batch, clock, schedule)
        for name, schedule in ladder(rows).items()
    }
    return {
        **lines,
        OURS: partial(ours, module, batch, clock, 1.0),
        HALF: partial(ours, module, batch, clock, 0.5),
    }


def turns(runs: dict[str, Callable[[], Turn]], repeats: int) -> dict[str, list[Turn]]:
    """``repeats`` turns of every side, in turns, after a warm-up."""
    found: dict[str, list[Turn]] = {name: [] for name in runs}
    with Progress(transient=True) as progress:
        task = progress.add_task("rounds", total=(repeats + 1) * len(runs))
        for number in range(repeats + 1):
            for name, run in runs.items():
                turn = run()
                if number:
                    found[name].append(turn)
                progress.advance(task)
    return found


def ratios(found: dict[str, list[Turn]], name: str) -> list[float]:
    """How many times as fast as the reference a side was, turn by turn."""
    return [
        theirs.seconds / turn.seconds
        for theirs, turn in zip(found["reference"], found[name], strict=True)
    ]


def table(found: dict[str, list[Turn]], samples: int) -> str:
    """A Markdown table of samples per second, and ratios to the reference and the line above."""
    lines = [
        "| schedule | samples/s (range) | times the reference (range) | times the line above |",
        "| --- | --- | --- | --- |",
    ]
    above = None
    for name, own in found.items():
        rate = [samples / turn.seconds for turn in own]
        times = ratios(found, name)
        median = statistics.median(times)
        step = "" if above is None else f"{median / above:.2f}"
        lines.append(
            f"| {name} | {statistics.median(rate):.2f} ({min(rate):.2f} to {max(rate):.2f}) |"
            f" {median:.2f} ({min(times):.2f} to {max(times):.2f}) | {step} |"
        )
        above = median
    return "\n".join(lines)


def picture(found: dict[str, list[Turn]], samples: int, path: Path) -> None:
    """Draws bars of samples per second, with the range over the turns."""
    from matplotlib.figure import Figure

    rates = [[samples / turn.seconds for turn in own] for own in found.values()]
    middle = [statistics.median(rate) for rate in rates]
    spread = [
        [m - min(rate) for m, rate in zip(middle, rates)],
        [max(rate) - m for m, rate in zip(middle, rates)],
    ]
    special = {"reference": "tab:grey", OURS: "tab:orange", HALF: "tab:orange"}
    colours = [special.get(name, "tab:blue") for name in found]
    figure = Figure(figsize=(8, 0.45 * len(found) + 1.2))
    axis = figure.subplots()
    axis.barh(list(found), middle, xerr=spread, color=colours)
    axis.invert_yaxis()
    axis.set(xlabel="samples per second, whole round (median and range of turns)")
    figure.tight_layout()
    with written_beside(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--samples", type=int, default=8, help="samples in the round; a multiple of --rows"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=8,
        help="samples per forward and per optimiser step of ours",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=5,
        help="sampling steps; all but the last, which adds no noise, are trained",
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side that count")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: processor time of this process, for shared machines",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/ddpo_speed"),
        help="folder for speed.json and speed.png",
    )
    options = parser.parse_args(argv)
    if options.samples % options.rows:
        raise SystemExit(f"--samples {options.samples} is not a multiple of --rows {options.rows}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    module = ddpo(
        zoo.load("embedded/music"),
        zoo.load("embedded/mood"),
        options.samples,
        options.steps,
        options.rows,
    )
    found = turns(
        sides(module, prompt_round(options.samples), options.rows, CLOCKS[options.clock]),
        options.repeats,
    )
    print(
        f"embedded/music, {options.samples} samples of {SECONDS} s, {options.steps} steps, guidance"
        f" {GUIDANCE}, CPU, {options.threads} thread(s), {options.repeats} turns, {options.clock}"
        " clock"
    )
    print(table(found, options.samples))
    # the reference and the last restated schedule; phases of DDPO are always wall time
    for name in ("reference", list(found)[-3]):
        phases = {
            phase: statistics.median(turn.phases[phase] for turn in found[name])
            for phase in found[name][0].phases
        }
        print(
            f"seconds of a round, {name}: "
            + ", ".join(f"{phase} {value:.2f}" for phase, value in phases.items())
        )
    record = {
        "settings": vars(options) | {"out": str(options.out)},
        "turns": {name: list(map(asdict, own)) for name, own in found.items()},
    }
    with written_beside(options.out / "speed.json") as path:
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", "utf-8")
    picture(found, options.samples, options.out / "speed.png")


if __name__ == "__main__":
    main(sys.argv[1:])
