"""Scorers by name, and the numbers that they give to audio files; what was scored once is kept
beside the results.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.audio_files import read_audio
from zoo.errors import UserError, parsing
from zoo.evaluation.results import ScoredClip, ScorerFacts
from zoo.files import parsed_json, sha256_of, written_beside
from zoo.generation import score
from zoo.generations import Sample
from zoo.hub.registry import ENTRIES
from zoo.instantiate import check, instantiate
from zoo.loading import load
from zoo.moved_names import with_current_names
from zoo.types import Prompt, Reward, RewardOutput, Waveform

_SAVED_EVERY_S = 5.0
Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Scorer:
    """A reward and what results say of it.

    ``label_key``: the label that a classifier reads its class from.
    """

    facts: ScorerFacts
    reward: Reward
    label_key: str | None = None


def fingerprint(reward: Reward) -> str:
    """12 hex digits over class, settings (its ``arguments``) and weights: equal fingerprints give
    equal numbers.
    """
    digest = hashlib.sha256(type(reward).__qualname__.encode())
    digest.update(
        json.dumps(getattr(reward, "arguments", None), sort_keys=True, default=str).encode()
    )
    for name, tensor in (
        sorted(reward.state_dict().items()) if isinstance(reward, nn.Module) else ()
    ):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def as_scorer(name: str, reward: Reward) -> Scorer:
    """``name``: of its checkpoint.

    A reward with ``class_names`` is a classifier: it must give parts ``p_<class>`` and have
    ``targets(prompts)``, the index of each prompt's class. A reward's own ``name`` heads its
    columns.
    """
    classes = tuple(getattr(reward, "class_names", ()))
    title = str(getattr(reward, "name", name))
    title = title if name in title else f"{title} ({name})"
    return Scorer(
        ScorerFacts(name, title, fingerprint(reward), classes),
        reward,
        getattr(reward, "label_key", None),
    )


def open_scorers(
    names: Sequence[str], config_reward: Mapping[str, Any] | None, device: str
) -> tuple[Scorer, ...]:
    """Scorers of zoo names, model folders, ``.yaml`` files (a ``_target_``, or a run's
    configuration: its ``module.reward``), or ``config``: that of the configuration. Raises
    ``UserError`` for an unknown name, one given twice, and what is no reward.
    """
    scorers: dict[str, Scorer] = {}
    for text in names:
        if text == "config" and config_reward is None:
            raise UserError(
                "--rewards config is the reward of a configuration with module.reward; give"
                " --config too"
            )
        if text == "config" or text.endswith((".yaml", ".yml")):
            node = dict(config_reward or {}) if text == "config" else _reward_node(text)
            check(node, text)
            reward = instantiate(node, text)
            name = _node_name(node) or str(getattr(reward, "checkpoint", "") or Path(text).stem)
        else:
            reward, name = load(text), text
        if not callable(reward) or not hasattr(reward, "differentiable"):
            raise UserError(
                f"--rewards: {text} is a {type(reward).__name__}, which scores nothing; name a"
                " reward"
            )
        if isinstance(reward, nn.Module):
            reward = reward.to(device).eval()
        if Path(name).is_dir() and name not in ENTRIES:
            name = str(getattr(reward, "checkpoint", "") or short_name(name))
        if name in scorers:
            raise UserError(
                f"--rewards names {name} twice; give each scorer once, or its folder another name"
            )
        scorers[name] = as_scorer(name, reward)
    return tuple(scorers.values())


def _reward_node(path: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    if not Path(path).is_file():
        raise FileNotFoundError(f"--rewards: there is no file {path}")
    with parsing(path, "YAML"):
        content = OmegaConf.load(path)
    if isinstance(content, Mapping) and "_target_" in content:
        return with_current_names(OmegaConf.to_container(content, resolve=True))
    from zoo.configuration import read_configuration

    node = read_configuration([path]).module.get("reward")
    if node is None:
        raise UserError(f"--rewards: {path} has neither a _target_ nor a module.reward")
    return dict(node)


def _node_name(node: Mapping[str, Any]) -> str:
    """What a reward's weights are called where it is built: name in the zoo, or file and folder of
    its checkpoint; else empty.
    """
    path = node.get("path")
    return str(
        node.get("name")
        or node.get("checkpoint")
        or ("/".join(Path(str(path)).parts[-2:]) if path else "")
    )


def short_name(path: str) -> str:
    """The last part of a path, with the one above where that says nothing."""
    parts = Path(path).resolve().parts
    return "/".join(parts[-2:] if parts[-1] in ("model", "reward") else parts[-1:])


def check_prompts(scorers: Sequence[Scorer], prompts: Sequence[Prompt]) -> None:
    """Raises ``UserError``, before anything is sampled or scored, when a classifier does not know
    what a prompt asks for.
    """
    for scorer in scorers:
        if scorer.facts.class_names:
            try:
                scorer.reward.targets(prompts)
            except UserError as error:
                raise UserError(
                    f"{scorer.facts.name}: {error} (a column {scorer.label_key!r} or 'label' of the"
                    " table says what each prompt asks for)"
                ) from error


class ScoreCache:
    """Numbers by what they are of: the file's bytes, the prompt and the scorer.

    Kept in one JSON file, never half-written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._last = path, time.monotonic()
        try:
            found = parsed_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if not isinstance(found, dict):
                raise UserError(f"it holds a {type(found).__name__}")
            self.entries: dict[str, dict[str, Any]] = found
        except ValueError as error:
            raise UserError(
                f"{path} cannot be read ({error}); remove it, and the clips are scored again"
            ) from error

    def put(self, key: str, entry: dict[str, Any]) -> None:
        self.entries[key] = entry
        if time.monotonic() - self._last > _SAVED_EVERY_S:
            self.save()

    def save(self) -> None:
        with written_beside(self.path) as part:
            part.write_text(json.dumps(self.entries, allow_nan=False), encoding="utf-8")
        self._last = time.monotonic()


