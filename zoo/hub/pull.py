"""Models from and to the Hugging Face Hub, through an unmodified ``huggingface_hub`` client.

``pull`` lists a repository at one commit, downloads what the entry means (a broken download
continues where it stopped, also in a later process), holds every file against the Hub's listing,
the zoo's table and the lock file, and only then gives the folder its name. ``push`` is in
``zoo.hub.push``. ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean to the
client.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from zoo.errors import UserError, did_you_mean
from zoo.files import folder_written_beside, sha256_of
from zoo.hub.client import (
    Commit,
    HubRepo,
    RemoteFile,
    cached_file,
    connected,
    fetch,
    offline,
    one_at_a_time,
)
from zoo.hub.entry import UNKNOWN, ZooEntry, licence_words, needs_consent
from zoo.hub.lock import (
    LOCK_FILE,
    LockedFile,
    Pin,
    check_file,
    check_revision,
    read_lock,
    write_pin,
)
from zoo.hub.push import push
from zoo.hub.registry import looks_remote
from zoo.hub.store import (
    RECORD,
    PullRecord,
    cache_root,
    check_room,
    copied,
    newest,
    place,
    read_record,
    refuse_taken,
    write_record,
)
from zoo.hub.table import ENTRIES
from zoo.hub.untrusted import safe_relative_path
from zoo.hub.verify import verify_folder

__all__ = ["pull", "push"]
Consent = bool | Callable[[str], bool]


@dataclass(frozen=True)
class _Wanted:
    """What a pull is after: ``name`` keys the place on this machine."""

    name: str
    repo_id: str
    revision: str | None
    entry: ZooEntry | None
    pin: Pin | None
    lock: Path

    def selects(self, file: str) -> bool:
        files, skip = (self.entry.files, self.entry.skip) if self.entry is not None else ((), ())
        return (
            (not files or any(fnmatch.fnmatchcase(file, glob) for glob in files))
            and file != RECORD
            and not any(fnmatch.fnmatchcase(file, glob) for glob in skip)
        )

    def check(self, file: str, sha256: str) -> None:
        """Raises ``UserError`` for a hash that the zoo's table or the lock file does not know."""
        known = (self.entry.sha256 if self.entry is not None else {}).get(file)
        if known is not None and known != sha256:
            raise UserError(
                f"{file} of {self.repo_id} has sha256 {sha256}, the zoo's table says {known};"
                " nothing was kept"
            )
        check_file(self.pin, self.repo_id, file, sha256, self.lock)


def pull(
    name: str,
    revision: str | None = None,
    to: str | Path | None = None,
    *,
    token: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    accept_licence: Consent = False,
    lock: str | Path = LOCK_FILE,
) -> Path:
    """Pulls a zoo name or an ``owner/name`` into a folder that is whole and verified, or absent.

    Args:
        name: a zoo name or "owner/name". Embedded entries are used in place.
        revision: a commit, branch or tag; by default the entry's commit, else that of the lock
            file, else the newest, which the lock file then pins.
        to: a folder that is not there yet (default: the store of pulled models, ``zoo.hub.store``).
        token: by default as the Hub client finds one.
        progress: called with the bytes that are done and in all.
        accept_licence: for licences that need consent: True, or a function that gets the terms and
            answers.
        lock: the lock file.

    Raises: ``UserError`` (unknown name, licence not accepted, hash or commit that differs, unsafe
        file names), ``FileNotFoundError`` (no such repository or revision, or not in the cache
        while offline), ``PermissionError`` (gated, wrong token, a place that cannot be written to),
        ``ConnectionError``, ``OSError`` (disk full).
    """
    entry = ENTRIES.get(name)
    if entry is not None and entry.path is not None:
        return _embedded(entry, None if to is None else Path(to))
    if entry is not None and entry.repo_id is None:
        raise UserError(f"{name} cannot be pulled: {entry.note}")
    if entry is None and not looks_remote(name):
        if Path(name).exists():
            raise UserError(
                f"{name} is on this machine already; `python tools/zoo.py verify {name}` checks it"
            )
        raise UserError(
            f"there is no zoo entry {name!r}, and it is not an owner/name on the Hub;"
            f" {did_you_mean(name, ENTRIES)}"
        )
    lock = Path(lock)
    repo_id = name if entry is None else str(entry.repo_id)
    pin = read_lock(lock).get(repo_id)
    expected = revision or (entry.revision if entry is not None else None)
    if expected is not None and len(expected) == 40:
        check_revision(pin, repo_id, expected, lock)
    wanted = _Wanted(
        name, repo_id, expected or (pin.revision if pin is not None else None), entry, pin, lock
    )
    target = None if to is None else Path(to)
    here = _already_here(wanted, target)
    if here is not None:
        return here
    return _from_hub(wanted, target, token, progress, accept_licence)


