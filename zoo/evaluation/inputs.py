"""What is evaluated: a folder of audio with its table, or clips that a model makes now."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from zoo.audio_files import audio_facts, write_audio
from zoo.audio_files.folders import Listing
from zoo.audio_files.folders import listed as files_of
from zoo.errors import UserError, did_you_mean
from zoo.evaluation.options import BASE
from zoo.evaluation.scores import Progress, fingerprint
from zoo.files import parsed_json, written_beside
from zoo.generation import generate_each
from zoo.generations import INDEX, Sample, output_paths, read_samples, write_index
from zoo.hub.registry import find
from zoo.hub.run_facts import RunFacts, read_facts, stated_facts
from zoo.hub.runs import built_from, run_settings
from zoo.hub.sampling_settings import SamplingSettings
from zoo.instantiate import check, instantiate
from zoo.loading import load, open_model
from zoo.types import Backbone, Prompt

TABLES = ("prompts.csv", "prompts.tsv", "prompts.jsonl")
_SOURCE = "source.json"
_OWN_COLUMNS = ("file", "prompt", "id", "negative", "seconds", "seed", "label", "labels")
ReadTable = Callable[..., Any]  # (path, columns that must be there ...) -> datamodules.tables.Table


@dataclass(frozen=True)
class Configuration:
    """The plain values of YAML files, or of the config.yaml in a run ``folder``; else ``{}``."""

    settings: Mapping[str, Any]
    folder: Path | None = None

    @property
    def reward(self) -> Mapping[str, Any] | None:
        return (self.settings.get("module") or {}).get("reward")

    @property
    def facts(self) -> RunFacts:
        """What the run states about itself. Raises ``UserError`` for settings that it refuses."""
        if self.folder is not None:
            return read_facts(self.folder, self.settings)
        return stated_facts(self.settings)

    def require_own(self) -> None:
        """Raises ``UserError`` for a downloaded run folder: its config.yaml may name code."""
        from zoo.hub.store import is_downloaded

        if self.folder is not None and is_downloaded(self.folder):
            raise UserError(
                f"{self.folder} was downloaded, and its config.yaml may name code; give --prompts"
                " and --rewards by name"
            )

    def backbone(self) -> Backbone:
        """The untrained base, built as the run builds it. Raises ``UserError``."""
        if self.folder is not None:
            return built_from(dict(self.settings), "backbone", self.folder)
        node = (self.settings.get("module") or {}).get("backbone")
        if node is None:
            raise UserError("the configuration has no module.backbone; name a model with --model")
        check(node, "module.backbone")
        return instantiate(node, "module.backbone")

    def prompts(self, which: str) -> tuple[Prompt, ...]:
        """Held-out or training prompts of its data, or both.

        Raises ``UserError`` when there are none.
        """
        node = self.settings.get("data")
        if node is None:
            raise UserError(
                "no prompts: give --prompts FILE, or --config with a data node (a run folder has"
                " one)"
            )
        self.require_own()
        check(node, "data")
        data = instantiate({**node, "val_prompts": None} if "val_prompts" in node else node, "data")
        held_out = getattr(data, "validation_prompts", ())
        train = getattr(data, "train_prompts", ())
        found = {
            "held_out": held_out,
            "train": train,
            "all": (*train, *(p for p in held_out if p not in train)),
        }[which]
        if not found:
            raise UserError(
                f"the data of the configuration has no {which} prompts; use --which "
                f"{'train' if train else 'held_out'}, or --prompts FILE"
            )
        return tuple(found)


def configuration(files: Sequence[str], model: str | None) -> Configuration:
    """Of ``--config`` files, else of the run folder ``model``, else empty.

    Raises ``UserError`` (also for a model that nothing here goes by), ``FileNotFoundError``.
    """
    if files:
        from zoo.configuration import read_configuration

        return Configuration(read_configuration(files).to_dict())
    folder = Path(model) if model is not None else None
    if model is not None and model != BASE:
        with contextlib.suppress(FileNotFoundError):  # known, and pulled when it is opened
            find(model)
    return (
        Configuration(run_settings(folder), folder)
        if folder is not None and folder.is_dir()
        else Configuration({})
    )


def parse_adapter(text: str) -> tuple[str, float]:
    """``NAME`` or ``NAME=STRENGTH``. Raises ``UserError``."""
    name, equals, strength = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return name, float(strength)
    except ValueError:
        raise UserError(
            f"--adapter {text!r}: expected NAME or NAME=STRENGTH, such as runs/one/adapter=0.5"
        ) from None


def open_backbone(
    model: str, adapters: Sequence[tuple[str, float]], config: Configuration, device: str
) -> Backbone:
    """``model``: as ``zoo.open_model`` takes it, or ``base``: the configuration's, untrained.

    Raises what ``zoo.open_model`` raises.
    """
    if model == BASE:
        backbone = config.backbone().to(device).eval()
        if adapters:
            from zoo.hub.adapters import stack_adapters

            stack_adapters(backbone, adapters, BASE)
        return backbone
    if len(adapters) > 1:
        return load(model, device, adapters=adapters)
    return open_model(model, *(adapters[0] if adapters else (None, 1.0)), device)


def model_clips(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampling: SamplingSettings,
    folder: Path,
    facts: Mapping[str, Any],
    batch_size: int = 8,
    progress: Progress | None = None,
) -> tuple[tuple[Sample, ...], dict[str, Any]]:
    """Makes one wav per prompt and seed in ``folder``, with the noise of ``tools/generate.py``.

    Files of an interrupted evaluation with the same settings are kept. What is scored is the file,
    in 16 bits.

    Args:
        backbone: the model.
        prompts: the prompts of the clips.
        seeds: of the clips of every prompt.
        sampling: how they are sampled.
        folder: where the files go.
        facts: of the model and its adapters, as plain values.
        batch_size: clips sampled at once.
        progress: is called with clips done and in all.

    Returns:
        The clips, and what is recorded of their source.

    Raises:
        UserError: when the folder holds clips of other settings.
    """
    source = claimed_source(backbone, prompts, sampling, folder, facts)
    paths = output_paths(prompts, seeds, folder, "wav")
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    for start in range(0, len(missing), batch_size):
        rows = missing[start : start + batch_size]
        waves = generate_each(backbone, [jobs[i] for i in rows], sampling.sampler, batch_size)
        for i, wave in zip(rows, waves, strict=True):
            write_audio(paths[i], wave)
        if progress is not None:
            progress(len(jobs) - len(missing) + start + len(rows), len(jobs))
    samples = tuple(
        Sample(path, prompt, seed) for path, (prompt, seed) in zip(paths, jobs, strict=True)
    )
    write_index(folder, samples)
    return samples, {**source, "first_seed": seeds[0], "samples_per_prompt": len(seeds)}


def claimed_source(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    folder: Path,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the clips, as JSON has it; recorded in ``folder``, to be the only one there.

    ``facts``: of the model and whatever else decides the clips, as plain values.

    Raises ``UserError`` when the folder holds clips of other settings.
    """
    settings = asdict(sampling)
    for name in ("negative", "seconds"):  # the prompts have them
        del settings[name]
    asked = json.dumps([asdict(prompt) for prompt in prompts], sort_keys=True, default=str)
    source = {
        **facts,
        **settings,
        "denoiser": fingerprint(backbone.denoiser),
        "prompts": hashlib.sha256(asked.encode()).hexdigest()[:12],
    }
    source = json.loads(json.dumps(source, allow_nan=False))
    _claim(folder, source)
    return source


