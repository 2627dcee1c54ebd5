"""Scorers by name, and the numbers that they give to audio files, kept next to the results."""

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

from zoo.audio_files import decoded
from zoo.errors import UserError, parsing
from zoo.evaluation.results import ScoredClip, ScorerFacts
from zoo.files import parsed_json, written_beside
from zoo.generation import score
from zoo.generations import Sample
from zoo.hub.registry import ENTRIES
from zoo.instantiate import check, instantiate
from zoo.loading import load
from zoo.moved_names import with_current_names
from zoo.types import Backbone, Prompt, RewardOutput, Scorer, Waveform, is_scorer

_SAVED_EVERY_S = 5.0
Progress = Callable[[int, int], None]  # (done, total)
Entry = dict[str, Any]  # what one scorer says of one clip, as plain values


@dataclass(frozen=True)
class OpenScorer:
    """A scorer, and what results say about it.

    ``label_key``: the label that a classifier reads its class from.
    """

    facts: ScorerFacts
    opened: Scorer
    label_key: str | None = None


def fingerprint(scorer: Scorer | Backbone) -> str:
    """A hash of class, ``arguments`` and weights (12 hex digits); equal ones give equal numbers."""
    digest = hashlib.sha256(type(scorer).__qualname__.encode())
    settings = getattr(scorer, "arguments", None)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    weights = scorer.state_dict() if isinstance(scorer, nn.Module) else {}
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def as_scorer(name: str, scorer: Scorer) -> OpenScorer:
    """A scorer under the name of its checkpoint.

    A scorer with ``class_names`` is a classifier: it must give parts ``p_<class>`` and have
    ``wanted_classes(prompts)``, the index of each prompt's class. Its own ``name`` heads its
    columns.
    """
    classes = tuple(getattr(scorer, "class_names", ()))
    title = str(getattr(scorer, "name", name))
    title = title if name in title else f"{title} ({name})"
    facts = ScorerFacts(name, title, fingerprint(scorer), classes)
    return OpenScorer(facts, scorer, getattr(scorer, "label_key", None))


def open_scorers(
    names: Sequence[str],
    config_reward: Mapping[str, Any] | None,
    device: str,
    option: str = "--rewards",
) -> tuple[OpenScorer, ...]:
    """Opens scorers by zoo name, model folder, ``.yaml`` file or ``config``.

    A ``.yaml`` file is a ``_target_`` node or a run's configuration (its ``module.reward``);
    ``config`` is the reward of the configuration. ``option`` is named in messages.

    Raises ``UserError`` for an unknown name, one given twice, and what is not a scorer.
    """
    scorers: dict[str, OpenScorer] = {}
    for text in names:
        name, scorer = _opened(text, config_reward, option)
        if not is_scorer(scorer):
            raise UserError(
                f"{option}: {text} is a {type(scorer).__name__}, which scores nothing; name a"
                " reward, or a metric of one clip"
            )
        if isinstance(scorer, nn.Module):
            scorer = scorer.to(device).eval()
        if Path(name).is_dir() and name not in ENTRIES:
            name = str(getattr(scorer, "checkpoint", "") or short_name(name))
        if name in scorers:
            raise UserError(
                f"{option} names {name} twice; give each scorer once, or its folder another name"
            )
        scorers[name] = as_scorer(name, scorer)
    return tuple(scorers.values())


def _opened(text: str, config_reward: Mapping[str, Any] | None, option: str) -> tuple[str, Any]:
    """(name, model) of one word after ``option``."""
    if text == "config" and config_reward is None:
        raise UserError(
            f"{option} config is the reward of a configuration with module.reward; give --config"
            " too"
        )
    if text != "config" and not text.endswith((".yaml", ".yml")):
        return text, load(text)
    node = dict(config_reward or {}) if text == "config" else _reward_node(text, option)
    check(node, text)
    reward = instantiate(node, text)
    return node_name(node) or str(getattr(reward, "checkpoint", "") or Path(text).stem), reward


