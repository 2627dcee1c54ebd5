"""Compares the memory of a DDPO update with the reference's, as the number of steps grows.

    # some minutes on one core; writes JSON and PNG to runs/ddpo_memory
    python benchmarks/ddpo_memory.py
    python benchmarks/ddpo_memory.py --steps 2 4 8

Ours runs forward and backward one step after the other. The reference (the DDPO loop of the music
RLHF experiments) also calls backward at every step, but with ``retain_graph=True``, and keeps each
step's loss for its log, so no graph is freed before the last step. Both give the same gradient. It
counts on random weights of a narrow AudioLDM 2 denoiser (the real class) and of the embedded
architecture:

- *activations*: the peak bytes that autograd holds for backward passes, without weights;
- *live*: the peak bytes of live tensors that the update creates. The *latents* of its samples
  (float32, one more than steps) are not among them: the rollout creates them, they grow with the
  steps by definition, and ours reads them in place.

The counts depend on shapes only, not on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.live_bytes import peak_live_bytes, peak_saved_bytes
from benchmarks.random_audioldm2 import RandomAudioLDM2
from lightning_modules.rl.losses import clipped_policy_loss
from lightning_modules.rl.ppo_update import MicroBatch, backward_steps
from zoo.backbones.lora import add_lora
from zoo.diffusion import (
    Sampler,
    Schedule,
    noise_generator,
    replay_schedule,
    rollout,
    step_log_prob,
)
from zoo.files import written_beside
from zoo.types import Backbone, Prompt, Trajectory

STEPS = (10, 50, 200)
SECONDS = 1.024
CLIP_RANGE = 1e-4
TOLERANCE = 0.01  # allowed growth of activations from the fewest to the most steps


@dataclass(frozen=True)
class Memory:
    """Bytes of one update of ``steps`` steps: activations, live tensors, and latents."""

    model: str
    steps: int
    ours: int
    reference: int
    ours_live: int
    reference_live: int
    latents: int


@dataclass(frozen=True)
class Update:
    """One micro-batch of ``len(trajectory)`` samples, each trained at ``steps`` steps."""

    backbone: Backbone
    sampler: Sampler
    trajectory: Trajectory
    schedule: Schedule
    steps: int
    advantage_B: Tensor

    def ours(self) -> None:
        trajectory = self.trajectory
        count = len(trajectory)
        steps_KN = torch.arange(self.steps)[:, None].expand(self.steps, count)
        micro = MicroBatch(tuple(range(count)), steps_KN)
        backward_steps(
            self.backbone,
            self.schedule,
            trajectory,
            micro,
            trajectory.log_prob_SB,
            self.advantage_B,
            steps_KN.numel(),
            lambda loss: loss.backward(),
            clip_range=CLIP_RANGE,
            advantage_clip=5.0,
            kl_coef=0.0,
        )

    def reference(self) -> None:
        latents = self.trajectory.latents_SB
        now = latents[:-1].clone()  # its two copies
        after = latents[1:].clone()
        kept = []
        for step in range(self.steps):
            part = self.trajectory
            step_B = torch.full((len(part),), step)
            log_prob, _, _ = step_log_prob(
                self.backbone.predict, self.backbone.path, self.sampler, part, step_B
            )
            loss = (
                clipped_policy_loss(
                    log_prob, part.log_prob_SB[step], self.advantage_B, CLIP_RANGE
                ).loss
                / self.steps
            )
            loss.backward(retain_graph=True)
            kept.append(loss)
        del now, after, kept


def prepared(backbone: Backbone, steps: int, samples: int) -> Update:
    """An update on a guided rollout of ``samples`` prompts, one step longer than is trained."""
    prompts = [
        Prompt(f"p{i}", f"sad piano {i}", negative="low quality", seconds=SECONDS)
        for i in range(samples)
    ]
    sampler = Sampler(steps + 1, guidance_scale=3.0, detach_unconditional=True)
    with torch.no_grad():
        conditioning = backbone.encode_prompts(prompts)
        negative = backbone.encode_prompts([prompt.as_negative() for prompt in prompts])
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    shape = backbone.latent_shape(SECONDS)
    trajectory = rollout(
        backbone.predict, backbone.path, sampler, prompts, conditioning, negative, shape, generators
    )
    schedule = replay_schedule(backbone.path, sampler, trajectory)
    return Update(backbone, sampler, trajectory, schedule, steps, torch.linspace(-1, 1, samples))


def measure(
    backbone: Backbone, steps: int, samples: int = 2, name: str = "", live: bool = True
) -> Memory:
    """Measures both schedules on the same rollout; gradients are cleared before each.

    Without ``live`` it counts only activations, which is faster. Raises ``AssertionError`` if the
    gradients differ.
    """
    update = prepared(backbone, steps, samples)
    trained = [parameter for parameter in backbone.denoiser.parameters() if parameter.requires_grad]

    def counted(schedule: Callable[[], None]) -> tuple[int, int, list[Tensor]]:
        for parameter in trained:
            parameter.grad = None
        with (
            peak_saved_bytes(backbone.denoiser) as saved,
            peak_live_bytes() if live else nullcontext(int) as alive,
        ):
            schedule()
        return saved(), alive(), [parameter.grad for parameter in trained]

    ours, ours_live, mine = counted(update.ours)
    reference, reference_live, theirs = counted(update.reference)
    scale = max(gradient.abs().max() for gradient in theirs)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * scale.item())
    return Memory(
        name, steps, ours, reference, ours_live, reference_live, update.trajectory.latents_SB.nbytes
    )


def models() -> dict[str, Backbone]:
    """Name -> backbone with an adapter of rank 8."""
    from zoo.backbones.tiny import TinyAudio

    torch.manual_seed(0)
    embedded = TinyAudio(
        width=64, depth=2, heads=2, codec_width=16, codec_encoder_depth=1, codec_decoder_depth=1
    )
    found = {"AudioLDM 2, narrow": RandomAudioLDM2("tiny"), "embedded, narrow": embedded}
    for backbone in found.values():
        add_lora(backbone.requires_grad_(False).eval(), 8, targets="all")
    return found


def table(rows: Sequence[Memory]) -> str:
    """A Markdown table in MiB."""
    lines = [
        (
            "| model | trained steps | ours, activations | reference, activations | ratio | ours,"
            " live | reference, live | latents |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours, reference, live, other, latents = (
            f"{value / 2**20:.2f} MiB"
            for value in (row.ours, row.reference, row.ours_live, row.reference_live, row.latents)
        )
        ratio = f"{row.reference / row.ours:.1f}"
        lines.append(
            f"| {row.model} | {row.steps} | {ours} | {reference} | {ratio} | {live} | {other} |"
            f" {latents} |"
        )
    return "\n".join(lines)


def growth(rows: Sequence[Memory]) -> float:
    """The largest growth of our activations over those at the fewest steps, as a share."""
    fewest = {
        row.model: min((r for r in rows if r.model == row.model), key=lambda r: r.steps).ours
        for row in rows
    }
    return max(row.ours / fewest[row.model] - 1 for row in rows)


def picture(rows: Sequence[Memory], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.model for row in rows))
    figure = Figure(figsize=(4.5 * len(names), 3.6))
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row.model == name]
        for label, values in (
            ("reference", [row.reference for row in own]),
            ("ours", [row.ours for row in own]),
        ):
            axis.loglog(
                [row.steps for row in own],
                [value / 2**20 for value in values],
                marker="o",
                label=label,
            )
        axis.set(title=name, xlabel="trained steps", ylabel="activations at the worst moment, MiB")
        axis.legend()
    figure.tight_layout()
    with written_beside(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, nargs="+", default=list(STEPS), help="numbers of trained steps"
    )
    parser.add_argument("--samples", type=int, default=2, help="samples in the micro-batch")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/ddpo_memory"),
        help="folder for memory.json and memory.png",
    )
    options = parser.parse_args(argv)
    pairs = [
        (name, backbone, steps) for name, backbone in models().items() for steps in options.steps
    ]
    rows = [
        measure(backbone, steps, options.samples, name)
        for name, backbone, steps in track(pairs, "measuring")
    ]
    print(table(rows))
    print(
        f"ours: activations at more steps are at most {growth(rows):.2%} above those at the fewest"
        f" (allowed: {TOLERANCE:.0%})"
    )
    with written_beside(options.out / "memory.json") as path:
        path.write_text(
            json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False) + "\n", "utf-8"
        )
    picture(rows, options.out / "memory.png")
    if growth(rows) > TOLERANCE:
        raise SystemExit("memory grows with the steps")


if __name__ == "__main__":
    main(sys.argv[1:])
