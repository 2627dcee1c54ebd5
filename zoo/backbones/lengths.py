"""The length of samples: one per batch, and one that the backbone can make on this machine.

Both are checked before anything is sampled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

import torch

from zoo.errors import UserError
from zoo.types import Backbone, Prompt

_SHORT_S = 0.5  # clips below this are tried: windows of a codec may be longer
_LONGEST_TRIED_S = 8.0


def one_latent_shape(backbone: Backbone, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """The shape, without the batch axis, of the latents of ``prompts``.

    Raises ``UserError`` when their lengths differ, also where a backbone always denoises its full
    length: waves of one batch are cut to one length.
    """
    lengths = sorted({prompt.seconds for prompt in prompts})
    if len(lengths) > 1:
        raise UserError(
            f"the prompts of a batch must have one length, got {lengths} seconds; give all the same"
            " `seconds`"
        )
    return tuple(backbone.latent_shape(lengths[0]))


def check_lengths(
    backbone: Backbone, prompts: Iterable[Prompt], rows: int, states: int, name: str
) -> None:
    """Checks every length among ``prompts`` with ``check_seconds``; arguments as there."""
    for seconds in sorted({prompt.seconds for prompt in prompts}):
        check_seconds(backbone, seconds, rows, states, name)


@torch.no_grad()
def check_seconds(backbone: Backbone, seconds: float, rows: int, states: int, name: str) -> None:
    """Refuses a length that ``backbone`` cannot make, or that cannot fit into the main memory.

    Args:
        backbone: its ``latent_shape`` is read; below half a second it decodes one silent clip.
        seconds: of every sample.
        rows: samples whose waves or latents are held at once.
        states: latents that are kept of each sample, 1 or more.
        name: how the setting is called, for the message.

    Raises:
        UserError: in one line, with ``name`` and the length that works.
    """
    try:
        shape = tuple(backbone.latent_shape(seconds))
    except UserError as error:
        raise UserError(f"invalid {name} {seconds:g}: {error}") from error
    except OverflowError:
        shape = (math.inf,)
    needed = _bytes(backbone, shape, seconds, rows, states)
    memory = _memory_bytes()
    if memory is not None and needed > memory:
        at_1_s = _bytes(backbone, tuple(backbone.latent_shape(1.0)), 1.0, rows, states)
        raise UserError(
            f"invalid {name} {seconds:g}: {rows} samples of this length need at least "
            f"{needed / 2**30:.3g} GB, this machine has {memory / 2**30:.3g} GB; "
            f"use at most {_floored(memory / at_1_s):g} s"
        )
    if seconds >= _SHORT_S or _decodes(backbone, seconds):
        return
    longer = 2 * seconds
    while longer <= _LONGEST_TRIED_S and not _decodes(backbone, longer):
        longer *= 2
    if longer <= _LONGEST_TRIED_S:  # else the length is not what is wrong
        raise UserError(
            f"invalid {name} {seconds:g}: too short for {type(backbone).__name__}; "
            f"use at least {longer:g} s"
        )


def _bytes(
    backbone: Backbone, shape: tuple[float, ...], seconds: float, rows: int, states: int
) -> float:
    """Of float32 waves and latents."""
    wave = backbone.channels * backbone.sample_rate_hz * seconds
    return 4.0 * rows * (wave + states * math.prod(map(float, shape)))


def _memory_bytes() -> int | None:
    """The main memory of this machine, None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _floored(value: float) -> float:
    """With its first two digits only."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / unit) * unit


def _decodes(backbone: Backbone, seconds: float) -> bool:
    parameter = next(backbone.denoiser.parameters())
    shape = backbone.latent_shape(seconds)
    try:
        with torch.random.fork_rng():
            backbone.decode(torch.zeros(1, *shape, device=parameter.device))
    except RuntimeError:
        return False
    return True