def _reward_node(path: str, option: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    if not Path(path).is_file():
        raise FileNotFoundError(f"{option}: there is no file {path}")
    with parsing(path, "YAML"):
        content = OmegaConf.load(path)
    if isinstance(content, Mapping) and "_target_" in content:
        return with_current_names(OmegaConf.to_container(content, resolve=True))
    from zoo.configuration import read_configuration

    node = read_configuration([path]).module.get("reward")
    if node is None:
        raise UserError(f"{option}: {path} has neither a _target_ nor a module.reward")
    return dict(node)


def node_name(node: Mapping[str, Any]) -> str:
    """The name of a reward's weights in its node: a zoo name, or the end of a checkpoint's path.

    "" for other nodes.
    """
    path = node.get("path")
    place = "/".join(Path(str(path)).parts[-2:]) if path else ""
    return str(node.get("name") or node.get("checkpoint") or place)


def short_name(path: str) -> str:
    """The last part of a path, with the one above where that says nothing."""
    parts = Path(path).resolve().parts
    return "/".join(parts[-2:] if parts[-1] in ("model", "reward") else parts[-1:])


def check_prompts(scorers: Sequence[OpenScorer], prompts: Sequence[Prompt]) -> None:
    """Raises ``UserError`` when a classifier does not find the class that a prompt asks for."""
    for scorer in scorers:
        if not scorer.facts.class_names:
            continue
        try:
            scorer.opened.wanted_classes(prompts)
        except UserError as error:
            raise UserError(
                f"{scorer.facts.name}: {error} (a column {scorer.label_key!r} or 'label' of the"
                " table says what each prompt asks for)"
            ) from error


class ScoreCache:
    """Numbers by what they are of: the file's bytes, the prompt and the scorer.

    Kept in one JSON file, which is never half-written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = time.monotonic()
        try:
            found = parsed_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if not isinstance(found, dict):
                raise UserError(f"it holds a {type(found).__name__}")
            self.entries: dict[str, Entry] = found
        except ValueError as error:
            raise UserError(
                f"{path} cannot be read ({error}); remove it, and the clips are scored again"
            ) from error

    def put(self, key: str, entry: Entry) -> None:
        self.entries[key] = entry
        if time.monotonic() - self._last > _SAVED_EVERY_S:
            self.save()

    def save(self) -> None:
        with written_beside(self.path) as part:
            part.write_text(json.dumps(self.entries, allow_nan=False), encoding="utf-8")
        self._last = time.monotonic()


def scored_clips(
    samples: Sequence[Sample],
    scorers: Sequence[OpenScorer],
    cache: ScoreCache,
    batch_size: int = 16,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[ScoredClip, ...]:
    """Scores every sample by every scorer in one pass, which reads each file once.

    The waves of one batch are in memory at a time.

    What is in the cache is not scored again; the cache is saved also when a later clip fails.

    Args:
        samples: the clips.
        scorers: all give their numbers for all clips.
        cache: where the numbers are kept.
        batch_size: clips that are read and scored at once.
        device: where the scorers are.
        progress: is called with clips times scorers, done and in all.

    Raises:
        UserError: naming the file, for a score that is not finite and for audio that cannot be
            read; for a classifier without its parts.
    """
    total = len(samples) * len(scorers)
    keys: list[list[str]] = []  # per clip, per scorer
    try:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            keys += _score_batch(batch, scorers, cache, device)
            if progress is not None:
                progress(len(keys) * len(scorers), total)
    finally:
        cache.save()
    found: list[dict[str, Entry]] = [{} for _ in samples]
    for column, scorer in enumerate(scorers):
        entries = [cache.entries[own[column]] for own in keys]
        of_the_set = _of_the_set(scorer, entries, samples)
        for record, entry, more in zip(found, entries, of_the_set, strict=True):
            record[scorer.facts.name] = {**entry, "values": {**entry["values"], **more}}
    numbers = sample_numbers(samples)
    return tuple(
        _clip(sample, number, own)
        for sample, number, own in zip(samples, numbers, found, strict=True)
    )


def _score_batch(
    samples: Sequence[Sample], scorers: Sequence[OpenScorer], cache: ScoreCache, device: str
) -> list[list[str]]:
    """The keys of the numbers of every sample (by every scorer), which are in the cache then."""
    contents = [sample.path.read_bytes() for sample in samples]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    keys = [
        [_key(digest, sample.prompt, scorer.facts) for scorer in scorers]
        for digest, sample in zip(digests, samples, strict=True)
    ]
    waves: dict[int, Waveform] = {}
    for column, scorer in enumerate(scorers):
        missing = [i for i, own in enumerate(keys) if own[column] not in cache.entries]
        for i in missing:
            if i not in waves:
                waves[i] = _decoded(samples[i].path, contents[i], device)
        entries = _scored(scorer, [samples[i] for i in missing], [waves[i] for i in missing])
        for i, entry in zip(missing, entries, strict=True):
            cache.put(keys[i][column], entry)
    return keys


def _decoded(path: Path, content: bytes, device: str) -> Waveform:
    try:
        wave = decoded(content)
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    return Waveform(wave.samples_CN.to(device), wave.sample_rate_hz)


def _of_the_set(
    scorer: OpenScorer, entries: Sequence[Entry], samples: Sequence[Sample]
) -> list[dict[str, float]]:
    """The parts of a reward that compare all clips of a prompt, such as diversity.

    ``combine`` of the reward computes them.

    Its score stays that of a single clip. ``{}`` for other rewards, and where no prompt has two
    clips.
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
    output = scorer.opened.combine(RewardOutput(parts.pop("score"), parts, vectors), prompts)
    more = {name: part.tolist() for name, part in output.parts.items() if name not in parts}
    for name, column in more.items():
        bad = [i for i, value in enumerate(column) if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"{scorer.facts.name} returned no finite {name} for {len(bad)} of {len(samples)}"
                f" clips, the first {samples[bad[0]].path}; leave them out of the table"
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


def _clip(sample: Sample, number: int, own: Mapping[str, Entry]) -> ScoredClip:
    prompt = sample.prompt
    return ScoredClip(
        str(sample.path),
        prompt.id,
        prompt.text,
        number,
        dict(prompt.labels),
        {name: entry["values"] for name, entry in own.items()},
        wanted={name: entry["wanted"] for name, entry in own.items() if "wanted" in entry},
        predicted={name: entry["predicted"] for name, entry in own.items() if "predicted" in entry},
    )


def _scored(
    scorer: OpenScorer, samples: Sequence[Sample], waves: Sequence[Waveform]
) -> list[Entry]:
    if not samples:
        return []
    output = score(scorer.opened, waves, [sample.prompt for sample in samples])
    columns = {"score": output.score_B.tolist()}
    columns |= {name: part.tolist() for name, part in output.parts.items()}
    entries: list[Entry] = [
        {"values": {name: column[i] for name, column in columns.items()}}
        for i in range(len(samples))
    ]
    if hasattr(scorer.opened, "combine") and output.vectors:
        for i, entry in enumerate(entries):
            entry["vectors"] = {name: vector[i].tolist() for name, vector in output.vectors.items()}
    for entry, sample in zip(entries, samples, strict=True):
        for name, value in entry["values"].items():
            if not math.isfinite(value):
                raise UserError(
                    f"{scorer.facts.name} returned {name} = {value} for {sample.path}; listen to"
                    " that clip, and leave it out of the table if it is damaged"
                )
    if scorer.facts.class_names:
        _classify(scorer, samples, entries)
    return entries


def _classify(scorer: OpenScorer, samples: Sequence[Sample], entries: Sequence[Entry]) -> None:
    """Adds to the entries which class each sample asks for, and which it is called."""
    names = scorer.facts.class_names
    given = entries[0]["values"]
    absent = [f"p_{name}" for name in names if f"p_{name}" not in given]
    if absent:
        raise UserError(
            f"{scorer.facts.name} has classes but returned no part {absent[0]!r}; its parts are"
            f" {', '.join(given)}"
        )
    targets = scorer.opened.wanted_classes([sample.prompt for sample in samples]).tolist()
    for entry, target in zip(entries, targets, strict=True):
        entry["wanted"] = names[target]
        entry["predicted"] = max(names, key=lambda name: entry["values"][f"p_{name}"])
