"""A folder of generated audio and its index ``samples.json``: which file answers which prompt.

Runs write such folders (``audio/before``, ``audio/after``), and so does ``tools/generate.py``;
what plays or scores generations later reads them here. The index is a list of objects: ``file`` (a
name in the folder), ``id``, ``text``, ``negative``, ``seconds``, ``labels``, and, if known,
``seed``, ``score`` and ``choice`` (``by``, ``seeds``, ``scores``: what the file was chosen from).
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.audio_files.folders import Listing, listed
from zoo.errors import UserError, did_you_mean
from zoo.files import AUDIO_FORMATS, finite, parsed_json, written_beside
from zoo.hub.untrusted import safe_relative_path
from zoo.types import Prompt

INDEX = "samples.json"


@dataclass(frozen=True)
class Choice:
    """What a sample was chosen from: the best of these ``seeds`` by the reward ``by``.

    ``scores``: of all of them, in order.
    """

    by: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """One audio file and its prompt.

    ``seed``: of its noise. ``score``: by the reward of its run, or of its ``choice``. ``choice``:
    of a sample that was kept among several. None: unknown.
    """

    path: Path
    prompt: Prompt
    seed: int | None = None
    score: float | None = None
    choice: Choice | None = None


def read_samples(folder: str | Path, must_exist: bool = True) -> tuple[Sample, ...]:
    """The samples that a folder's index lists, in its order.

    ``must_exist``: False also gives those whose file is absent.

    Raises ``FileNotFoundError`` for no folder, no index or an absent audio file, and ``UserError``
    naming the entry for an index that cannot be read, is empty, or names a file outside the folder
    (also through a link).
    """
    folder = Path(folder)
    if not folder.is_dir():
        near = (
            [path.name for path in folder.parent.iterdir() if path.is_dir()]
            if folder.parent.is_dir()
            else []
        )
        raise FileNotFoundError(
            f"there is no folder {folder}; {did_you_mean(folder.name, near, limit=4)}"
        )
    if not (folder / INDEX).is_file():
        inside = sorted(
            path.parent.relative_to(folder).as_posix() for path in folder.glob(f"audio/*/{INDEX}")
        )
        hint = (
            f"it is a run folder: name {' or '.join(inside)} in it"
            if inside
            else "tools/generate.py writes one with its files"
        )
        raise FileNotFoundError(
            f"{folder} has no {INDEX}, which says which file answers which prompt; {hint}"
        )
    files = listed(folder, suffixes=None)
    samples = tuple(
        _sample(files, folder, entry, f"{folder / INDEX}, entry {i}", must_exist)
        for i, entry in enumerate(_entries(folder), 1)
    )
    if not samples:
        raise UserError(f"{folder / INDEX} lists no sample; generate some into the folder")
    return samples


def write_index(
    folder: str | Path, samples: Sequence[Sample], to: str | Path | None = None
) -> Path:
    """Adds ``samples``, whose files are in ``folder``, to its index in one step.

    Entries of the same files are replaced.

    ``to``: a folder that gets the new index instead, to be moved into ``folder`` with its files.

    Raises ``UserError`` when the index that is there cannot be read, and ``OSError``.
    """
    folder = Path(folder)
    entries = {entry["file"]: entry for entry in checked_entries(folder)}
    for sample in samples:
        p = sample.prompt
        facts = {
            "file": sample.path.name,
            "id": p.id,
            "text": p.text,
            "negative": p.negative,
            "seconds": p.seconds,
        }
        choice = None if sample.choice is None else asdict(sample.choice)
        known = {"seed": sample.seed, "score": sample.score, "choice": choice}
        entries[sample.path.name] = {
            **facts,
            "labels": dict(p.labels),
            **{k: v for k, v in known.items() if v is not None},
        }
    path = Path(folder if to is None else to) / INDEX
    with written_beside(path) as part:
        text = json.dumps(finite(list(entries.values())), indent=1, default=str, allow_nan=False)
        part.write_text(text, encoding="utf-8")
    return path


def checked_entries(folder: Path) -> list[dict[str, Any]]:
    """The present content of an index that is added to (empty without one).

    Raises ``UserError`` when it is another's.
    """
    entries = _entries(folder) if (folder / INDEX).exists() else []
    for i, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise UserError(
                f"{folder / INDEX}, entry {i}: no 'file'; it is not an index of samples, so name"
                " another folder"
            )
    return entries


def _entries(folder: Path) -> list[Any]:
    try:
        entries = parsed_json((folder / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:  # also wrong encoding
        where = folder / INDEX
        raise UserError(f"{where} cannot be read ({error}); generate the samples again") from error
    if not isinstance(entries, list):
        raise UserError(
            f"{folder / INDEX} holds a {type(entries).__name__}, expected a list of samples"
        )
    return entries


def _sample(files: Listing, folder: Path, entry: Any, where: str, must_exist: bool) -> Sample:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object, got {type(entry).__name__}")
    for name in ("file", "id", "text"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise UserError(f"{where}: expected words under {name!r}, got {entry.get(name)!r}")
    try:
        relative = safe_relative_path(entry["file"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    path = folder / (files.find(relative.as_posix()) or relative)
    if len(relative.parts) != 1 or path.resolve().parent != folder.resolve():
        raise UserError(
            f"{where}: {entry['file']!r} is not a file of this folder itself; copy it there"
        )
    if must_exist and not path.is_file():
        raise FileNotFoundError(f"{where}: there is no file {path}; generate the samples again")
    labels = entry.get("labels") or {}
    numbers = {}
    if not isinstance(labels, dict):
        raise UserError(f"{where}: labels must be an object, got {labels!r}")
    for name, kinds in (("seconds", (int, float)), ("seed", int), ("score", (int, float))):
        value = entry.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise UserError(f"{where}: {name} must be a number, got {value!r}")
        numbers[name] = value
    seconds = {} if numbers.pop("seconds") is None else {"seconds": float(entry["seconds"])}
    try:
        prompt = Prompt(
            entry["id"], entry["text"], str(entry.get("negative") or ""), **seconds, labels=labels
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return Sample(path, prompt, **numbers, choice=_choice(entry.get("choice"), where))


def _choice(value: Any, where: str) -> Choice | None:
    if value is None:
        return None
    is_whole = isinstance(value, dict) and {"by", "seeds", "scores"} <= value.keys()
    columns = [value["seeds"], value["scores"]] if is_whole else []
    numbers = [one for column in columns if isinstance(column, list) for one in column]
    is_numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in numbers)
    if not is_whole or not is_numbers or len(numbers) != 2 * len(columns[0]):
        raise UserError(
            f"{where}: choice must name 'by' whom and one number per sample under 'seeds' and"
            f" 'scores', got {value!r}"
        )
    return Choice(str(value["by"]), tuple(value["seeds"]), tuple(value["scores"]))


def output_paths(
    prompts: Sequence[Prompt], seeds: Sequence[int | str], out: str | Path, suffix: str
) -> list[Path]:
    """One safe file name per sample, prompts in order and seeds in order within a prompt.

    A seed may be several, such as "0-3".

    For one sample ``out`` may be the file itself.

    Raises ``UserError`` for one file and several samples, for a file where a folder is expected,
    and for a name that looks like a file in another format (``x.mp4``); a new folder of such a name
    is given with a ``/`` at its end.
    """
    asked = str(out)
    out = Path(out)
    formats = ", ".join(AUDIO_FORMATS)
    if out.suffix.lower() in AUDIO_FORMATS:
        if len(prompts) * len(seeds) > 1:
            raise UserError(
                f"--out {out} is one file, but there are {len(prompts) * len(seeds)} samples; name"
                " a folder"
            )
        return [out]
    if (
        re.fullmatch(r"\.[0-9]*[A-Za-z][A-Za-z0-9]{0,4}", out.suffix)
        and not out.is_dir()
        and not asked.endswith(("/", os.sep))
    ):
        raise UserError(
            f"--out {out}: {out.suffix} is not written here; name a file that ends in one of "
            f"{formats}, or a folder ({asked}/ if that is its name)"
        )
    if out.exists() and not out.is_dir():
        raise UserError(
            f"--out {out} is a file without audio suffix; name a folder or one of {formats}"
        )
    width = max(3, len(str(len(prompts) - 1)))
    plain = [
        unicodedata.normalize("NFKD", prompt.text).encode("ascii", "ignore").decode().lower()
        for prompt in prompts
    ]
    slugs = [re.sub(r"[^a-z0-9]+", "-", text)[:60].strip("-") or "prompt" for text in plain]
    return [
        out / f"{i:0{width}d}_{slug}_seed{seed}.{suffix}"
        for i, slug in enumerate(slugs)
        for seed in seeds
    ]
