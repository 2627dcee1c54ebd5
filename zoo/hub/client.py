"""The Hub client's calls that a pull makes, with its errors in one line each.

No token ever reaches a message.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zoo.errors import UserError
from zoo.files import sha256_of
from zoo.hub.requests import Asker, HubAnswerError, answer, download, pages
from zoo.hub.store import cache_root
from zoo.hub.untrusted import shown
from zoo.secrets import remember, without_secrets

_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
FILES = 100_000  # of one listing


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing. ``sha256``: of large files; ``blob_id``: git's hash, of small ones.

    Raises ``UserError`` for hashes that are not 40 or 64 hex digits, for no hash, and for a size
    that is not a count: these go into paths and sums.
    """

    name: str
    size_bytes: int
    sha256: str | None = None
    blob_id: str | None = None

    def __post_init__(self) -> None:
        if self.sha256 is None and self.blob_id is None:
            raise UserError(f"the Hub lists {shown(self.name)} without a hash; it is not pulled")
        wrong = [text for text in (self.sha256,) if text is not None and not _is(_SHA256, text)]
        if self.blob_id is not None and not (
            _is(_SHA1, self.blob_id) or _is(_SHA256, self.blob_id)
        ):
            wrong.append(self.blob_id)
        if wrong:
            raise UserError(
                f"the Hub lists {shown(self.name)} with the hash {shown(repr(wrong[0]), 80)}; "
                "expected 40 or 64 hex digits, so it is not pulled"
            )
        size = self.size_bytes
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise UserError(
                f"the Hub lists {shown(self.name)} with the size {shown(repr(size), 40)}; "
                "expected a count of bytes"
            )

    @property
    def waiting_name(self) -> str:
        """Where it waits while incomplete: its content's hash and that of its name."""
        of_name = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return f"{self.sha256 or self.blob_id}.{of_name}"

    def is_in(self, path: Path) -> bool:
        """Whether a file holds what the Hub listed."""
        if path.stat().st_size != self.size_bytes:
            return False
        if self.sha256 is not None:
            return sha256_of(path) == self.sha256
        return git_hash(path, "sha1" if len(str(self.blob_id)) == 40 else "sha256") == self.blob_id


