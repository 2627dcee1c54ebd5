"""Several rewards as one: the weighted mean of per-prompt z-scores less their disagreement.

Or the worst of them.

A single reward that is optimised is soon over-optimised; an ensemble of scorers that were
pretrained differently mitigates that (Coste et al., arXiv 2310.02743: mean, worst case and
uncertainty-weighted; Eisenstein et al., arXiv 2312.09244). Members come in different units and
prompts differ in difficulty, so every member is brought to deviations from the mean of its own
prompt first.

That needs all samples of a prompt, while a reward is called for one micro-batch (in which a prompt
hardly comes twice) on one process. So the work is divided:

- a call gives every member's raw score as a part, and a score in fixed units that does not depend
  on what else is in the batch;
- ``combine``, a pure function, gets the whole round gathered over processes, and gives what
  training learns from.

There is no state between rounds: nothing to be resumed, and the result does not depend on batch
sizes or processes.

Shapes: ``M`` members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.errors import UserError, did_you_mean
from zoo.rewards.members import GROUPS, Member, group_nodes, members_of, networks
from zoo.rewards.waves import StaysInEvalMode, check_waves
from zoo.statistics.z_scores import z_scores
from zoo.types import Prompt, RewardOutput

AGGREGATIONS = ("mean", "worst")
DEVIATIONS = ("prompt", "round")
_EPSILON = 1e-6  # added to deviations; scores that are all equal are 0 in any case


def prompt_z_scores(
    score_B: Tensor, prompt_ids: Sequence[str], deviation: str = "prompt", min_count: int = 4
) -> Tensor:
    """(score - mean) / deviation, float64 (B,), over the samples of the same prompt.

    The deviation is that of the population.

    Where all scores are equal they are 0. A score that is not finite is NaN, and counts for nothing
    among the others.

    Args:
        score_B: scores (B,).
        prompt_ids: the prompt of each.
        deviation: "prompt", or "round": that of all samples, so that prompts on which all samples
            are about equal stay quiet.
        min_count: a prompt with fewer samples has the mean and deviation of the whole round, as in
            DDPO's tracker.
    """
    score_B = score_B.detach().double()
    z_B = torch.full_like(score_B, torch.nan)
    rows = torch.isfinite(score_B).nonzero().flatten()
    if len(rows) == 0:
        return z_B
    z = z_scores(
        score_B[rows].cpu().numpy(),
        [prompt_ids[row] for row in rows.tolist()],
        deviation="all" if deviation == "round" else "group",
        min_count=min_count,
        epsilon=_EPSILON,
    )
    z_B[rows] = torch.from_numpy(z).to(z_B)
    return z_B


def aggregate(
    z_MB: Tensor, weight_M: Tensor, spread_weight: float, aggregation: str = "mean"
) -> tuple[Tensor, Tensor]:
    """(score (B,), spread (B,)) of members in one unit. Weights count relative to their sum.

    ``mean``: weighted mean less ``spread_weight`` times the spread, which is the members' weighted
    deviation from that mean.
    ``worst``: the lowest member, regardless of weights. With two members of equal weight
    ``spread_weight`` 1 is the worst case.
    """
    share_M1 = (weight_M / weight_M.sum()).to(z_MB).unsqueeze(1)
    mean_B = (share_M1 * z_MB).sum(dim=0)
    variance_B = (share_M1 * (z_MB - mean_B).square()).sum(dim=0)
    spread_B = torch.where(variance_B > 0, variance_B, 1.0).sqrt() * (
        variance_B > 0
    )  # with a finite gradient where it is 0
    return (
        z_MB.amin(dim=0) if aggregation == "worst" else mean_B - spread_weight * spread_B
    ), spread_B


class EnsembleReward(StaysInEvalMode):
    """Combines several rewards: ``members`` that may disagree, and ``penalties`` that are added.

    ``combine`` gives the score of a whole round. A single call cannot know the prompt's other
    samples: where all members have ``mean`` and ``std`` (of their scores over generations of the
    base model), its score is the same expression in those units; otherwise it is the weighted mean
    of raw scores and of penalties, with neither spread nor worst case, because numbers of different
    units have none. Curves show either. Parts: ``<member>`` (raw), ``<member>/<its part>``, and
    where members are in one unit ``z/<member>`` and ``spread``.

    Args:
        members: name -> reward: an object, ``{architecture: key of REWARDS, arguments: {...}}``, or
            ``{reward: one of these, weight: 1, mean:, std:}``; in a configuration also a zoo name
            or folder, which ``zoo.load`` opens. Weights are above 0 and count relative to their
            sum.
        penalties: given alike; ``weight`` times their scores is added to the members' result, in
            deviations. Guards (``zoo.rewards.guards``) belong here: a z-score would forget how far
            out of bounds a sample is, and punish the loudest of good ones.
        aggregation: "mean": less ``spread_weight`` times the spread; "worst": the lowest member.
        spread_weight: default 0.5; none for "worst". Above sqrt(w / (1 - w)), w the smallest share
            of a member, the score falls when that member alone rises far enough (1 for two equal
            members, 0.58 for four).
        deviation, min_count: see ``prompt_z_scores``.

    Raises: ``UserError`` for unknown names and keys, weights that are not positive, and settings
        that contradict each other.
    """

    def __init__(
        self,
        members: Mapping[str, Any],
        penalties: Mapping[str, Any] | None = None,
        aggregation: Literal["mean", "worst"] = "mean",
        spread_weight: float | None = None,
        deviation: Literal["prompt", "round"] = "prompt",
        min_count: int = 4,
    ) -> None:
        super().__init__()
        for name, given, known in (
            ("aggregation", aggregation, AGGREGATIONS),
            ("deviation", deviation, DEVIATIONS),
        ):
            if given not in known:
                raise UserError(f"{name} {given!r} is unknown; {did_you_mean(str(given), known)}")
        if aggregation == "worst" and spread_weight is not None:
            raise UserError(
                "aggregation 'worst' takes the lowest member and no spread_weight, got"
                f" {spread_weight}"
            )
        if not 0 <= (spread_weight or 0.0) < math.inf or min_count < 2:
            raise UserError(
                f"spread_weight must be at least 0 and min_count 2, got {spread_weight} and"
                f" {min_count}"
            )
        self.members = members_of(members, "members")
        self.penalties = members_of(penalties or {}, "penalties")
        if not self.members:
            raise UserError(
                "an ensemble needs at least one member; penalties alone cannot rank clips"
            )
        twice = {member.name for member in self.members} & {
            penalty.name for penalty in self.penalties
        }
        if twice:
            raise UserError(
                f"{', '.join(sorted(twice))} names a member and a penalty; give one of them another"
                " name"
            )
        self.aggregation = aggregation
        self.deviation = deviation
        self.min_count = min_count
        self.spread_weight = 0.5 if spread_weight is None else spread_weight
        self._everyone = (*self.members, *self.penalties)
        self.networks = networks(tuple(one.reward for one in self._everyone))
        self.differentiable = all(one.reward.differentiable for one in self._everyone)
        parts = [
            {one.name: one.described() for one in group} for group in (self.members, self.penalties)
        ]
        settings = {
            "aggregation": aggregation,
            "spread_weight": spread_weight,
            "deviation": deviation,
            "min_count": min_count,
        }
        plain = all(value is not None for part in parts for value in part.values())
        self.arguments = {"members": parts[0], "penalties": parts[1], **settings} if plain else None
        self.eval()

    @staticmethod
    def with_nodes(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in a configuration, with nodes in place of names and architectures."""
        return {
            key: group_nodes(value) if key in GROUPS else value for key, value in arguments.items()
        }

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what is too long for which member's encoder."""
        found: dict[str, str] = {}
        for one in self._everyone:
            if hasattr(one.reward, "too_long"):
                found = {
                    name: f"{one.name}: {what}"
                    for name, what in one.reward.too_long(prompts).items()
                } | found
        return found

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ``UserError`` beginning with the member that cannot score one of them."""
        for one in self._everyone:
            try:
                getattr(one.reward, "check_prompts", lambda prompts: None)(prompts)
            except UserError as error:
                raise UserError(f"{one.name}: {error}") from error

    def forward(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        """Score and parts (B,) of each sample alone; ``vectors`` of members as ``<member>/<name>``.

        Raises ``UserError`` beginning with the member that refused, or that did not return one
        number per sample.
        """
        check_waves(wave_BCN, sample_rate_hz, "the ensemble", len(prompts))
        scores, parts, vectors = {}, {}, {}
        for one in self._everyone:
            output = _asked(one, wave_BCN, sample_rate_hz, prompts)
            scores[one.name] = parts[one.name] = output.score_B.float().to(wave_BCN.device)
            parts |= {f"{one.name}/{name}": part for name, part in output.parts.items()}
            vectors |= {f"{one.name}/{name}": vector for name, vector in output.vectors.items()}
        if all(member.std is not None for member in self.members):
            z = {
                member.name: (scores[member.name] - member.mean) / member.std
                for member in self.members
            }
            score_B, spread_B = self._aggregated(z)
            parts |= {f"z/{name}": value for name, value in z.items()} | {"spread": spread_B}
        else:
            weight_M = self._weights()
            score_B = sum(
                share * scores[one.name]
                for share, one in zip(weight_M / weight_M.sum(), self.members)
            )
        score_B = self._penalised(score_B, scores).float()
        score_B = score_B if self.differentiable else score_B.detach()
        return RewardOutput(score_B, {name: part.detach() for name, part in parts.items()}, vectors)

    @torch.no_grad()
    def combine(self, output: RewardOutput, prompts: Sequence[Prompt]) -> RewardOutput:
        """Of a whole round: per-prompt z-scores of the members, aggregated, and the penalties.

        See ``zoo.types.Reward``.

        A member with a ``combine`` of its own is combined first (its part ``<member>/combined``).
        Parts of others stay.
        """
        ids = [prompt.id for prompt in prompts]
        parts = dict(output.parts)
        scores = {}
        for one in self._everyone:
            scores[one.name] = output.parts[one.name].double()
            if hasattr(one.reward, "combine"):
                own = one.reward.combine(
                    RewardOutput(
                        scores[one.name], _below(one, output.parts), _below(one, output.vectors)
                    ),
                    prompts,
                )
                parts |= {f"{one.name}/{name}": part for name, part in own.parts.items()}
                scores[one.name] = parts[f"{one.name}/combined"] = own.score_B.double()
        z = {
            member.name: prompt_z_scores(scores[member.name], ids, self.deviation, self.min_count)
            for member in self.members
        }
        score_B, spread_B = self._aggregated(z)
        parts |= {f"z/{name}": value for name, value in z.items()} | {"spread": spread_B}
        return RewardOutput(self._penalised(score_B, scores), parts)

    def _weights(self) -> Tensor:
        return torch.tensor([member.weight for member in self.members], dtype=torch.float64)

    def _aggregated(self, z: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        z_MB = torch.stack([z[member.name] for member in self.members])
        return aggregate(
            z_MB, self._weights().to(z_MB.device), self.spread_weight, self.aggregation
        )

    def _penalised(self, score_B: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        return score_B + sum(penalty.weight * scores[penalty.name] for penalty in self.penalties)


def _asked(
    one: Member, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
) -> RewardOutput:
    try:
        output = one.reward(wave_BCN, sample_rate_hz, prompts)
    except UserError as error:
        raise UserError(f"member {one.name!r}: {error}") from error
    given = getattr(output, "score_B", None)
    if not isinstance(given, Tensor) or tuple(given.shape) != (len(prompts),):
        got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(output).__name__
        raise UserError(
            f"member {one.name!r} must return one number per sample, ({len(prompts)},), got {got}"
        )
    return output


def _below(one: Member, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What belongs to a member, by the names that it gave."""
    return {
        name.removeprefix(f"{one.name}/"): value
        for name, value in named.items()
        if name.startswith(f"{one.name}/")
    }
