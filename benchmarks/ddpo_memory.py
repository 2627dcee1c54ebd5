"""Activation memory of a DDPO update: backward at every step (ours) against one backward over the summed loss.

    python benchmarks/ddpo_memory.py

Counts the bytes that autograd holds at the worst moment, for more and more trained steps, on the embedded architecture
with random weights (the count does not depend on weights or on the machine). Prints one line per number of steps, with the
ratio of the two.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from lightning_modules.losses import clipped_policy_loss
from lightning_modules.policy_update import MicroBatch, backward_steps
from zoo.backbones.lora import add_lora
from zoo.diffusion import Sampler, noise_generator, rollout, step_log_prob
from zoo.types import Backbone, Prompt, Trajectory


class Held:
    """A saved tensor; ``live`` and ``peak`` count the bytes of distinct storages that graphs hold."""

    live = peak = 0
    counts: dict[int, int] = {}

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        Held.counts[key] = Held.counts.get(key, 0) + 1
        if Held.counts[key] == 1:
            Held.live += size
            Held.peak = max(Held.peak, Held.live)
        weakref.finalize(self, Held.release, key, size)

    @staticmethod
    def release(key: int, size: int) -> None:
        Held.counts[key] -= 1
        if Held.counts[key] == 0:
            Held.live -= size


@contextmanager
def peak_saved_bytes() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the most bytes that autograd held inside the block (parameters among them)."""
    Held.live = Held.peak = 0
    Held.counts = {}
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        yield lambda: Held.peak


def make(backbone: Backbone, steps: int, samples: int) -> tuple[Sampler, Trajectory]:
    """A rollout of ``samples`` different prompts with guidance."""
    prompts = [Prompt(f"p{i}", f"sad piano {i}", negative="low quality", seconds=1.024) for i in range(samples)]
    sampler = Sampler(steps, guidance_scale=3.0, detach_unconditional=True)
    with torch.no_grad():
        conditioning = backbone.encode_prompts(prompts)
        negative = backbone.encode_prompts([prompt.as_negative() for prompt in prompts])
    generators = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    shape = backbone.latent_shape(1.024)
    return sampler, rollout(backbone.predict, backbone.path, sampler, prompts, conditioning, negative, shape, generators)


def measure(backbone: Backbone, trained: int, samples: int = 4) -> tuple[int, int]:
    """(bytes with a backward at every step, bytes with one backward at the end) for ``trained`` steps."""
    sampler, trajectory = make(backbone, trained + 1, samples)
    steps_KN = torch.arange(trained)[:, None].expand(trained, samples)
    advantage = torch.linspace(-1, 1, samples)
    micro = MicroBatch(tuple(range(samples)), steps_KN, torch.ones(samples))
    with peak_saved_bytes() as per_step:
        backward_steps(
            backbone, sampler, trajectory, micro, trajectory.log_prob_SB, advantage, micro.terms, lambda loss: loss.backward(),
            clip_range=1e-4, advantage_clip=5.0, kl_weight=0.0,
        )  # fmt: skip
        ours = per_step()
    with peak_saved_bytes() as at_once:
        total = torch.zeros(())
        for step_N in steps_KN:
            log_prob, _, _ = step_log_prob(backbone.predict, backbone.path, sampler, trajectory, step_N)
            total = total + clipped_policy_loss(log_prob, trajectory.log_prob_SB[step_N[0]], advantage, 1e-4).loss
        total.backward()
        return ours, at_once()


def main() -> None:
    from zoo.backbones.tiny import TinyAudio

    torch.manual_seed(0)
    backbone = TinyAudio(codec_width=16, codec_encoder_depth=1, codec_decoder_depth=1).requires_grad_(False)
    add_lora(backbone, 8, targets="all")
    for trained in (1, 2, 4, 8, 16):
        ours, theirs = measure(backbone, trained)
        each, once = ours / 2**20, theirs / 2**20
        print(f"{trained:3d} steps: backward per step {each:7.1f} MiB, at the end {once:7.1f} MiB, x {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
