"""Pushes a model folder to the Hub: first a plan, file by file; with consent exactly that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo.errors import UserError, parsing
from zoo.hub.client import client_answers, connected
from zoo.hub.entry import UNKNOWN, is_repo_id, licence_words
from zoo.hub.untrusted import read_json, shown
from zoo.hub.verify import ADAPTER_CONFIG, CONFIG, CheckedFile, verify_folder
from zoo.secrets import holds_secret

CARD = "README.md"
_SENT = (
    ".safetensors",
    ".json",
    ".md",
    ".txt",
    ".model",
    ".wav",
    ".flac",
    ".png",
    ".svg",
    ".csv",
)  # data; no pickle, no code
_TEXTS = (".json", ".md", ".txt", ".csv", ".svg")


@dataclass(frozen=True)
class PushPlan:
    """What a push sends. ``url``: of the commit, once it was sent."""

    repo_id: str
    private: bool
    endpoint: str
    licence: str
    front_matter: str
    files: tuple[CheckedFile, ...] = field(hash=False)
    url: str | None = None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def describe(self) -> str:
        """The complete plan as text.

        It lists repository, visibility, licence, card header, and files with bytes and sha256.
        """
        seen = "private" if self.private else "public"
        what = (
            f"{len(self.files)} files, {self.size_bytes:,} bytes, to the {seen} repository"
            f" {self.endpoint}/{self.repo_id}"
        )
        lines = [f"{'Sent' if self.url else 'Would send'} {what}"]
        lines += [f"Licence: {licence_words(self.licence, False)}", f"Header of {CARD}:"]
        lines += [f"    {line}" for line in self.front_matter.splitlines()]
        width = max(len(file.name) for file in self.files)
        lines += [
            f"  {file.name:<{width}}  {file.size_bytes:>13,} bytes  sha256 {file.sha256}"
            for file in self.files
        ]
        return "\n".join(
            [*lines, self.url or "Nothing was sent. Add --yes to send it (in Python: yes=True)."]
        )


def plan_push(folder: str | Path, repo_id: str, private: bool = False) -> PushPlan:
    """What ``push`` would send; reads the folder, contacts no server.

    Raises ``UserError`` for an invalid repository id, a folder that is unfinished or
    not whole, has no card or a card without licence or with another one than the base demands,
    holds files that are not sent (pickles, code, hidden files) or something that looks like a
    token. ``OSError`` when it cannot be read.
    """
    from huggingface_hub import constants

    from zoo.hub.cards import licence_of

    folder = Path(folder)
    if not is_repo_id(repo_id):
        raise UserError(
            f"the repository must be owner/name, such as your-name/my-model, got {repo_id!r}"
        )
    files = verify_folder(folder)
    names = {file.name for file in files}
    if not {CONFIG, ADAPTER_CONFIG} & names:
        raise UserError(
            f"{folder} is not a finished export: it has neither {CONFIG} nor {ADAPTER_CONFIG}; "
            "make one with: python tools/zoo.py export RUN --to DIR"
        )
    not_sent = sorted(
        name
        for name in names
        if not name.lower().endswith(_SENT) or any(part.startswith(".") for part in name.split("/"))
    )
    if not_sent:
        raise UserError(
            f"{folder} holds {', '.join(not_sent[:4])}, which a model's repository does not get"
            " (pickles, code, hidden files); export into a new folder"
        )
    if CARD not in names:
        raise UserError(
            f"{folder} has no model card ({CARD}); an export writes one: python tools/zoo.py export"
            " RUN --to DIR"
        )
    header, text = _front_matter(folder / CARD)
    licence = str(header.get("license_name") or header.get("license") or "")
    inherited = licence_of(folder) or UNKNOWN
    if not licence:
        raise UserError(
            f"{folder / CARD} names no license in its header; its base says {inherited}"
        )
    is_own = (
        inherited == UNKNOWN
        and not any(read_json(folder / name).get("base") for name in {CONFIG} & names)
        and ADAPTER_CONFIG not in names
    )
    if licence.lower() != inherited.lower() and not is_own:  # who derives from nothing chooses
        raise UserError(
            f"{folder / CARD} says license {licence}, but its base requires {inherited};"
            " correct the card"
        )
    for file in files:
        if file.name.lower().endswith(_TEXTS) and holds_secret(
            (folder / file.name).read_text("utf-8", errors="replace")
        ):
            raise UserError(
                f"{file.name} in {folder} holds what looks like an access token; remove it (and"
                " revoke the token)"
            )
    return PushPlan(repo_id, private, constants.ENDPOINT, licence, text, files)


def push(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    yes: bool = False,
    *,
    message: str = "",
) -> PushPlan:
    """Sends a model folder to ``owner/name`` on the Hub, which is created if needed.

    Args:
        folder: the model folder.
        repo_id: ``owner/name``.
        private: whether only you may see it; an existing public repository is refused then.
        token: with write access, by default as the Hub client finds one.
        yes: send; without it only the plan is returned (``print(plan.describe())``).
        message: of the commit.

    Raises: as ``plan_push``, and ``PermissionError``, ``ConnectionError``.
    """
    plan = plan_push(folder, repo_id, private)
    if not yes:
        return plan
    from huggingface_hub import CommitOperationAdd

    with connected(repo_id, None, token) as hub, client_answers(plan.endpoint):
        hub.api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not hub.api.model_info(repo_id).private:
            raise UserError(
                f"{repo_id} exists already and is public; make it private on its page, or push"
                " without --private"
            )
        operations = [
            CommitOperationAdd(file.name, str(Path(folder) / file.name)) for file in plan.files
        ]
        for file, operation in zip(plan.files, operations, strict=True):
            if operation.upload_info.sha256.hex() != file.sha256:
                raise UserError(
                    f"{file.name} changed while it was about to be sent; nothing was sent, start"
                    " again"
                )
        words = message or f"{len(operations)} files, exported with Attune"
        sent = hub.api.create_commit(repo_id, operations, commit_message=words)
    return replace(plan, url=shown(sent.commit_url, 300))


def _front_matter(card: Path) -> tuple[dict[str, Any], str]:
    import yaml

    match = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", card.read_text("utf-8"), re.DOTALL)
    if match is None:
        raise UserError(f"{card} has no header (--- license: ... ---); export again, or write one")
    with parsing(f"the header of {card}", "YAML"):
        node = yaml.safe_load(match[1])
    if not isinstance(node, dict):
        raise UserError(f"the header of {card} must be a mapping such as 'license: apache-2.0'")
    return node, match[1]
