"""The check of the importance ratio.

Before the first update the trained policy is the one that sampled, so the ratio is 1 but for
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_modules.rl.ppo_update import MicroBatch, UpdateRecord
from zoo.errors import UserError
from zoo.types import Prompt

# |ratio - 1| that float32 leaves before the first update, at equal and at other batch shapes
SAME_SHAPES = 1e-6
OTHER_SHAPES = 1e-5


def is_full_precision(network: nn.Module, device_type: str, convolutions: bool = False) -> bool:
    """Whether the network computes in float32 or float64: no half weights, autocast or TF32.

    ``convolutions``: whether cuDNN's convolutions count, for which TF32 is PyTorch's default.
    """
    halves = any(
        p.is_floating_point() and p.dtype not in (torch.float32, torch.float64)
        for p in network.parameters()
    )
    tf32 = device_type == "cuda" and (
        torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32
    )
    tf32 = tf32 or (device_type == "cuda" and convolutions and torch.backends.cudnn.allow_tf32)
    return not (halves or tf32 or torch.is_autocast_enabled(device_type))


def ratio_tolerance(
    network: nn.Module, device_type: str, same_shapes: bool, clip_range: float
) -> tuple[float, str]:
    """The largest |ratio - 1| that rounding explains before the first update.

    In float32 it is 1e-6 at equal batch shapes: the same kernels run twice, so the ratio is 1 to
    the last bit or two. Batches of another shape are summed in another order: up to 2.2e-6 was
    measured (AudioLDM 2 at toy size; more elements average more out), and 1e-5 is allowed. In half
    precision and with TF32 it is half of ``clip_range``: beyond that, rounding would be clipped.

    Args:
        network: whose precision counts.
        device_type: that it runs on.
        same_shapes: old and new log-probabilities come from batches of one shape.
        clip_range: as the update uses it.

    Returns:
        The tolerance, and what to look for beyond it.
    """
    remedy = "update.recompute_old_log_prob=true is the remedy"
    if not is_full_precision(network, device_type, convolutions=not same_shapes):
        return clip_range / 2, f"rounding of half precision (or TF32) is the likely cause; {remedy}"
    means = (
        "this means that training scores another policy than the one that sampled: look for "
        "conditioning of other prompts, swapped guidance halves, dropout or train mode"
    )
    if same_shapes:
        why = f"in float32 at equal shapes {means}. Only where other kernels are the cause {remedy}"
        return SAME_SHAPES, why
    why = f"in float32 {means}. Only where batch shapes or other kernels are the cause {remedy} "
    return OTHER_SHAPES, why + "(or sampler.batch_size equal to update.batch_size)"


def worst_ratio(
    record: UpdateRecord, micro: MicroBatch, prompts: Sequence[Prompt]
) -> tuple[float, str]:
    """The largest |ratio - 1|, and the step and prompt where it is; NaN counts as infinite."""
    off = torch.where(record.ratio_KN.isnan(), torch.inf, (record.ratio_KN - 1).abs())
    k, n = divmod(int(off.argmax()), off.shape[1])
    prompt = prompts[micro.rows[n]]
    return (
        off[k, n].item(),
        f"step {int(micro.steps_KN[k, n])} of prompt {prompt.id!r} ({prompt.text!r})",
    )


def check_ratio(deviation: float, where: str, tolerance: float, why: str) -> None:
    """Raises ``UserError`` where the ratio is further from 1 than ``tolerance``, also on NaN.

    Before the first update the trained policy is the one that sampled, so the ratio is 1.
    ``why``: what to look for, from ``ratio_tolerance``.
    """
    if deviation <= tolerance:
        return
    raise UserError(
        f"before the first update the importance ratio must be 1 within {tolerance:.3g}, but it is"
        f" off by {deviation:.3g} at {where}; {why}"
    )
