"""What a run states about itself: ``facts.json``.

A run writes ``facts.json`` into its folder when it starts. Export, evaluation and generation read
it there, so none of them knows the settings of a training method. The facts come from the classes
that the configuration names: a module has ``export_facts(arguments) -> RunFacts``, a data module
``EXPORTED``, the names of its settings that describe the task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zoo.errors import UserError, parsing
from zoo.files import finite, parsed_json, written_beside
from zoo.hub.sampling_settings import PartialSampling
from zoo.secrets import masked

FACTS_FILE = "facts.json"
_FORMAT = 1
_OF_PROMPTS = ("seconds", "negative")  # fields of zoo.types.Prompt


@dataclass(frozen=True)
class AdapterFacts:
    """The low-rank adapter that a run trains, as ``zoo.backbones.lora.add_lora`` takes it."""

    rank: int
    alpha: float | None
    targets: str | list[str]
    init: str


@dataclass(frozen=True)
class RunFacts:
    """What a run states about itself.

    Args:
        algorithm: the training method.
        learned: parts of the backbone or reward whose weights are trained; None: all.
        adapter: of the backbone's denoiser; None when weights are trained directly.
        checkpoint: whether checkpoints hold the whole model, or only what is learned.
        sampling: how training samples.
        evaluation: how the run's own evaluations sample.
        settings: of the method, for the model's card.
        started_from: the adapter that training began with.
        data: the data module's class.
        prompts: settings of the data that describe the task, for the model's card.
    """

    algorithm: str = ""
    learned: tuple[str, ...] | None = None
    adapter: AdapterFacts | None = None
    checkpoint: Literal["whole", "learned"] = "whole"
    sampling: PartialSampling = field(default_factory=PartialSampling)
    evaluation: PartialSampling = field(default_factory=PartialSampling)
    settings: Mapping[str, Any] = field(default_factory=dict)
    started_from: str | None = None
    data: str | None = None
    prompts: Mapping[str, Any] = field(default_factory=dict)

    def with_data(self, data: str | None, prompts: Mapping[str, Any]) -> RunFacts:
        """With those of the data, whose prompts set the length and the negative of samples."""
        own = PartialSampling.read({k: prompts.get(k) for k in _OF_PROMPTS}, "data").stated()
        return replace(
            self,
            data=data,
            prompts=dict(prompts),
            sampling=replace(self.sampling, **own),
            evaluation=replace(self.evaluation, **own),
        )


def stated_facts(settings: Mapping[str, Any]) -> RunFacts:
    """The facts of a configuration, from the classes that its module and data name.

    A module without ``export_facts`` states its class only. Raises ``UserError`` for a class that
    does not exist.
    """
    from zoo.instantiate import locate

    module = settings.get("module") or {}
    data = settings.get("data") or {}
    facts = RunFacts()
    if "_target_" in module:
        kind = locate(module["_target_"], "module._target_")
        state = getattr(kind, "export_facts", None)
        facts = RunFacts(kind.__name__) if state is None else state(module)
    name = locate(data["_target_"], "data._target_").__name__ if "_target_" in data else None
    return facts.with_data(name, _exported(data))


def _exported(node: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a data node that its class exports; of a node among them, that node's own."""
    from zoo.instantiate import locate

    kind = locate(node["_target_"]) if "_target_" in node else None
    found: dict[str, Any] = {}
    for name in getattr(kind, "EXPORTED", _OF_PROMPTS):
        value = node.get(name)
        if isinstance(value, Mapping) and "_target_" in value:
            found |= _exported(value)
        elif value is not None:
            found[name] = value
    return found