def _claim(folder: Path, source: Mapping[str, Any]) -> None:
    """Records the source of the clips in ``folder``, or compares it with the one recorded there."""
    path = folder / _SOURCE
    if not path.is_file():
        with written_beside(path) as part:
            part.write_text(json.dumps(source, indent=1, allow_nan=False), encoding="utf-8")
        return
    there = _source(path)
    differing = [name for name in sorted({*there, *source}) if there.get(name) != source.get(name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{folder} holds clips of other settings ({name}: {there.get(name)} there,"
            f" {source.get(name)} now); name another --out, or remove that folder"
        )


def _source(path: Path) -> Mapping[str, Any]:
    try:
        there = parsed_json(path.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise UserError(f"holds a {type(there).__name__}")
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}); name another --out, or remove that folder"
        ) from error
    return there


def is_generations(place: str) -> bool:
    """Whether a folder holds generated audio with an index or a table of it."""
    return any((Path(place) / name).is_file() for name in (INDEX, *TABLES))


def folder_samples(
    folder: Path,
    table: Path | None,
    read_table: ReadTable,
    label_keys: Iterable[str],
    prompts: Sequence[Prompt] = (),
) -> tuple[Sample, ...]:
    """Reads the clips of a folder by its ``samples.json``, or by a table.

    The table has the columns ``file`` and ``prompt`` (or ``text``, ``caption``), and may have
    ``label``, ``seed``, ``id``, ``negative``, ``seconds``; other columns become labels.

    Args:
        folder: where the clips are.
        table: of the clips; by default the index, or one of ``TABLES`` in the folder.
        read_table: reads a table.
        label_keys: labels that the column ``label`` stands for.
        prompts: lend their labels to clips of the same text.

    Raises:
        FileNotFoundError: for no folder, no table, and files that are not there.
        UserError: naming the row, for invalid cells, and for audio files without a row.
    """
    samples = _listed_samples(folder, table, read_table, label_keys)
    names = {sample.path.name for sample in samples}
    sounds = files_of(folder)
    sounds.log_set_aside(folder)
    stray = [name for name in sounds.files if name not in names]
    if stray:
        raise UserError(
            f"{folder}: {len(stray)} audio files are in no row of its table, first {stray[0]}; add"
            " rows for them, or move them away"
        )
    lent = {prompt.text: prompt.labels for prompt in prompts}
    labelled = []
    for one in samples:
        labels = {**lent.get(one.prompt.text, {}), **one.prompt.labels}
        labelled.append(replace(one, prompt=replace(one.prompt, labels=labels)))
    return tuple(labelled)


