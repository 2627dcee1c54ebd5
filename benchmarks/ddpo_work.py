"""Measures the seconds that an update of DDPO saves by skipping needless work.

    python benchmarks/ddpo_work.py        # two minutes on one idle core; JSON in runs/ddpo_work
    python benchmarks/ddpo_work.py --samples 8 --turns 1

On `embedded/music` in the shape of the quickstart (64 samples in optimiser steps of 16, two trained
steps, guidance 1.25, LoRA of rank 8 on cross-attention). Each line compares two ways to the same
gradient, or names what differs:

- *advantages of 0*: samples that have nothing to learn are left out. How many there are depends on
  the run: `--learning` is the share that learns (0.13 over the quickstart's rounds).
- *unconditional outputs*: taken from the rollout in place of a forward. DDPO may do so until its
  first optimiser step of a round, so this line is one optimiser step of all samples.
- *detached*: both sides of guidance learn, or the unconditional side is detached; once for the
  update and once with the rollout before it. The gradients differ.
- *switch*: turning the adapter off and on for the KL, by walking all modules as peft does, or by a
  list of the adapted layers; milliseconds of a single time.
- *storage*: the most bytes of latents alive while a round is stored, as a list that is stacked and
  joined, or in buffers of the round; in times of the round's latents.

Seconds are of this process's processor time (``--clock wall`` for an idle machine), the median of
the turns; the first turn does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import zoo
from benchmarks.ddpo_speed import prompt_round
from benchmarks.live_bytes import peak_live_bytes
from lightning_modules.rl.ppo_update import OptimiserStep, backward_steps, plan_updates
from zoo.backbones.lora import AdapterSwitch, add_lora
from zoo.diffusion import RolloutBuffers, Sampler, noise_generator, replay_schedule, rollout
from zoo.files import written_beside
from zoo.rendering import encode_sides
from zoo.types import Backbone, Trajectory

GUIDANCE = 1.25
STEPS = 3
TRAINED = 2
ROWS = 16
SEED = 0
CLOCKS = {"cpu": process_time, "wall": perf_counter}


@dataclass(frozen=True)
class Line:
    """What was compared, in ``unit``, and how many times less the second way takes."""

    what: str
    before: float
    after: float
    unit: str

    @property
    def ratio(self) -> float:
        return self.before / self.after


@dataclass(frozen=True)
class Round:
    """A rollout and the policy that made it."""

    backbone: Backbone
    sampler: Sampler
    trajectory: Trajectory

    def update(
        self, plans: Sequence[OptimiserStep], advantage_B: Tensor, reuse_unconditional: bool = False
    ) -> None:
        """All forward and backward passes; gradients are left and no weight moves."""
        schedule = replay_schedule(self.backbone.path, self.sampler, self.trajectory)
        self.backbone.denoiser.zero_grad()
        for plan in plans:
            for micro in plan.micro:
                backward_steps(
                    self.backbone,
                    schedule,
                    self.trajectory,
                    micro,
                    self.trajectory.log_prob_SB,
                    advantage_B,
                    plan.terms,
                    lambda loss: loss.backward(),
                    clip_range=1e-4,
                    advantage_clip=5.0,
                    kl_coef=0.0,
                    reuse_unconditional=reuse_unconditional,
                )


def sampled(backbone: Backbone, samples: int, detach: bool) -> Round:
    """``samples`` clips of the prompts of ``ddpo_speed``."""
    sampler = Sampler(STEPS, GUIDANCE, detach_unconditional=detach)
    batch = prompt_round(samples)
    shape = backbone.latent_shape(batch.prompts[0].seconds)
    places = zip(batch.prompts, batch.sample_index, strict=True)
    generators = [noise_generator(SEED, 0, prompt.id, index) for prompt, index in places]
    with torch.no_grad():
        encoded = encode_sides(backbone, sampler, batch.prompts, samples)
        trajectory = rollout(
            backbone.predict,
            backbone.path,
            sampler,
            batch.prompts,
            encoded.conditioning,
            encoded.negative,
            shape,
            generators,
            buffers=RolloutBuffers.empty(sampler, samples, shape, "cpu", True),
        )
    return Round(backbone, sampler, trajectory)


def plans(samples: int, updates: int, learns_B: Sequence[bool]) -> list[OptimiserStep]:
    steps_KB = torch.arange(TRAINED)[:, None].expand(TRAINED, samples)
    rows = min(ROWS, samples // updates)
    return plan_updates(steps_KB, [True] * samples, learns_B, rows, updates, SEED)


def seconds(
    ways: Sequence[Callable[[], None]], turns: int, clock: Callable[[], float]
) -> list[float]:
    """Median of each way, taken in turns."""
    found: list[list[float]] = [[] for _ in ways]
    for number in range(turns + 1):
        for place, way in zip(found, ways, strict=True):
            start = clock()
            way()
            if number:
                place.append(clock() - start)
    return [statistics.median(one) for one in found]


def peft_switch(backbone: Backbone) -> None:
    """As ``reference`` was before: peft's context, which walks all modules several times."""
    model = backbone.denoiser
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with model.disable_adapter():
        pass
    for parameter in frozen:
        parameter.requires_grad_(False)


