"""Counts the memory of AudioLDM 2 at its released sizes: activations of a DDPO step, a whole run.

    # shapes only, without weights and arithmetic: about a minute
    python benchmarks/audioldm2_memory.py --size base --seconds 10
    python benchmarks/audioldm2_memory.py --size small --seconds 1 --real

For one guided prediction (two rows, LoRA on cross-attention, text mask on), with and without
gradient checkpointing:

- *kept*: the bytes that autograd keeps for the backward pass, without parameters. The limit, with
  checkpointing, is 0.2 GiB;
- *peak*: the most bytes of tensors alive at once in forward and backward, including recomputation.

It uses fake tensors, which have shapes and no contents; ``--real`` computes. Numbers are for
float32 and halve in 16 bits. Then it adds up a run: weights, activations of ``--samples`` samples,
and the latents of a round. The CUDA context, workspaces of its libraries and unused space between
blocks of the allocator (1 to 2 GB) are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.live_bytes import peak_live_bytes
from benchmarks.random_audioldm2 import LOA, SIZES, TOKENS, random_unet
from zoo.backbones.library_networks import set_checkpointing
from zoo.backbones.lora import attention_linears

KEPT_LIMIT = 0.2 * 2**30  # bytes of one guided prediction of 10 s with checkpointing
# weights in millions, by the published configurations: the denoiser, and the parts beside it
DENOISER = {"base": 346.9, "large": 718.0}
TEXT = 592.1  # CLAP 125.3, T5 341.2, GPT-2 124.4, projection 1.2
CODEC = 110.7  # VAE and vocoder
REWARD = 193.9  # HTSAT-base and RoBERTa
# checkpointing -> peak bytes of one guided sample of 10 s of the base size; a test counts again
PEAK = {False: 1_449_244_000, True: 160_475_000}

Predicting = tuple[nn.Module, Callable[[], torch.Tensor]]


@contextmanager
def saved_bytes(module: nn.Module) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the bytes that autograd keeps, without ``module``'s own.

    Each storage counts once.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept.setdefault(key, tensor)  # keeps it alive, so that no other storage reuses the key
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def without_contents(module: nn.Module) -> None:
    """Replaces ``module``'s parameters with fake CPU tensors, as meta tensors use other kernels."""
    for part in module.modules():
        for name, old in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(
                torch.empty(old.shape, dtype=old.dtype, device="cpu"), old.requires_grad
            )


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass, and the peak of all tensors in forward and backward."""

    kept: int
    peak: int


@contextmanager
def prediction(
    size: str, seconds: float, checkpointing: bool, real: bool, rank: int = 8, rows: int = 2
) -> Iterator[Predicting]:
    """Yields the network with its adapter and a function that predicts.

    Args:
        size: a key of ``SIZES``.
        seconds: length of the audio: 25 latent frames per second, of 16 bands.
        checkpointing: whether activations are computed again.
        real: computes with weights instead of counting shapes.
        rank: of the adapter.
        rows: of a forward.
    """
    from peft import LoraConfig, get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("cpu" if real else "meta"):
        unet = random_unet(size)
        names = attention_linears(unet, cross_only=True)
        unet = get_peft_model(unet, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    set_checkpointing(unet, checkpointing)
    widths = SIZES[size]["cross_attention_dim"][0]
    with nullcontext() if real else FakeTensorMode():
        if not real:
            without_contents(unet)
        inputs = {
            "sample": torch.zeros(rows, 8, round(seconds * 25), 16),
            "timestep": torch.tensor([500] * rows),
            "encoder_hidden_states": torch.zeros(rows, LOA, widths[1]),
            "encoder_hidden_states_1": torch.zeros(rows, TOKENS, widths[2]),
            "encoder_attention_mask_1": torch.ones(rows, TOKENS, dtype=torch.bool),
        }
        yield unet, lambda: unet(**inputs, return_dict=False)[0]


def measure(size: str, seconds: float, checkpointing: bool, real: bool) -> int:
    """The bytes that autograd keeps for one guided prediction."""
    with (
        prediction(size, seconds, checkpointing, real) as (unet, predict),
        saved_bytes(unet) as kept,
    ):
        output = predict()
        count = kept()
        del output
    return count


def activations(size: str, seconds: float, checkpointing: bool, real: bool = False) -> Activations:
    """The activations of one guided prediction and its backward pass."""
    with prediction(size, seconds, checkpointing, real) as (_, predict), peak_live_bytes() as peak:
        predict().sum().backward()
    return Activations(measure(size, seconds, checkpointing, real), peak())


def latents_bytes(seconds: float, steps: int, samples: int) -> int:
    """Bytes of the float32 trajectories of a round: steps + 1 latents (8, 25 per second, 16)."""
    return samples * (steps + 1) * 8 * round(seconds * 25) * 16 * 4


def run_parts(
    size: str,
    peak_bytes: float,
    samples: int,
    latents: int,
    text_encoders: bool = True,
    bytes_each: int = 4,
) -> dict[str, float]:
    """The memory of a run in GB, by part.

    Args:
        size: a key of ``DENOISER``.
        peak_bytes: of the activations of one sample.
        samples: per forward.
        latents: bytes of the latents of a round.
        text_encoders: whether they are in memory.
        bytes_each: of a weight.
    """
    weights = {
        "denoiser": DENOISER[size],
        "text encoders": TEXT * text_encoders,
        "VAE and vocoder": CODEC,
        "CLAP reward": REWARD,
    }
    parts = {f"weights, {name}": millions * bytes_each / 1e3 for name, millions in weights.items()}
    return {**parts, "activations": samples * peak_bytes / 1e9, "latents": latents / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="length of the audio (25 latent frames per second)",
    )
    parser.add_argument(
        "--real", action="store_true", help="compute with weights instead of counting shapes"
    )
    parser.add_argument(
        "--samples", type=int, default=8, help="samples in a forward, for the sum of a run"
    )
    parser.add_argument(
        "--round", type=int, default=32, help="samples in a round, for the sum of a run"
    )
    parser.add_argument(
        "--steps", type=int, default=19, help="sampling steps, for the sum of a run"
    )
    options = parser.parse_args()
    plain, less = (
        activations(options.size, options.seconds, on, options.real) for on in (False, True)
    )
    print(
        f"{options.size}, {options.seconds:g} s, two rows, float32: {plain.kept / 2**20:.1f} MiB"
        f" kept for the backward pass, with checkpointing {less.kept / 2**20:.1f} MiB,"
        f" 1/{plain.kept / less.kept:.1f}; peak {plain.peak / 2**20:.1f} and"
        f" {less.peak / 2**20:.1f} MiB"
    )
    verdict = "inside" if less.kept <= KEPT_LIMIT else "ABOVE"
    print(f"kept with checkpointing: {verdict} the limit of {KEPT_LIMIT / 2**20:.1f} MiB (0.2 GiB)")
    latents = latents_bytes(options.seconds, options.steps, options.round)
    for name, one in (("plain", plain), ("checkpointed", less)) if options.size in DENOISER else ():
        parts = run_parts(options.size, one.peak, options.samples, latents)
        terms = " + ".join(f"{part} {gigabytes:.2f}" for part, gigabytes in parts.items())
        total = sum(parts.values())
        print(f"{name}, {options.samples} samples per forward: {total:.1f} GB = {terms}")
    if less.kept > KEPT_LIMIT and options.seconds <= 10:
        raise SystemExit("more than the limit")


if __name__ == "__main__":
    main()