def scored_clips(
    samples: Sequence[Sample],
    scorers: Sequence[Scorer],
    cache: ScoreCache,
    batch_size: int = 16,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[ScoredClip, ...]:
    """Every sample's numbers by every scorer; ``progress`` counts clips times scorers.

    What is in the cache is not scored again; the cache is saved also when a later clip fails.
    Raises ``UserError`` naming the file for a score that is not finite, for audio that cannot be
    read, and for a classifier without its parts.
    """
    hashes = [sha256_of(sample.path) for sample in samples]
    found: list[dict[str, dict[str, Any]]] = [{} for _ in samples]
    done, total = 0, len(samples) * len(scorers)
    try:
        for scorer in scorers:
            keys = [
                _key(digest, sample.prompt, scorer.facts)
                for digest, sample in zip(hashes, samples, strict=True)
            ]
            missing = [i for i, key in enumerate(keys) if key not in cache.entries]
            done += len(samples) - len(missing)
            for start in range(0, len(missing), batch_size):
                rows = missing[start : start + batch_size]
                for i, entry in zip(
                    rows, _scored(scorer, [samples[i] for i in rows], device), strict=True
                ):
                    cache.put(keys[i], entry)
                done += len(rows)
                if progress is not None:
                    progress(done, total)
            entries = [cache.entries[key] for key in keys]
            for own, entry, more in zip(
                found, entries, _of_the_set(scorer, entries, samples), strict=True
            ):
                own[scorer.facts.name] = {**entry, "values": {**entry["values"], **more}}
    finally:
        cache.save()
    return tuple(
        _clip(sample, number, own)
        for sample, number, own in zip(samples, sample_numbers(samples), found, strict=True)
    )


def _of_the_set(
    scorer: Scorer, entries: Sequence[Mapping[str, Any]], samples: Sequence[Sample]
) -> list[dict[str, float]]:
    """The parts that a reward gives by looking at all clips of a prompt (its ``combine``), such as
    diversity; its score stays the one that it gives a single clip. ``{}`` for other rewards, and
    where no prompt has two clips.
    """
    prompts = [sample.prompt for sample in samples]
    names = list(entries[0].get("vectors", ()))
    if not names or len({prompt.id for prompt in prompts}) == len(prompts):
        return [{} for _ in samples]
    parts = {
        name: torch.tensor([entry["values"][name] for entry in entries])
        for name in entries[0]["values"]
    }
    vectors = {name: torch.tensor([entry["vectors"][name] for entry in entries]) for name in names}
    output = scorer.reward.combine(RewardOutput(parts.pop("score"), parts, vectors), prompts)
    more = {name: part.tolist() for name, part in output.parts.items() if name not in parts}
    for name, column in more.items():
        bad = [
            sample.path
            for sample, value in zip(samples, column, strict=True)
            if not math.isfinite(value)
        ]
        if bad:
            raise UserError(
                f"{scorer.facts.name} gave no finite {name} for {len(bad)} of {len(samples)} clips,"
                f" the first {bad[0]}; leave them out of the table"
            )
    return [{name: column[i] for name, column in more.items()} for i in range(len(samples))]


def sample_numbers(samples: Sequence[Sample]) -> list[int]:
    """Each sample's seed where its index has one, else its number within its prompt."""
    seen: dict[str, int] = {}
    numbers = []
    for sample in samples:
        count = seen.get(sample.prompt.id, 0)
        seen[sample.prompt.id] = count + 1
        numbers.append(count if sample.seed is None else sample.seed)
    return numbers


def _key(digest: str, prompt: Prompt, facts: ScorerFacts) -> str:
    asked = json.dumps([prompt.id, prompt.text, dict(prompt.labels)], sort_keys=True, default=str)
    return hashlib.sha256(f"{digest} {facts.fingerprint} {asked}".encode()).hexdigest()[:32]


def _clip(sample: Sample, number: int, own: Mapping[str, Mapping[str, Any]]) -> ScoredClip:
    p = sample.prompt
    classes = {
        side: {name: entry[side] for name, entry in own.items() if side in entry}
        for side in ("wanted", "predicted")
    }
    values = {name: entry["values"] for name, entry in own.items()}
    return ScoredClip(str(sample.path), p.id, p.text, number, dict(p.labels), values, **classes)


def _scored(scorer: Scorer, samples: Sequence[Sample], device: str) -> list[dict[str, Any]]:
    facts, prompts = scorer.facts, [sample.prompt for sample in samples]
    waves = [read_audio(sample.path) for sample in samples]
    output = score(
        scorer.reward, [Waveform(w.samples_CN.to(device), w.sample_rate_hz) for w in waves], prompts
    )
    columns = {
        name: part.tolist() for name, part in {"score": output.score_B, **output.parts}.items()
    }
    entries: list[dict[str, Any]] = [
        {"values": {name: column[i] for name, column in columns.items()}}
        for i in range(len(samples))
    ]
    if hasattr(scorer.reward, "combine") and output.vectors:
        for i, entry in enumerate(entries):
            entry["vectors"] = {name: vector[i].tolist() for name, vector in output.vectors.items()}
    for entry, sample in zip(entries, samples, strict=True):
        for name, value in entry["values"].items():
            if not math.isfinite(value):
                raise UserError(
                    f"{facts.name} gave {name} = {value} for {sample.path}; listen to that clip,"
                    " and leave it out of the table if it is damaged"
                )
    if facts.class_names:
        absent = [f"p_{name}" for name in facts.class_names if f"p_{name}" not in columns]
        if absent:
            raise UserError(
                f"{facts.name} has classes but gave no part {absent[0]!r}; its parts are"
                f" {', '.join(columns)}"
            )
        for entry, wanted in zip(entries, scorer.reward.targets(prompts).tolist(), strict=True):
            likely = max(facts.class_names, key=lambda name: entry["values"][f"p_{name}"])
            entry |= {"wanted": facts.class_names[wanted], "predicted": likely}
    return entries
