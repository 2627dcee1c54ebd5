"""Memory of a reward-weighted step of Tango: the count on shapes, and the table of the docs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_tango import SMALL, small_model
from toy_weighted import denoising

from benchmarks import tango_memory
from benchmarks.live_bytes import peak_saved_bytes
from benchmarks.tango_memory import (
    BATCHES,
    COUNTED,
    LEARNED,
    STEPS,
    Step,
    backbone_of,
    cards,
    gigabytes,
    peak_bytes,
    table,
)
from datamodules.batches import LatentBatch, PairedBatch
from zoo.types import Prompt

UNET = SMALL["unet"]
SMALL_SIZES = {"unet": UNET, "frames": 16, "tokens": 5}
DOCS = Path(__file__).resolve().parents[1] / "docs" / "reward_weighted.md"


@pytest.mark.long
@pytest.mark.parametrize(
    "step", [STEPS[3], STEPS[4]], ids=["U-Net, everything saved", "LoRA, float32"]
)
def test_shapes_count_what_computing_takes(step):
    fake = peak_bytes(step, (2, 1), **SMALL_SIZES)
    real = peak_bytes(step, (2, 1), **SMALL_SIZES, fake=False)
    assert fake == pytest.approx(real, rel=5e-3)


@pytest.mark.long
def test_averages_are_copies_of_what_learns():
    step = Step("LoRA", "32-true", False)
    learned = sum(p.numel() for p in backbone_of(step, UNET, 5).parameters() if p.requires_grad)
    without, with_averages = (
        peak_bytes(replace(step, ema=ema), (1, 1), **SMALL_SIZES) for ema in (False, True)
    )
    assert with_averages - without == 4 * learned


@pytest.mark.long
def test_the_counted_losses_are_those_of_the_module():
    backbone = small_model()
    module = denoising(backbone)
    shape = (4, 16, 4)

    def batch(count: int, weight: float | None) -> LatentBatch:
        prompts = tuple(Prompt(str(row), "a dog", seconds=0.64) for row in range(count))
        weight_B = None if weight is None else torch.full((count,), weight)
        return LatentBatch(torch.zeros(count, *shape), prompts, weight_B)

    module.log = lambda *arguments, **options: None
    with peak_saved_bytes(backbone) as kept:
        module.training_step(PairedBatch(batch(2, 0.5), batch(3, None)), 0)
        own = kept()
    with peak_saved_bytes(backbone) as kept:
        losses = [tango_memory.stream_loss(backbone, shape, count) for count in (2, 3)]
        counted = kept()
    assert len(losses) == 2 and counted == pytest.approx(own, rel=0.01)


def test_the_table_of_the_docs_is_the_counted_one():
    assert set(COUNTED) == set(STEPS)
    assert table(COUNTED, list(BATCHES)) in DOCS.read_text("utf-8")


def test_a_card_holds_what_is_counted_and_the_rest():
    assert cards(22.0) == [24, 80] and cards(22.1) == [80] and cards(78.1) == []
    step = Step("U-Net", "32-true", False, ema=True)
    assert gigabytes(step, 10**9) == pytest.approx(1 + 4 * LEARNED["U-Net"] / 1e9)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS[::3], ids=str)  # each setting both ways
def test_the_counts_at_full_size(step):
    """``python benchmarks/tango_memory.py`` counts every row; versions of torch differ a little."""
    counted = tuple(peak_bytes(step, batch) for batch in BATCHES.values())
    assert counted == pytest.approx(COUNTED[step], rel=2e-3)


@pytest.mark.long
def test_what_learns_at_full_size():
    for learns, count in LEARNED.items():
        model = backbone_of(Step(learns, "32-true", False), tango_memory.UNET, 5)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