def switched(backbone: Backbone, switch: Callable[[], object], times: int) -> None:
    for _ in range(times):
        switch()


def stacked(latents_SB: Tensor, size: int) -> Tensor:
    """A round as it was stored before: latents are listed, stacked, and micro-batches joined."""
    parts = []
    for rows in latents_SB.split(size, dim=1):
        made = [latent.clone() for latent in rows]
        parts.append(torch.stack(made))
    return torch.cat(parts, dim=1)


def buffered(latents_SB: Tensor, size: int) -> Tensor:
    """In the round's buffers."""
    buffer = torch.empty_like(latents_SB)
    for start in range(0, latents_SB.shape[1], size):
        for step, latents in enumerate(latents_SB[:, start : start + size]):
            buffer[step, start : start + size] = latents.clone()
    return buffer


def storage(samples: int, steps: int, size: int) -> tuple[float, float]:
    """Peak bytes of both, in times of the latents."""
    latents_SB = torch.empty(steps + 1, samples, 32, 32)
    peaks = []
    for way in (stacked, buffered):
        with peak_live_bytes() as live:
            way(latents_SB, size)
        peaks.append(live() / latents_SB.nbytes)
    return peaks[0], peaks[1]


def measured(
    backbone: Backbone, samples: int, learning: float, turns: int, clock: Callable[[], float]
) -> list[Line]:
    detached, both = (sampled(backbone, samples, detach) for detach in (True, False))
    updates = max(1, samples // ROWS)
    everyone = [True] * samples
    advantage_B = torch.linspace(-1, 1, samples)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(SEED))
    learns = order < round(learning * samples)
    few_B = advantage_B * learns
    whole = plans(samples, updates, everyone)
    some = plans(samples, updates, learns.tolist())
    single = plans(samples, 1, everyone)
    lines = []

    def line(what: str, *ways: Callable[[], None]) -> None:
        lines.append(Line(what, *seconds(ways, turns, clock), "s"))

    line(
        f"update, advantages of 0 computed or not ({learning:.0%} learn)",
        partial(detached.update, whole, few_B),
        partial(detached.update, some, few_B),
    )
    line(
        "optimiser step, unconditional outputs computed or those of the rollout",
        partial(detached.update, single, advantage_B),
        partial(detached.update, single, advantage_B, reuse_unconditional=True),
    )
    line(
        "update, both sides of guidance learn or one is detached",
        partial(both.update, whole, advantage_B),
        partial(detached.update, whole, advantage_B),
    )
    line(
        "rollout and update, both sides of guidance learn or one is detached",
        lambda: sampled(backbone, samples, False).update(whole, advantage_B),
        lambda: sampled(backbone, samples, True).update(whole, advantage_B),
    )
    adapter_off = AdapterSwitch.of(backbone)
    times = 20

    def by_list() -> None:
        with adapter_off():
            pass

    ways = [partial(switched, backbone, partial(peft_switch, backbone), times)]
    ways.append(partial(switched, backbone, by_list, times))
    before, after = seconds(ways, turns, clock)
    lines.append(Line("adapter off and on", 1e3 * before / times, 1e3 * after / times, "ms"))
    lines.append(Line("storage of a round", *storage(64, 20, 16), "times its latents"))
    return lines


def table(lines: Sequence[Line]) -> str:
    rows = ["| what | before | now | times less |", "| --- | --- | --- | --- |"]
    for one in lines:
        rows.append(
            f"| {one.what} | {one.before:.3g} {one.unit} | {one.after:.3g} {one.unit} |"
            f" {one.ratio:.2f} |"
        )
    return "\n".join(rows)


def main(argv: Sequence[str], backbone: Backbone | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=64, help=f"a multiple of {ROWS}, or fewer")
    parser.add_argument("--learning", type=float, default=0.13, help="share that learns, (0, 1]")
    parser.add_argument("--turns", type=int, default=3, help="that count")
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("runs/ddpo_work"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    backbone = backbone or zoo.load("embedded/music").requires_grad_(False)
    add_lora(backbone, 8, targets="cross")
    lines = measured(
        backbone, options.samples, options.learning, options.turns, CLOCKS[options.clock]
    )
    print(table(lines))
    record = [vars(one) | {"ratio": one.ratio} for one in lines]
    with written_beside(options.out / "work.json") as path:
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
