"""Counts the memory of a reward-weighted fine-tuning step of Tango at its released size.

    # shapes only, without weights and arithmetic: about ten minutes on one core
    python benchmarks/tango_memory.py
    python benchmarks/tango_memory.py --batch 1,1

It takes two optimiser steps of the real U-Net (866 million weights), the second one over two
micro-batches, with the functions that ``lightning_modules.denoising`` takes them with: both
streams' errors, one backward pass, the norm of the gradients, AdamW as it runs on a GPU (all
tensors at once), averages. The order is that of Lightning: the gradients of a step are freed only
after the next forward pass. VAE and text encoder are not there (``memory.text_encoders=drop``,
``memory.decoder=offload``; latents and texts were encoded before).

Fake tensors have shapes and no contents, so the count needs no GPU and depends on no machine.
Autocast to 16 bits follows the rules of a GPU, where group and layer norms compute in float32. Not
counted: the CUDA context, workspaces of its libraries and unused space between blocks of the
allocator, for which ``OVERHEAD_GB`` are set aside.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.audioldm2_memory import without_contents
from benchmarks.evaluation import markdown_table
from benchmarks.live_bytes import peak_live_bytes
from lightning_modules.ema import EMA
from lightning_modules.latent_errors import latent_errors, weighted_mean
from lightning_modules.optimizers import build_optimizer
from zoo.backbones.library_networks import set_checkpointing
from zoo.backbones.lora import add_lora
from zoo.backbones.tango import UNET, Tango
from zoo.types import Conditioning, Prompt

SECONDS = 10.24  # 256 frames
TOKENS = 64  # of the longest caption in a batch
# samples per device: labelled, of the pretraining stream (there with mixtures); as in configs/baton
BATCHES = {"2 + 6": (2, 6), "2 + 6 + 4": (2, 10)}
OVERHEAD_GB = 2.0
CARDS_GB = (24, 80)
RANK = 8


@dataclass(frozen=True)
class Step:
    """What learns, and how.

    ``learns``: "U-Net" or "LoRA". ``precision``: as Lightning names it. ``checkpointing``: of
    activations. ``ema``: whether averaged weights are kept.
    """

    learns: str
    precision: str
    checkpointing: bool
    ema: bool = False


STEPS = tuple(
    Step(learns, precision, checkpointing)
    for learns in ("U-Net", "LoRA")
    for precision in ("32-true", "bf16-mixed")
    for checkpointing in (False, True)
)
LEARNED = {"U-Net": 865_933_768, "LoRA": 861_184}  # weights that learn
# peak bytes of every step for each of BATCHES, without averages; a test counts some again
COUNTED: dict[Step, tuple[int, ...]] = dict(
    zip(
        STEPS,
        (
            (29_003_175_272, 36_607_544_680),
            (19_469_740_904, 20_521_688_936),
            (25_645_016_500, 30_690_574_068),
            (17_327_180_724, 18_242_393_844),
            (15_289_695_024, 21_253_325_616),
            (6_139_631_920, 7_639_024_944),
            (14_761_111_436, 18_809_721_548),
            (5_499_885_104, 6_388_658_224),
        ),
        strict=True,
    )
)


class OnePlace:
    """A path at one place, as a lookup of times needs contents."""

    prediction = "v"

    def coefficients(self, time_B: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full(time_B.shape, 0.6), torch.full(time_B.shape, 0.8)


class ShapesOnly(nn.Module):
    """A Tango without text encoder and codec: its captions are encoded, its latents are there."""

    def __init__(self, unet: nn.Module, tokens: int, width: int) -> None:
        super().__init__()
        self.denoiser = unet
        self.path = OnePlace()
        self.tokens = tokens
        self.width = width

    predict = Tango.predict

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        count = len(prompts)
        tokens_BLD = torch.zeros(count, self.tokens, self.width)
        mask_BL = torch.ones(count, self.tokens, dtype=torch.bool)
        return Conditioning({"tokens_BLD": tokens_BLD, "mask_BL": mask_BL})


def _as_on_gpu(norm: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    """A hook: under autocast a GPU computes group and layer norms in float32, a CPU does not."""
    return (given[0].float(),) if torch.is_autocast_enabled("cpu") else given


def backbone_of(step: Step, unet: Mapping[str, Any], tokens: int) -> ShapesOnly:
    """The U-Net without contents, on the meta device, and what learns of it."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(**unet)
        template = ShapesOnly(network, tokens, unet["cross_attention_dim"])
        template.requires_grad_(step.learns == "U-Net")
        if step.learns == "LoRA":
            add_lora(template, RANK)
    set_checkpointing(template.denoiser, step.checkpointing)
    for module in template.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(_as_on_gpu)
    return template