def write_facts(run: Path, facts: RunFacts) -> None:
    """Writes ``facts.json`` of a run folder, without secrets. Raises ``OSError``."""
    record = finite({"format": _FORMAT, **masked(asdict(facts))})
    with written_beside(run / FACTS_FILE) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_facts(
    run: str | Path, settings: Mapping[str, Any], saved: Mapping[str, Any] | None = None
) -> RunFacts:
    """The facts of a run folder; empty for a folder that is not a run.

    Args:
        run: its folder.
        settings: its configuration. A run of 0.1.0-dev has no ``facts.json``; its facts are read
            from here.
        saved: the module's settings in a checkpoint of such a run, defaults included.

    Raises:
        UserError: for a ``facts.json`` that cannot be read.
    """
    from zoo.signatures import bind

    path = Path(run) / FACTS_FILE
    if not path.is_file():
        return _facts_of_old_run(settings, saved or {}) if settings else RunFacts()
    with parsing(path, "facts of a run"):
        record = parsed_json(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.pop("format", None) != _FORMAT:
            raise UserError(f"expected an object of format {_FORMAT}")
        for name in ("sampling", "evaluation"):
            record[name] = PartialSampling.read(record.get(name) or {}, name)
        if record.get("adapter") is not None:
            record["adapter"] = AdapterFacts(**bind(AdapterFacts, record["adapter"], "adapter"))
        return RunFacts(**bind(RunFacts, record, "facts"))


# Runs of 0.1.0-dev wrote no facts.json. They had flat settings, and their checkpoints held the
# settings of the module with all defaults. What follows is the only reader of these names.
_OLD_POLICY = "DDPO"  # the only method that sampled, and that trained adapters
_OLD_SAMPLING = {
    "steps": "sample_steps",
    "guidance_scale": "guidance_scale",
    "eta": "eta",
    "rule": "rule",
}
_OLD_POLICY_GUIDANCE = 1.0  # its default; the others were those of SamplingSettings
_OLD_PROMPTS = (
    "template",
    "words",
    "instruments",
    "held_out",
    "negative",
    "seconds",
    "classes",
    "relations",
    "prompts_per_round",
    "repeats",
    "val_prompts",
    "val_repeats",
    "sources",
    "licences",
)
_OLD_SETTINGS = (
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
    "total_steps",
    "weight_decay",
)


def _facts_of_old_run(settings: Mapping[str, Any], saved: Mapping[str, Any]) -> RunFacts:
    """The facts of a run by its configuration.

    Args:
        settings: its config.yaml.
        saved: the module's settings in its checkpoint, defaults included; empty without one.

    Raises:
        UserError: for a setting of the wrong type.
    """
    module = settings.get("module") or {}
    data = settings.get("data")
    data = dict(data) if isinstance(data, Mapping) else {}
    for name in ("source", "prompts"):  # nodes in which a data module had its settings
        if isinstance(data.get(name), Mapping):
            data = {**data[name], **data} if name == "source" else {**data, **data[name]}
    algorithm = str(module.get("_target_", "")).rpartition(".")[2]
    is_policy = "lora_rank" in saved or algorithm == _OLD_POLICY
    learned = ("denoiser",) if is_policy else saved.get("trainable")
    facts = RunFacts(
        algorithm=algorithm,
        learned=None if learned is None else tuple(learned),
        adapter=_old_adapter(saved),
        checkpoint="learned" if is_policy else "whole",
        sampling=_old_sampling(module, "", is_policy),
        evaluation=_old_sampling(module, "eval_", is_policy),
        settings={key: module[key] for key in _OLD_SETTINGS if module.get(key) is not None},
        started_from=module.get("start_adapter"),
    )
    name = str((settings.get("data") or {}).get("_target_", "")).rpartition(".")[2]
    return facts.with_data(
        name or None, {key: data[key] for key in _OLD_PROMPTS if data.get(key) is not None}
    )


def _old_adapter(saved: Mapping[str, Any]) -> AdapterFacts | None:
    if not saved.get("lora_rank"):
        return None
    return AdapterFacts(*(saved[f"lora_{name}"] for name in ("rank", "alpha", "targets", "init")))


def _old_sampling(module: Mapping[str, Any], prefix: str, is_policy: bool) -> PartialSampling:
    found = {"guidance_scale": _OLD_POLICY_GUIDANCE} if is_policy else {}
    for name, key in _OLD_SAMPLING.items():
        for value in (module.get(key), module.get(prefix + key)):
            if value is not None:
                found[name] = value
    return PartialSampling.read(found, "config.yaml")
