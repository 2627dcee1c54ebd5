"""Parts of a backbone that training does not always need: text encoders once prompts are encoded,
the decoder during updates.

Which parts there are a backbone says itself: ``parts``, "text" and "decoder" -> names of its
modules (``zoo.types.Backbone``). Parts work on the device they lie on, so what was moved to main
memory still works there, only slowly.
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
    """The modules of "text" or "decoder" that are there.

    Raises ``UserError`` for a backbone without such a part.
    """
    names = getattr(backbone, "parts", {}).get(part, ())
    if not names:
        raise UserError(
            f"{type(backbone).__name__} has no part {part!r} that could be moved or dropped (it is"
            " small, or does without); leave text_encoders and decoder at keep"
        )
    return [module for module in (getattr(backbone, name) for name in names) if module is not None]


def move(backbone: Backbone, part: str, device: torch.device | str) -> None:
    """Moves a part, in place. Raises ``UserError`` as ``part_modules`` does."""
    for module in part_modules(backbone, part):
        module.to(device)


@contextmanager
def present(backbone: Backbone, part: str, device: torch.device | str) -> Iterator[None]:
    """Inside, the part lies on ``device``; afterwards in main memory."""
    move(backbone, part, device)
    try:
        yield
    finally:
        move(backbone, part, "cpu")


def put_text_encoders_away(backbone: Backbone, prompts: Sequence[Prompt], *, drop: bool) -> None:
    """Encodes ``prompts`` and their negatives (a backbone keeps what it encoded), then moves the
    text encoders to main memory, or with ``drop`` frees them: any other text is then refused by
    name. Raises ``UserError`` as ``part_modules`` does, and for more prompts than the backbone
    keeps.
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