def stream_loss(backbone: ShapesOnly, shape: tuple[int, ...], count: int) -> Tensor:
    """Of one stream."""
    prompts = [Prompt(str(row), "a dog", seconds=SECONDS) for row in range(count)]
    time_B = torch.full((count,), 500)
    error_B = latent_errors(
        backbone, torch.zeros(count, *shape), prompts, time_B, torch.zeros(count, *shape)
    )
    return weighted_mean(error_B, torch.ones(count))


def peak_bytes(
    step: Step,
    batch: tuple[int, int],
    unet: Mapping[str, Any] = UNET,
    frames: int = round(SECONDS * 25),
    tokens: int = TOKENS,
    fake: bool = True,
) -> int:
    """The most bytes of tensors alive at once in two optimiser steps, weights included.

    Args:
        step: what learns, and how.
        batch: samples of the labelled and of the pretraining stream.
        unet: settings of the network.
        frames: of the latents, 25 per second.
        tokens: of the captions.
        fake: counts shapes; else computes, which takes the memory.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    backbone = backbone_of(step, unet, tokens)
    shape = (unet["in_channels"], frames, 16 if unet is UNET else unet["sample_size"][1])
    with ExitStack() as stack:
        if fake:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        peak = stack.enter_context(peak_live_bytes())
        without_contents(backbone)
        learned = [p for p in backbone.parameters() if p.requires_grad]
        adam = build_optimizer("adamw", learned, 1e-5, (0.9, 0.999), 1e-8, 1e-2)
        for group in adam.param_groups:
            group["foreach"] = True  # the default on a GPU
        ema = EMA(learned, 0.999) if step.ema else None
        for micro_batches in (1, 2):
            for micro_batch in range(micro_batches):
                with torch.autocast("cpu", torch.bfloat16, enabled=step.precision == "bf16-mixed"):
                    loss = sum(stream_loss(backbone, shape, count) for count in batch)
                if micro_batch == 0:
                    adam.zero_grad()
                loss.backward()
                del loss
            nn.utils.clip_grad_norm_(learned, math.inf, foreach=True)
            adam.step()
            if ema is not None:
                ema.update()
        return peak()


def gigabytes(step: Step, without: int) -> float:
    """``without``: peak bytes without averages, which are float32 copies of what learns."""
    return (without + 4 * LEARNED[step.learns] * step.ema) / 1e9


def cards(number: float) -> list[int]:
    """The cards (GB) that hold so many GB and what is not counted."""
    return [card for card in CARDS_GB if number + OVERHEAD_GB <= card]


def table(counted: Mapping[Step, Sequence[int]], batches: Sequence[str]) -> str:
    """One row per step: GB per batch, and the cards that hold them, without and with averages."""
    rows = []
    for step, found in counted.items():
        cells = []
        for without in found:
            for ema in (False, True):
                number = gigabytes(replace(step, ema=ema), without)
                holding = ", ".join(map(str, cards(number))) or "none"
                cells.append(f"{number:.1f} ({holding})")
        rows.append([step.learns, step.precision, "yes" if step.checkpointing else "no", *cells])
    header = ["learns", "precision", "checkpointing"]
    for name in batches:
        header += [name, f"{name}, averages"]
    return markdown_table(header, rows)


def _batch(text: str) -> tuple[int, int]:
    labelled, _, pretrain = text.partition(",")
    return int(labelled), int(pretrain)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="LABELLED,PRETRAIN",
        help="samples of the two streams (default: those of configs/baton)",
    )
    given = parser.parse_args(argv).batch
    batches = BATCHES if given is None else {" + ".join(map(str, given)): given}
    counted = {
        step: tuple(peak_bytes(step, batch) for batch in batches.values())
        for step in track(STEPS, "counting")
    }
    print(table(counted, list(batches)))


if __name__ == "__main__":
    main(sys.argv[1:])
