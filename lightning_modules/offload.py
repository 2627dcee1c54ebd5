"""Moves parts of a backbone that training does not always need out of the accelerator's memory.

These are the text encoders once prompts are encoded, and the decoder during updates. A backbone
lists its parts in ``parts``: "text" and "decoder" -> names of its modules
(``zoo.types.Backbone``). A part in main memory still works, but slowly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from rich.progress import track
from torch import nn

from zoo.errors import UserError
from zoo.types import Backbone, Prompt


def part_modules(backbone: Backbone, part: str) -> list[nn.Module]:
    """The existing modules of a part, "text" or "decoder".

    Raises ``UserError`` for a backbone without such a part.
    """
    names = getattr(backbone, "offloadable", {}).get(part, ())
    if not names:
        raise UserError(
            f"{type(backbone).__name__} has no part {part!r} to move or drop (it is small, or has"
            " none); leave text_encoders and decoder at keep"
        )
    return [module for module in (getattr(backbone, name) for name in names) if module is not None]


def move(backbone: Backbone, part: str, device: torch.device | str) -> None:
    """Moves a part to ``device``, in place. Raises ``UserError`` as ``part_modules``."""
    for module in part_modules(backbone, part):
        module.to(device)


@contextmanager
def present(backbone: Backbone, part: str, device: torch.device | str) -> Iterator[None]:
    """Keeps a part on ``device`` inside the block and in main memory afterwards."""
    move(backbone, part, device)
    try:
        yield
    finally:
        move(backbone, part, "cpu")


def put_text_encoders_away(backbone: Backbone, prompts: Sequence[Prompt], *, drop: bool) -> None:
    """Encodes ``prompts`` and their negatives, then moves the text encoders to main memory.

    With ``drop`` it frees the encoders: any other prompt then raises an error. The backbone keeps
    the encoded prompts. Raises ``UserError`` as ``part_modules``, and for more prompts than the
    backbone keeps.
    """
    modules = part_modules(backbone, "text")
    size = sum(
        tensor.numel() * tensor.element_size()
        for module in modules
        for tensor in module.parameters()
    )
    for prompt in track(
        prompts,
        "encoding prompts",
        transient=True,
        disable=rank_zero_only.rank != 0 or len(prompts) < 100,
    ):
        backbone.remember([prompt])
    if drop:
        backbone.drop_text_encoders(prompts)
    else:
        move(backbone, "text", "cpu")
    where = "dropped" if drop else "moved to main memory"
    rank_zero_info(
        f"{len(prompts)} prompts are encoded; the text encoders ({size / 2**20:.0f} MB) are {where}"
    )