def git_hash(path: Path, algorithm: str = "sha1") -> str:
    """What git calls a file of this content. Raises ``OSError``."""
    digest = hashlib.new(algorithm, b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    gated: bool
    licence: str | None


@dataclass(frozen=True)
class HubRepo:
    """A repository at a revision (None: the newest), asked with a token (None: the client's own).

    ``api``: the Hub client's, for what is sent. Its answers are read here; both methods raise
    ``UserError`` for one of another shape than the Hub's, in addition to what
    ``zoo.hub.requests`` raises.
    """

    repo_id: str
    revision: str | None
    asker: Asker
    api: Any

    def commit(self) -> Commit:
        at = "" if self.revision is None else f"/revision/{quote(self.revision, safe='')}"
        info, _ = answer(self.asker, f"{self.asker.endpoint}/api/models/{self.repo_id}{at}")
        sha = _field(info, "sha", str, self.repo_id)
        if not _is(_SHA1, sha):
            raise UserError(
                f"{self.repo_id}: expected a commit, the Hub sent {shown(repr(sha), 60)}"
            )
        card = _field(info, "cardData", dict, self.repo_id, {})
        tags = [tag for tag in _field(info, "tags", list, self.repo_id, []) if isinstance(tag, str)]
        is_other = card.get("license") == "other"
        licence = card.get("license_name") if is_other else card.get("license")
        tagged = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
        words = licence or (tagged[0] if tagged else None)
        return Commit(sha, bool(info.get("gated")), None if words is None else shown(words, 100))

    def files(self, sha: str) -> list[RemoteFile]:
        where = f"{self.asker.endpoint}/api/models/{self.repo_id}/tree/{sha}"
        found: list[RemoteFile] = []
        for page in pages(self.asker, f"{where}?recursive=true&expand=false"):
            if not isinstance(page, list):
                raise UserError(
                    f"{self.repo_id}: the Hub's listing is {_kind(page)}, expected a list"
                )
            found += [_listed(item, self.repo_id) for item in page if _is_file(item, self.repo_id)]
            if len(found) > FILES:
                raise UserError(f"{self.repo_id} lists more than {FILES:,} files; it is not pulled")
        return found


def _is(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _kind(value: object) -> str:
    return type(value).__name__


def _field(node: Any, name: str, kind: type, repo_id: str, default: Any = None) -> Any:
    """A field of an answer, checked for its kind; ``default`` where it is missing or null."""
    if not isinstance(node, dict):
        raise UserError(f"{repo_id}: the Hub answered with {_kind(node)}, expected an object")
    value = node.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, kind):
        raise UserError(
            f"{repo_id}: the Hub answered with {_kind(value)} as {name}, expected {kind.__name__}"
        )
    return value


def _is_file(item: Any, repo_id: str) -> bool:
    return _field(item, "type", str, repo_id) == "file"


def _listed(item: Any, repo_id: str) -> RemoteFile:
    name = _field(item, "path", str, repo_id)
    lfs = _field(item, "lfs", dict, repo_id, {})
    sha256 = _field(lfs, "oid", str, repo_id) if lfs else None
    return RemoteFile(name, _field(item, "size", int, repo_id), sha256, item.get("oid"))


def offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


@contextlib.contextmanager
def connected(repo_id: str, revision: str | None, token: str | None) -> Iterator[HubRepo]:
    """The repository; errors become an ``OSError`` or ``UserError`` in plain words."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    remember(token or "", get_token() or "")
    endpoint = constants.ENDPOINT
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings hold signed addresses and words of the server
    try:
        api = HfApi(endpoint=endpoint, token=token)
        yield HubRepo(repo_id, revision, Asker(endpoint, token), api)
    except (HTTPError, OfflineModeIsEnabled, HubAnswerError) as error:
        raise plain(error, repo_id, revision, endpoint, token is not None) from error
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def client_answers(endpoint: str) -> Iterator[None]:
    """What the client raises when a server answers its calls with something that is not a Hub's."""
    try:
        yield
    except (
        JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ConnectionError(
            f"{without_secrets(endpoint)} answered with something that is not a Hub's "
            f"({type(error).__name__}): is there a login page of this network (hotel, company) to "
            "pass, or does HF_ENDPOINT name something other than a Hub?"
        ) from error


def plain(
    error: Exception, repo_id: str, revision: str | None, endpoint: str, sent: bool = False
) -> OSError:
    """The error as one line that says what to do. Nothing that the server wrote is in it."""
    from huggingface_hub import errors, get_token

    with_token = (
        "a token was sent"
        if sent or get_token()
        else ("no token was sent: set HF_TOKEN, or run `hf auth login`")
    )
    endpoint = without_secrets(endpoint)
    status = _status(error)
    code = getattr(error, "code", "")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConnectionError(
            f"HF_HUB_OFFLINE is set, so nothing was asked of or sent to {repo_id}; unset it"
        )
    if isinstance(error, errors.GatedRepoError) or code == "GatedRepo":
        return PermissionError(
            f"{repo_id} is gated: agree to its terms on {endpoint}/{repo_id}, wait until access is"
            f" granted, and use a token of that account ({with_token})"
        )
    if (
        isinstance(error, errors.RepositoryNotFoundError)
        or code == "RepoNotFound"
        or (isinstance(error, HubAnswerError) and status == 401 and not error.is_bad_token)
    ):
        return FileNotFoundError(
            f"there is no repository {repo_id} on {endpoint}, or it is private and not shown to you"
            f" ({with_token})"
        )
    if isinstance(error, errors.RevisionNotFoundError) or code == "RevisionNotFound":
        return FileNotFoundError(
            f"{repo_id} has no revision {revision!r}; see {endpoint}/{repo_id}/commits"
        )
    if isinstance(error, errors.EntryNotFoundError) or code == "EntryNotFound":
        return FileNotFoundError(f"{repo_id} listed a file that it does not hold; pull again")
    if status in (401, 403):
        return PermissionError(
            f"{endpoint} refused {repo_id} ({status}): the token is wrong or may not do that"
            f" ({with_token})"
        )
    if status is not None:
        return ConnectionError(f"{endpoint} answered {status} for {repo_id}; try again later")
    return ConnectionError(
        f"the connection to {endpoint} failed or was lost ({type(error).__name__}); what arrived is"
        " kept, run the same command again and it continues from there"
    )


def _status(error: Exception) -> int | None:
    if isinstance(error, HubAnswerError):
        return error.status
    return getattr(getattr(error, "response", None), "status_code", None)


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


def fetch(
    hub: HubRepo, sha: str, file: RemoteFile, waiting: Path, report: Callable[[int], None] | None
) -> Path:
    """The bytes of a file in ``waiting``, from where an earlier attempt stopped.

    A copy in the Hub client's own cache is taken instead, if it is the listed file. The hash of
    what was downloaded is the caller's business.

    Args:
        hub, sha: the repository and its commit.
        file: what is wanted, as it was listed.
        waiting: the folder below ``cache_root()`` in which it waits.
        report: called with how many bytes of it are there.

    Raises ``UserError`` for links at the waiting place and for another size, and what
    ``zoo.hub.requests.download`` raises.
    """
    path = waiting / file.waiting_name
    refuse_links(path)
    waiting.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > file.size_bytes:
        path.unlink()
    cached = cached_file(hub.repo_id, file.name, sha)
    if cached is not None and file.is_in(cached):
        shutil.copyfile(cached, path)
    name = quote(file.name, safe="/")
    url = f"{hub.asker.endpoint}/{hub.repo_id}/resolve/{sha}/{name}"
    tell = report or (lambda now: None)
    try:
        download(hub.asker, url, path, file.size_bytes, tell)
    except UserError as error:
        raise UserError(f"{file.name} of {hub.repo_id}: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's
            error.filename = error.filename or str(path)
        raise
    tell(file.size_bytes)
    return path


def refuse_links(path: Path) -> None:
    """Raises ``UserError`` when a place below ``cache_root()`` is a link or a special file.

    Downloads would be written elsewhere.
    """
    root = cache_root()
    parents = [parent for parent in path.parents if parent.is_relative_to(root) and parent != root]
    for place in [path, *parents]:
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            continue
        expected = stat.S_ISREG if place == path else stat.S_ISDIR
        if not expected(mode):
            raise UserError(
                f"{place} is a link or something else in the place of a download; "
                "remove it and pull again"
            )
