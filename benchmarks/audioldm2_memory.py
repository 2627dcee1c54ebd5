"""Activation memory of AudioLDM 2's denoiser with and without gradient checkpointing.

    python benchmarks/audioldm2_memory.py --size base --seconds 10       # shapes only: no weights, no arithmetic, a minute
    python benchmarks/audioldm2_memory.py --size small --seconds 1 --real

Counts the bytes that autograd keeps for the backward pass of one guided prediction (two rows, LoRA on cross-attention, text
mask on), parameters not counted. By default on fake tensors, which have shapes and no contents; ``--real`` computes. What is
held while a checkpointed block is computed again comes on top. float32; half of it in 16 bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from zoo.backbones.checkpointing import set_checkpointing
from zoo.backbones.lora import attention_linears

# constructor arguments of the released networks (their config.json); what is not said is the library's default
_BASE = {
    "in_channels": 8, "out_channels": 8, "sample_size": 256, "block_out_channels": [128, 256, 384, 640],
    "cross_attention_dim": [[None, 768, 1024]] * 4, "attention_head_dim": 8, "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
SIZES = {
    "small": {**_BASE, "block_out_channels": [16, 16, 16, 32], "cross_attention_dim": [[None, 24, 32]] * 4,
              "attention_head_dim": 2, "norm_num_groups": 8},
    "base": _BASE,
    "large": {**_BASE, "cross_attention_dim": [[None, 768, 1024, None]] * 4, "transformer_layers_per_block": 2},
}  # fmt: skip


@contextmanager
def saved_bytes(module: nn.Module) -> Iterator[Callable[[], int]]:
    """Yields a function that tells the bytes of distinct storages, other than ``module``'s own, that autograd kept inside."""
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept.setdefault(key, tensor)  # held, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def without_contents(module: nn.Module) -> None:
    """Puts fake tensors of the processor in the place of ``module``'s parameters: those of no device take other kernels."""
    for part in module.modules():
        for name, old in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(torch.empty(old.shape, dtype=old.dtype, device="cpu"), old.requires_grad)


def measure(size: str, seconds: float, checkpointing: bool, real: bool, rank: int = 8, tokens: int = 20) -> int:
    """Bytes kept for one prediction of two rows of ``seconds`` (25 latent frames a second, 16 bands)."""
    from diffusers import AudioLDM2UNet2DConditionModel
    from peft import LoraConfig, get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("cpu" if real else "meta"):
        unet = AudioLDM2UNet2DConditionModel(**SIZES[size]).requires_grad_(False)
        names = attention_linears(unet, cross_only=True)
        unet = get_peft_model(unet, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    set_checkpointing(unet, checkpointing)
    widths = SIZES[size]["cross_attention_dim"][0]
    with nullcontext() if real else FakeTensorMode():
        if not real:
            without_contents(unet)
        inputs = {
            "sample": torch.zeros(2, 8, round(seconds * 25), 16), "timestep": torch.tensor([500, 500]),
            "encoder_hidden_states": torch.zeros(2, 8, widths[1]), "encoder_hidden_states_1": torch.zeros(2, tokens, widths[2]),
            "encoder_attention_mask_1": torch.ones(2, tokens, dtype=torch.bool),
        }  # fmt: skip
        with saved_bytes(unet) as kept:
            output = unet(**inputs, return_dict=False)[0]
            count = kept()
        del output
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the audio (25 latent frames a second)")
    parser.add_argument("--real", action="store_true", help="compute with weights instead of counting shapes")
    options = parser.parse_args()
    plain, checkpointed = (measure(options.size, options.seconds, on, options.real) / 2**20 for on in (False, True))
    print(f"{options.size}, {options.seconds:g} s, two rows, float32: {plain:.1f} MiB kept for the backward pass, "
          f"with checkpointing {checkpointed:.1f} MiB, 1/{plain / checkpointed:.1f}")


if __name__ == "__main__":
    main()
