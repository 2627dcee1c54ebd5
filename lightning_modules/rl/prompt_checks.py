"""Refuses prompts and rounds before anything is sampled.

Prompts that are too long or that a reward cannot score, and rounds that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.batches import PromptBatch, PromptSource
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.types import Backbone, Prompt, Reward


def prompts_to_encode(prompts: Sequence[Prompt], samplers: Sequence[Sampler]) -> list[Prompt]:
    """The prompts as a backbone gets them: without their negatives where no sampler is guided."""
    guided = any(sampler.is_guided for sampler in samplers)
    return list(prompts) if guided else [prompt.without_negative() for prompt in prompts]


def too_long(
    backbone: Backbone, rewards: Sequence[Reward | None], prompts: Sequence[Prompt]
) -> dict[str, str]:
    """Prompt id -> what is too long, by the optional ``too_long`` of the backbone and of rewards.

    The backbone is asked about negatives, too: give prompts as ``prompts_to_encode`` gives them.
    """
    found: dict[str, str] = {}
    negatives = [prompt.as_negative() for prompt in prompts]
    asked = [(backbone, prompts), (backbone, negatives), *((reward, prompts) for reward in rewards)]
    for model, side in asked:
        if hasattr(model, "too_long"):
            found = dict(model.too_long(side)) | found
    return {prompt.id: found[prompt.id] for prompt in prompts if prompt.id in found}


def refuse_or_drop(source: PromptSource, found: Mapping[str, str], *, drop: bool) -> int:
    """Refuses a data module whose prompts are too long, or drops them with a warning.

    Args:
        source: prompts of training and evaluation.
        found: prompt id -> what is too long, of ``too_long``.
        drop: leaves these prompts out instead.

    Returns:
        How many prompts were dropped.

    Raises:
        UserError: naming the prompts and the limit, and when none is left to train on.
    """
    if not found:
        return 0
    named = "; ".join(f"{name!r}: {why}" for name, why in list(found.items())[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    summary = f"{len(found)} of {len(source.all_prompts())} prompts are too long: {named}{more}"
    if not drop:
        raise UserError(f"{summary}. Shorten them, or set scoring.long_prompts=drop")
    source.drop_prompts(found)
    rank_zero_warn(f"{summary}. They are left out (scoring.long_prompts=drop)")
    return len(found)


def check_judged(rewards: Sequence[Reward | None], prompts: Sequence[Prompt]) -> None:
    """Calls ``check_prompts`` of every reward, which raises ``UserError`` for invalid prompts."""
    for reward in rewards:
        if hasattr(reward, "check_prompts"):
            reward.check_prompts(prompts)


def check_round(batch: PromptBatch, batch_size: int, next_round: int | None) -> None:
    """Raises ``UserError`` when a round cannot be sampled.

    Args:
        batch: the round of this process.
        batch_size: samples that are rolled out at once.
        next_round: index of the round that the data module should have given; None: any.
    """
    count = len(batch)
    if count % batch_size:
        raise UserError(
            f"a round of {count} samples per process is not a multiple of"
            f" sampler.batch_size={batch_size}"
        )
    if len({(p.id, i) for p, i in zip(batch.prompts, batch.sample_index, strict=True)}) < count:
        raise UserError(
            "a round holds the same (prompt id, sample index) twice; number the repeats of a prompt"
        )
    if next_round is not None and batch.round_index != next_round:
        raise UserError(
            f"the data module gave round {batch.round_index}, but round {next_round} is next"
        )
