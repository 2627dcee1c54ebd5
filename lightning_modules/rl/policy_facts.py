"""Facts that an on-policy run states about itself, from the arguments of its module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_modules.training_settings import card_settings
from zoo.hub.run_facts import AdapterFacts, RunFacts
from zoo.hub.sampling_settings import PartialSampling
from zoo.signatures import plain_defaults

_ON_CARD = (
    "adapter.rank",
    "adapter.alpha",
    "adapter.targets",
    "optimizer.learning_rate",
    "optimizer.ema_decay",
    "optimizer.weight_decay",
    "sampler.steps",
    "sampler.guidance_scale",
    "sampler.eta",
    "sampler.rule",
    "update.window",
    "update.clip_range",
    "update.kl_coef",
    "advantages.kind",
)


def policy_facts(kind: type, arguments: Mapping[str, Any]) -> RunFacts:
    """The facts of a run of ``kind`` with these ``arguments`` of its constructor (plain values)."""
    defaults = plain_defaults(kind)
    sampler, evaluation, adapter = (
        {**defaults[node], **arguments.get(node, {})}
        for node in ("sampler", "evaluation", "adapter")
    )
    names = ("rank", "alpha", "targets", "init")
    training = _sampling(sampler)
    return RunFacts(
        algorithm=kind.__name__,
        learned=("denoiser",),
        adapter=AdapterFacts(*(adapter[name] for name in names)) if adapter["rank"] else None,
        checkpoint="learned",
        sampling=PartialSampling.read(training, "module.sampler"),
        evaluation=PartialSampling.read(training | _sampling(evaluation), "module.evaluation"),
        settings=card_settings(arguments, *_ON_CARD),
        started_from=adapter["start"],
    )


def _sampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    names = ("steps", "guidance_scale", "eta", "rule")
    return {name: settings[name] for name in names if settings[name] is not None}