def _embedded(entry: ZooEntry, to: Path | None) -> Path:
    source = entry.path
    assert source is not None
    if not (source / "config.json").is_file():
        raise FileNotFoundError(
            f"the weights of {entry.name} are not in {source}; install the package again"
        )
    files = verify_folder(source, entry.sha256)
    if to is not None and _holds(to, {file.name: file.sha256 for file in files}):
        return to  # copied there before
    return source if to is None else copied(source, to)


def _holds(folder: Path, sha256: Mapping[str, str]) -> bool:
    """Whether every file of ``sha256`` (name -> hash) is in ``folder`` as it should be."""
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == digest
        for name, digest in sha256.items()
    )


def _already_here(wanted: _Wanted, to: Path | None) -> Path | None:
    """A folder of this commit that was pulled before, verified again; None if the Hub is needed."""
    commit = wanted.revision if wanted.revision is not None and len(wanted.revision) == 40 else None
    if commit is None and not offline():
        return None
    if commit is None and wanted.revision is not None:
        raise FileNotFoundError(
            f"HF_HUB_OFFLINE is set, so the Hub cannot be asked which commit {wanted.revision!r} of"
            f" {wanted.repo_id} is; name the commit, or unset it"
        )
    stored = newest(wanted.name, commit)
    for folder in (to, stored):
        record = read_record(folder) if folder is not None and folder.is_dir() else None
        if (
            folder is None
            or record is None
            or record.repo_id != wanted.repo_id
            or commit not in (None, record.revision)
        ):
            continue
        check_revision(wanted.pin, wanted.repo_id, record.revision, wanted.lock)
        try:
            files = verify_folder(folder)
        except UserError:
            if folder == to or offline():
                raise
            shutil.rmtree(folder)  # damaged in the store: it is pulled again
            continue
        known = {
            file.name: LockedFile(file.sha256, file.size_bytes)
            for file in files
            if file.name in record.sha256
        }
        for name, file in known.items():
            wanted.check(name, file.sha256)
        write_pin(wanted.repo_id, Pin(record.revision, known), wanted.lock)
        return folder if to is None or folder == to else copied(folder, to)
    return _from_client_cache(wanted, to) if offline() else None


def _from_client_cache(wanted: _Wanted, to: Path | None) -> Path:
    """Offline: the pinned files from the Hub client's cache, if it has all of them."""
    pin, name = wanted.pin, wanted.name
    pinned = (
        {}
        if pin is None
        else {file: locked for file, locked in pin.files.items() if wanted.selects(file)}
    )
    paths = (
        {}
        if pin is None
        else {file: cached_file(wanted.repo_id, file, pin.revision) for file in pinned}
    )
    missing = [file for file, path in paths.items() if path is None]
    if pin is None or not pinned or missing:
        lacks = (
            " (the Hub client's cache lacks"
            f" {', '.join(missing[:4])}{' ...' if missing[4:] else ''})"
            if missing
            else ""
        )
        raise FileNotFoundError(
            f"{name} is not in {cache_root()}{lacks}, and HF_HUB_OFFLINE is set: unset it and run "
            f"`python tools/zoo.py pull {name}` once"
        )
    if to is not None:
        refuse_taken(to)
    target = to if to is not None else place(name, pin.revision)
    with folder_written_beside(target) as part:
        for file, path in paths.items():
            (part / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(path), part / file)
            wanted.check(file, sha256_of(part / file))
        licence = wanted.entry.licence if wanted.entry is not None else UNKNOWN
        write_record(
            part,
            PullRecord(
                wanted.repo_id, pin.revision, licence, {file: pinned[file].sha256 for file in paths}
            ),
        )
    return target


def _from_hub(
    wanted: _Wanted,
    to: Path | None,
    token: str | None,
    progress: Callable[[int, int], None] | None,
    accept: Consent,
) -> Path:
    with connected(wanted.repo_id, wanted.revision, token) as hub:
        commit = hub.commit()
        check_revision(wanted.pin, wanted.repo_id, commit.sha, wanted.lock)
        wanted = replace(wanted, revision=commit.sha)
        with one_at_a_time(
            cache_root() / "downloads" / f"{wanted.repo_id.replace('/', '--')}.lock"
        ):
            here = _already_here(wanted, to)  # another process may have been faster
            return (
                here if here is not None else _downloaded(hub, commit, wanted, to, progress, accept)
            )


