"""What a run of DDPO states about itself, from the arguments of its module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from zoo.hub.run_facts import AdapterFacts, RunFacts
from zoo.hub.sampling_settings import PartialSampling

_ON_CARD = (
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "learning_rate",
    "sample_steps",
    "guidance_scale",
    "eta",
    "rule",
    "train_steps",
    "clip_range",
    "advantage",
    "kl_weight",
    "ema_decay",
    "weight_decay",
)


def ddpo_facts(kind: type, arguments: Mapping[str, Any]) -> RunFacts:
    """The facts of a run of ``kind`` with these ``arguments`` of its constructor."""
    parameters = inspect.signature(kind).parameters
    all_of_them = {name: p.default for name, p in parameters.items()} | dict(arguments)
    names = ("lora_rank", "lora_alpha", "lora_targets", "lora_init")
    training = _sampling(all_of_them, "")
    return RunFacts(
        algorithm=kind.__name__,
        learned=("denoiser",),
        adapter=AdapterFacts(*(all_of_them[name] for name in names))
        if all_of_them["lora_rank"]
        else None,
        checkpoint="learned",
        sampling=PartialSampling.read(training, "module"),
        evaluation=PartialSampling.read(training | _sampling(all_of_them, "eval_"), "module"),
        settings={key: arguments[key] for key in _ON_CARD if arguments.get(key) is not None},
        started_from=all_of_them["start_adapter"],
    )


def _sampling(arguments: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found = {
        "steps": arguments[f"{prefix}sample_steps"],
        "guidance_scale": arguments[f"{prefix}guidance_scale"],
        "eta": arguments[f"{prefix}eta"],
        "rule": arguments[f"{prefix}rule"],
    }
    return {name: value for name, value in found.items() if value is not None}