def _listed_samples(
    folder: Path, table: Path | None, read_table: ReadTable, label_keys: Iterable[str]
) -> tuple[Sample, ...]:
    if not folder.is_dir():
        above = folder.parent
        near = [path.name for path in above.iterdir() if path.is_dir()] if above.is_dir() else []
        raise FileNotFoundError(
            f"there is no folder {folder}; {did_you_mean(folder.name, near, limit=4)}"
        )
    if table is None and (folder / INDEX).is_file():
        return read_samples(folder)
    if table is None:
        table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is None:
        raise FileNotFoundError(
            f"{folder} has no {INDEX} (tools/generate.py writes one) and none of"
            f" {', '.join(TABLES)}; write a CSV with the header file,prompt,label and one row per"
            " file, or name it with --table"
        )
    return _table_samples(folder, table, read_table, tuple(label_keys))


def _table_samples(
    folder: Path, table: Path, read_table: ReadTable, label_keys: tuple[str, ...]
) -> tuple[Sample, ...]:
    content = read_table(table, "file", "prompt")
    if not content.rows:
        raise UserError(f"{table} has no row; write one for each file: file,prompt,label")
    files = files_of(folder, suffixes=None)
    samples = tuple(_row_sample(folder, files, record, label_keys) for record in content.rows)
    names = [sample.path.name for sample in samples]
    doubled = next((name for name, count in Counter(names).items() if count > 1), None)
    if doubled is not None:
        raise UserError(f"{table} has more than one row for {doubled}; keep one")
    return samples


def _row_sample(folder: Path, files: Listing, record: Any, label_keys: tuple[str, ...]) -> Sample:
    """``record``: a ``datamodules.tables.Record``."""
    path = _row_file(folder, files, record)
    text = record.words("prompt")
    seconds = record.number("seconds")
    seed = record.whole_number("seed")
    try:
        seconds = audio_facts(path).seconds if seconds is None else seconds
    except UserError as error:
        raise UserError(f"{record.where}: {error}") from error
    if not 0 < seconds < math.inf:
        raise UserError(f"{record.where}: seconds must be positive and finite, got {seconds}")
    label = record.cells.get("label") if record.name("label") else None
    own = {} if label is None else dict.fromkeys(label_keys or ("label",), label)
    others = record.others(*_OWN_COLUMNS).items()
    filled = {key: value for key, value in others if value not in (None, "")}
    prompt = Prompt(
        record.name("id") or text,
        text,
        record.name("negative"),
        seconds,
        labels={**filled, **own, **record.mapping("labels")},
    )
    return Sample(path, prompt, seed)


def _row_file(folder: Path, files: Listing, record: Any) -> Path:
    where = record.where
    name = record.name("file")
    if not name:
        raise UserError(f"{where}: expected the name of a file under 'file', the cell is empty")
    found = files.find(name)
    if found is not None:
        return files.files[found]
    if len(PureWindowsPath(name).parts) > 1:
        raise UserError(f"{where}: {name!r} is not a file of {folder} itself; copy it there")
    aside = files.reason(name)
    sounds = list(files_of(folder).files)
    near = f"that name is {aside}" if aside else did_you_mean(name, sounds, limit=4)
    raise FileNotFoundError(f"{where}: there is no file {folder / name}; {near}")