def _downloaded(
    hub: HubRepo,
    commit: Commit,
    wanted: _Wanted,
    to: Path | None,
    progress: Callable[[int, int], None] | None,
    accept: Consent,
) -> Path:
    if to is not None:
        refuse_taken(to)
    licence = _stricter(wanted.entry.licence if wanted.entry is not None else None, commit.licence)
    _ask(wanted, licence, commit.gated or (wanted.entry is not None and wanted.entry.gated), accept)
    files = _chosen(wanted, hub.files(commit.sha))
    total = sum(file.size_bytes for file in files)
    target = to if to is not None else place(wanted.name, commit.sha)
    check_room(total, cache_root())
    check_room(total, target)
    waiting = cache_root() / "downloads" / wanted.repo_id.replace("/", "--") / commit.sha
    done = 0
    hashes = {}
    with folder_written_beside(target) as part:
        for file in files:
            start = done
            report = (
                None if progress is None else lambda now, start=start: progress(start + now, total)
            )
            path = fetch(hub, commit.sha, file, waiting, report)
            hashes[file.name] = _verified(wanted, file, path)
            done += file.size_bytes
        for file in files:
            place_in = part / file.name
            place_in.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(waiting / file.waiting_name, place_in)
        write_record(part, PullRecord(wanted.repo_id, commit.sha, licence, hashes))
        pin = Pin(
            commit.sha,
            {file.name: LockedFile(hashes[file.name], file.size_bytes) for file in files},
        )
        write_pin(wanted.repo_id, pin, wanted.lock)
    shutil.rmtree(waiting, ignore_errors=True)
    return target


def _stricter(known: str | None, published: str | None) -> str:
    """The licence of the zoo's table, or of the page if that is stricter or more specific."""
    if known in (None, UNKNOWN) or (
        published is not None and needs_consent(published, False) > needs_consent(known, False)
    ):
        return published or UNKNOWN
    return str(known)


def _ask(wanted: _Wanted, licence: str, gated: bool, accept: Consent) -> None:
    if not needs_consent(licence, gated) or accept is True:
        return
    note = f" ({wanted.entry.note})" if wanted.entry is not None and wanted.entry.note else ""
    terms = f"{wanted.name} from {wanted.repo_id} comes under {licence_words(licence, gated)}{note}"
    if accept is False or not accept(terms):
        raise UserError(
            f"{terms}. Not pulled: agree to it with --accept-licence (in Python:"
            " accept_licence=True)"
        )


def _chosen(wanted: _Wanted, listed: list[RemoteFile]) -> list[RemoteFile]:
    """The files of a listing that are meant, after their names and promised hashes were checked."""
    for file in listed:
        try:
            safe_relative_path(file.name)
        except UserError as error:
            raise UserError(f"{wanted.repo_id} is not pulled: {error}") from error
    files = [file for file in listed if wanted.selects(file.name)]
    names = {file.name for file in files}
    if len(names) < len(files):
        raise UserError(f"{wanted.repo_id} is not pulled: its listing names a file twice")
    both = names & {str(parent) for name in names for parent in PurePosixPath(name).parents}
    if both:
        raise UserError(
            f"{wanted.repo_id} is not pulled: {min(both)} is a file and a folder in its listing"
        )
    known: Mapping[str, object] = wanted.entry.sha256 if wanted.entry is not None else {}
    missing = sorted(known.keys() - names) + [
        glob
        for glob in (wanted.entry.files if wanted.entry is not None else ())
        if not fnmatch.filter(names, glob)
    ]
    if missing or not files:
        what = ", ".join(missing) if missing else "any file"
        raise FileNotFoundError(f"{wanted.repo_id} at {wanted.revision} does not hold {what}")
    for file in files:
        if file.sha256 is not None:
            wanted.check(file.name, file.sha256)
    return sorted(files, key=lambda file: file.name)


def _verified(wanted: _Wanted, file: RemoteFile, path: Path) -> str:
    """The sha256 of a downloaded file that is the listed one.

    A wrong one is removed: raises ``UserError``.
    """
    digest = sha256_of(path)
    try:
        if not file.is_in(path):
            raise UserError(
                f"{file.name} of {wanted.repo_id} arrived with sha256 {digest}, which is "
                "not the file that the Hub listed; it was damaged on the way or "
                "changed, nothing was kept: pull again"
            )
        wanted.check(file.name, digest)
    except UserError:
        path.unlink()
        raise
    return digest
