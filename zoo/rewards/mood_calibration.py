"""Statistics of a mood classifier on the base model's generations, for a calibrated reward.

Classifiers out of their domain have favourites: EMOPIA's calls nearly everything that a general
model generates happy. A score in deviations above the base's own mean has no favourite class.
Shapes: ``K`` classes, ``BCN`` clips with channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.rewards.mood import EmotionReward, class_log_odds


@dataclass(frozen=True)
class ClassStatistics:
    """Log-odds (nats) of each class over ``clips`` generations.

    They become class_mean and class_std of a reward.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clips: int


def class_statistics(
    reward: EmotionReward, generations: Iterable[tuple[Tensor, int]]
) -> ClassStatistics:
    """Statistics over ``(wave_BCN, sample_rate_hz)`` batches, with the reward's chunks and level.

    The generations should request all classes equally often, or none: the mean over them counts
    as usual. ``std`` is the sample deviation (n - 1). Raises ``UserError`` below two clips,
    and for a class whose log-odds are not finite or the same in every clip (it
    distinguishes nothing).
    """
    with torch.no_grad():
        rows = [
            class_log_odds(reward.chunk_logits(wave, rate_hz).mean(dim=1)).double().cpu()
            for wave, rate_hz in generations
        ]
    odds_BK = torch.cat(rows) if rows else torch.zeros(0, len(reward.class_names))
    if len(odds_BK) < 2:
        raise UserError(
            f"a deviation needs at least two generations (a hundred are better), got {len(odds_BK)}"
        )
    mean = odds_BK.mean(dim=0).tolist()
    std = odds_BK.std(dim=0).tolist()
    for name, class_mean, class_std in zip(reward.class_names, mean, std):
        if not 1e-6 < class_std < float("inf"):
            raise UserError(
                f"the log-odds of {name} have mean {class_mean:.3g} and deviation {class_std:.3g}"
                f" over {len(odds_BK)} clips; they must be finite and differ from clip to clip:"
                " listen to the generations, are they all silent?"
            )
    return ClassStatistics(reward.class_names, tuple(mean), tuple(std), len(odds_BK))


def rescored(
    reward: EmotionReward,
    value: str | None = None,
    chunk_rule: str | None = None,
    hop_s: float | None = None,
    class_mean: Sequence[float] | None = None,
    class_std: Sequence[float] | None = None,
) -> EmotionReward:
    """The same classifier (weights, device, dtype) with another score or chunk rule.

    ``rescored(reward, "calibrated", class_mean=s.mean, class_std=s.std)`` with ``s =
    class_statistics(reward, ...)``. Statistics depend on the chunks: measure them with the rule
    that is used.

    Args:
        reward: whose classifier it is.
        value, chunk_rule, hop_s, class_mean, class_std: as ``EmotionReward`` takes them; None keeps
            what ``reward`` has.

    Raises: ``UserError`` as ``EmotionReward``.
    """
    changes = {
        "value": value,
        "chunk_rule": chunk_rule,
        "hop_s": hop_s,
        "class_mean": None if class_mean is None else list(class_mean),
        "class_std": None if class_std is None else list(class_std),
    }
    with torch.random.fork_rng(devices=[]):
        again = EmotionReward(
            **{
                **reward.arguments,
                **{name: given for name, given in changes.items() if given is not None},
            }
        )
    like = next(reward.parameters())
    again = again.to(device=like.device, dtype=like.dtype)
    again.load_state_dict(reward.state_dict())
    return again.requires_grad_(like.requires_grad)
