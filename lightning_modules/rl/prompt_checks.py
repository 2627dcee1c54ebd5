"""Which prompts a run can train on, decided before anything is sampled: too long ones, ones that a
reward could not judge, and rounds that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.batches import PromptBatch, PromptSource
from lightning_modules.rl.ppo_update import check_sizes
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.types import Backbone, Prompt, Reward


def told(prompts: Sequence[Prompt], samplers: Sequence[Sampler]) -> list[Prompt]:
    """The prompts as a backbone meets them: without their negatives where no sampler is guided."""
    guided = any(sampler.is_guided for sampler in samplers)
    return list(prompts) if guided else [prompt.without_negative() for prompt in prompts]


def too_long(
    backbone: Backbone, rewards: Sequence[Reward | None], prompts: Sequence[Prompt]
) -> dict[str, str]:
    """Prompt id -> what is too long, by the optional ``too_long`` of the backbone and of rewards.

    The backbone is asked for the negatives, too: give prompts as ``told`` gives them.
    """
    found: dict[str, str] = {}
    negatives = [prompt.as_negative() for prompt in prompts]
    asked = [(backbone, prompts), (backbone, negatives), *((reward, prompts) for reward in rewards)]
    for model, side in asked:
        if hasattr(model, "too_long"):
            found = dict(model.too_long(side)) | found
    return {prompt.id: found[prompt.id] for prompt in prompts if prompt.id in found}


def settle_long_prompts(
    source: PromptSource,
    backbone: Backbone,
    rewards: Sequence[Reward | None],
    samplers: Sequence[Sampler],
    *,
    drop: bool,
) -> int:
    """Refuses prompts of ``source`` that an encoder cannot take, or with ``drop`` leaves them out
    with a warning; their number.

    Negatives count where one of ``samplers`` is guided.
    Raises ``UserError`` naming them and the limit, and when none would be left to train on.
    """
    prompts = source.all_prompts()
    found = too_long(backbone, rewards, told(prompts, samplers))
    if not found:
        return 0
    named = "; ".join(f"{name!r}: {why}" for name, why in list(found.items())[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    said = f"{len(found)} of {len(prompts)} prompts are too long: {named}{more}"
    if not drop:
        raise UserError(f"{said}. Shorten them, or set long_prompts=drop to leave them out")
    source.drop_prompts(found)
    rank_zero_warn(f"{said}. They are left out (long_prompts=drop)")
    return len(found)


def check_judged(rewards: Sequence[Reward | None], prompts: Sequence[Prompt]) -> None:
    """Asks every reward that has ``check_prompts``, which raises ``UserError`` for a prompt that
    it could not judge.
    """
    for reward in rewards:
        if hasattr(reward, "check_prompts"):
            reward.check_prompts(prompts)


def check_round(batch: PromptBatch, settings: Mapping[str, Any], next_round: int | None) -> None:
    """Raises ``UserError`` when this round cannot be trained as configured: called before anything
    is sampled.
    """
    count = len(batch)
    if count % settings["sample_batch_size"]:
        raise UserError(
            f"a round of {count} samples a process is no multiple of"
            f" sample_batch_size={settings['sample_batch_size']}"
        )
    check_sizes(count, settings["train_batch_size"], settings["updates_per_round"])
    if len({(p.id, i) for p, i in zip(batch.prompts, batch.sample_index, strict=True)}) < count:
        raise UserError(
            "a round holds the same (prompt id, sample index) twice; number the repeats of a prompt"
        )
    if next_round is not None and batch.round_index != next_round:
        raise UserError(
            f"the data module gave round {batch.round_index}, but round {next_round} is next"
        )
