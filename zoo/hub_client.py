"""The Hub client's calls that a pull makes, with its errors in one line each. No token ever reaches a message."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_ATTEMPTS = 5  # of a download, each of which the client itself retries


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing. ``sha256``: of large files; ``blob_id``: git's hash, of small ones."""

    name: str
    size_bytes: int
    sha256: str | None = None
    blob_id: str | None = None

    @property
    def waiting_name(self) -> str:
        """Where it waits while it is incomplete: of its content's hash and its name, so that nothing else is taken for it."""
        return f"{self.sha256 or self.blob_id or 'unknown'}.{hashlib.sha256(self.name.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Commit:
    sha: str
    gated: bool
    licence: str | None


@dataclass(frozen=True)
class HubRepo:
    """A repository at a revision (None: the newest), asked with a token (None: the one that the client finds)."""

    repo_id: str
    revision: str | None
    token: str | None
    api: Any

    def commit(self) -> Commit:
        info = self.api.model_info(self.repo_id, revision=self.revision)
        if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise ValueError(f"{self.repo_id}: the Hub gave no commit but {info.sha!r}")
        card = info.card_data.to_dict() if info.card_data is not None else {}
        licence = card.get("license_name") if card.get("license") == "other" else card.get("license")
        tagged = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
        return Commit(info.sha, bool(info.gated), str(licence) if licence else tagged[0] if tagged else None)

    def files(self, sha: str) -> list[RemoteFile]:
        from huggingface_hub.hf_api import RepoFile

        tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=sha)
        return [RemoteFile(item.path, int(item.size), item.lfs.sha256 if item.lfs is not None else None, item.blob_id)
                for item in tree if isinstance(item, RepoFile)]


def offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


@contextlib.contextmanager
def connected(repo_id: str, revision: str | None, token: str | None) -> Iterator[HubRepo]:
    """The repository, and everything that the client raises meanwhile as an ``OSError`` or ``ValueError`` in plain words."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings hold signed addresses
    try:
        yield HubRepo(repo_id, revision, token, HfApi(endpoint=constants.ENDPOINT, token=token))
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise plain(error, repo_id, revision, constants.ENDPOINT, token is not None) from error
    finally:
        logger.setLevel(level)


def plain(error: Exception, repo_id: str, revision: str | None, endpoint: str, sent: bool = False) -> OSError:
    """The client's error as one line that says what to do."""
    from huggingface_hub import errors, get_token

    with_token = "a token was sent" if sent or get_token() else "no token was sent: set HF_TOKEN, or run `hf auth login`"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConnectionError(f"HF_HUB_OFFLINE is set, so nothing was asked of or sent to {repo_id}; unset it")
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(f"{repo_id} is gated: agree to its terms on {endpoint}/{repo_id}, wait until access is granted, "
                               f"and use a token of that account ({with_token})")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(f"there is no repository {repo_id} on {endpoint}, or it is private and not shown to you "
                                 f"({with_token})")
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} has no revision {revision!r}; see {endpoint}/{repo_id}/commits")
    if isinstance(error, errors.EntryNotFoundError):
        return FileNotFoundError(f"{repo_id} listed a file that it does not hold; pull again")
    if status in (401, 403):
        return PermissionError(f"{endpoint} refused {repo_id} ({status}): the token is wrong or may not do that ({with_token})")
    if status is not None:
        return ConnectionError(f"{endpoint} answered {status} for {repo_id}; try again later")
    return ConnectionError(f"the connection to {endpoint} failed or was lost ({type(error).__name__}); what arrived is kept, run "
                           "the same command again and it goes on from there")


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Only one process is inside, the others wait: the ranks of a training load the same model."""
    from huggingface_hub.utils import WeakFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path):
        yield


def cached_file(repo_id: str, name: str, sha: str) -> Path | None:
    """A file in the Hub client's own cache, None when it is not there. Its hash is not checked."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo_id, name, revision=sha)
    return Path(cached) if isinstance(cached, str) and Path(cached).is_file() else None


def fetch(hub: HubRepo, sha: str, file: RemoteFile, waiting: Path, report: Callable[[int], None] | None) -> Path:
    """The bytes of a file in ``waiting``, from where an earlier attempt stopped. ``report(bytes)``: how many are there.

    A copy in the Hub client's own cache is taken instead of a download. Hashes are the caller's business. Raises the client's
    errors and ``OSError``.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path = waiting / file.waiting_name
    if path.is_file() and path.stat().st_size > file.size_bytes:
        path.unlink()
    cached = cached_file(hub.repo_id, file.name, sha)
    if cached is not None and cached.stat().st_size == file.size_bytes:
        waiting.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, path)
    url = hf_hub_url(hub.repo_id, file.name, revision=sha, endpoint=constants.ENDPOINT)
    for attempt in range(_ATTEMPTS):
        there = path.stat().st_size if path.is_file() else -1
        if there < file.size_bytes:
            try:
                about = get_hf_file_metadata(url, token=hub.token, endpoint=constants.ENDPOINT)
                headers = build_hf_headers(token=hub.token)
                if urlsplit(about.location).netloc != urlsplit(url).netloc:
                    headers.pop("authorization", None)  # the storage behind the Hub gets no token
                waiting.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as content:
                    http_get(about.location, content, resume_size=content.tell(), headers=headers, expected_size=file.size_bytes,
                             tqdm_class=partial(_Meter, content.tell(), file, report))
            except HfHubHTTPError:
                raise
            except HTTPError:
                if attempt == _ATTEMPTS - 1:
                    raise
            except OSError as error:
                if error.errno is not None:  # the disk's
                    error.filename = error.filename or str(path)
                    raise
                raise ValueError(f"{file.name} of {hub.repo_id} did not arrive with the {file.size_bytes} bytes that the Hub "
                                 "listed; pull again") from error
    if report is not None:
        report(file.size_bytes)
    return path


class _Meter:
    """The part of a progress bar that the client uses."""

    def __init__(self, there: int, file: RemoteFile, report: Callable[[int], None] | None, **_: object) -> None:
        self._there, self._file, self._report = there, file, report

    def update(self, size: int = 1) -> None:
        self._there += size
        if self._there > self._file.size_bytes:
            raise ValueError(f"{self._file.name} is longer than the {self._file.size_bytes} bytes that the Hub listed; stopped")
        if self._report is not None:
            self._report(self._there)

    def close(self) -> None:
        pass

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        pass
