"""Model cards: a generated header that the Hub reads, and a body that a person wrote.

The body is ``hub_cards/<name>.md``; ``{{results}}`` and the other names of ``_SECTIONS`` in it are
filled from config.json, and what it does not mention is appended, so that no card is without its
numbers, its licence and a snippet that runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError, did_you_mean, parser_message, parsing
from zoo.hub.card_snippets import PLACE, snippet
from zoo.hub.entry import UNKNOWN, ZooEntry, licence_words
from zoo.hub.table import ENTRIES
from zoo.secrets import without_secrets

CARDS = Path(__file__).resolve().parents[2] / "hub_cards"
TEMPLATE = "_template"
# Licences that the Hub knows by these names (huggingface.co/docs/hub/repositories-licenses); any
# other is "other" with its name.
_HUB_LICENCES = frozenset(
    {
        "apache-2.0",
        "mit",
        "bsd-2-clause",
        "bsd-3-clause",
        "isc",
        "unlicense",
        "mpl-2.0",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
        "cc0-1.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nd-4.0",
        "openrail",
        "creativeml-openrail-m",
        "unknown",
    }
)
_ABSOLUTE = re.compile(r"(?:file://|~?/(?=[\w.~])|[A-Za-z]:[\\/]|\\\\\w)")
_PIPELINES = {
    "backbone": "text-to-audio",
    "adapter": "text-to-audio",
    "codec": "audio-to-audio",
    "reward": "audio-classification",
    "classifier": "audio-classification",
}


def body_path(name: str) -> Path:
    """``hub_cards/<name>.md``, "embedded/music" being embedded_music.md.

    Raises ``UserError`` for a name that is a path.
    """
    stem = name.replace("/", "_")
    if not re.fullmatch(r"[\w.-]+", stem) or stem.startswith("."):
        raise UserError(f"a card's name must be letters, digits, '_', '-' and '.', got {name!r}")
    return CARDS / f"{stem}.md"


def card_for(folder: str | Path, name: str | None = None) -> str:
    """The whole README.md of a model folder: header, body, numbers, snippet.

    ``name``: its title (default: the folder's).

    Raises ``UserError`` and ``OSError`` as ``read_config`` does, and ``UserError`` for a body
    that does not make a valid card.
    """
    from huggingface_hub import ModelCard

    from zoo.hub.artifact import read_config

    folder = Path(folder)
    config = portable(read_config(folder))
    entry = _entry_of(folder)
    name = name or (entry.name if entry else folder.resolve().name)
    body = _written_body(config, entry)
    own, body = _own_header(body)
    body = body or f"# {name}\n\nNobody has written a description of this model yet.\n"
    sections = {key: section(config, entry) for key, section in _SECTIONS.items()}
    for key, text in sections.items():
        place = "{{" + key + "}}"
        if place in body:
            body = body.replace(place, text or "Nothing is recorded.")
        elif text:
            body = f"{body.rstrip()}\n\n## {key.capitalize()}\n\n{text}\n"
    body = body.replace("{{name}}", name)
    left = re.findall(r"\{\{[^}]*\}\}", body)
    if left:
        raise UserError(
            f"the card of {name} has the unknown place {left[0]};"
            f" {did_you_mean(left[0].strip('{} '), _SECTIONS)}"
        )
    body = without_secrets(body)
    content = f"---\n{_header(name, config, entry, own).to_yaml()}\n---\n\n{body.strip()}\n"
    check_card(content, f"the card of {name}")
    return str(ModelCard(content))


def licence_of(folder: str | Path) -> str:
    """The licence that a model folder has to keep.

    That of the zoo's entry, of the base that it names, of config.json, or of the place it was
    pulled from. "unknown" for a base of unknown licence, "" when nothing binds it yet.

    Raises ``UserError`` and ``OSError`` as ``read_config`` does.
    """
    from zoo.hub.artifact import read_config
    from zoo.hub.store import read_record

    folder = Path(folder)
    entry = _entry_of(folder)
    record = read_record(folder)
    if entry is not None:
        return entry.licence
    config = read_config(folder) if (folder / "config.json").exists() else {}
    base = _base(config)
    if base in ENTRIES:  # what config.json says cannot free it
        return ENTRIES[base].licence
    return str(
        config.get("licence")
        or (record.licence if record is not None else "")
        or (UNKNOWN if base else "")
    )


def with_place(card: str, where: str) -> str:
    """The card with ``where`` (a folder or ``owner/name``) in its snippets."""
    return card.replace(PLACE, where)


def check_card(content: str, what: str) -> None:
    """Whether the Hub would take this card, as far as that can be known offline.

    Raises ``UserError``: header missing or not readable by ``huggingface_hub.ModelCard``, no
    licence or an unknown one, an invalid pipeline tag or base, a model-index that does
    not come back as it was written, an empty body.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    if not content.startswith("---\n"):
        raise UserError(f"{what} has no header (--- license: ... ---)")
    try:
        card = ModelCard(content, ignore_metadata_errors=False)
        data = card.data.to_dict()
    except Exception as error:  # parsers raise more than their own classes
        raise UserError(f"{what}: the header cannot be read: {parser_message(error)}") from error
    licence = data.get("license")
    if licence not in (*_HUB_LICENCES, "other"):
        raise UserError(
            f"{what}: license {licence!r} is not one that the Hub knows;"
            f" {did_you_mean(str(licence), _HUB_LICENCES)}"
        )
    if licence == "other" and not data.get("license_name"):
        raise UserError(f"{what}: license other needs a license_name")
    if data.get("pipeline_tag") not in set(_PIPELINES.values()):
        raise UserError(
            f"{what}: pipeline_tag must be one of {', '.join(sorted(set(_PIPELINES.values())))}, "
            f"got {data.get('pipeline_tag')!r}"
        )
    base = data.get("base_model")
    if base is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        raise UserError(f"{what}: base_model must be owner/name, got {base!r}")
    if data.get("model-index") is not None:
        model_index_to_eval_results(data["model-index"])
    if not card.text.strip().startswith("#"):
        raise UserError(f"{what}: the body must begin with a title (# name)")


def portable(node: Any) -> Any:
    """Plain values with ``path/to/NAME`` for each absolute path, which means nothing elsewhere."""
    if isinstance(node, Mapping):
        return {portable(key): portable(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [portable(value) for value in node]
    if not isinstance(node, str):
        return node
    if _ABSOLUTE.match(node):
        return _portable_path(node)
    return re.sub(
        r"(?<![^\s\"'(\[=,:])" + _ABSOLUTE.pattern + r"[^\s\"'),\];]+",
        lambda found: _portable_path(found[0]),
        node,
    )


def _portable_path(path: str) -> str:
    return "path/to/" + (re.split(r"[/\\]+", path.rstrip("/\\"))[-1] or "folder")


def _base(config: Mapping[str, Any]) -> str | None:
    base = config.get("base")
    name = base.get("name") if isinstance(base, Mapping) else None
    return name if isinstance(name, str) else None


def _entry_of(folder: Path) -> ZooEntry | None:
    place = folder.resolve()
    return next(
        (
            entry
            for entry in ENTRIES.values()
            if entry.path is not None and entry.path.resolve() == place
        ),
        None,
    )


def _written_body(config: Mapping[str, Any], entry: ZooEntry | None) -> str:
    name = config.get("card")
    path = body_path(name if isinstance(name, str) else TEMPLATE)
    if entry is not None and entry.card:
        path = CARDS.parent / entry.card
    text = path.read_text("utf-8") if path.is_file() else ""
    text = re.sub(r"<!--.*?-->\n*", "", text, flags=re.DOTALL)  # notes to those who write it
    return re.sub(
        r"^!\[[^\]]*\]\(\.\./[^)]*\)\n*", "", text, flags=re.MULTILINE
    )  # pictures that stay in the project


def _own_header(body: str) -> tuple[dict[str, Any], str]:
    """What the body's own header adds (datasets, language, tags), and the body without it."""
    import yaml

    match = re.match(r"\A---\n(.*?)\n---\n", body, re.DOTALL)
    if match is None:
        return {}, body
    with parsing("the header of a card's own text", "YAML"):
        return yaml.safe_load(match[1]) or {}, body[match.end() :]


def _header(
    name: str, config: Mapping[str, Any], entry: ZooEntry | None, own: Mapping[str, Any]
) -> Any:
    from huggingface_hub import ModelCardData

    kind = entry.kind if entry else str(config["kind"])
    licence = (entry.licence if entry else str(config.get("licence") or UNKNOWN)).lower()
    known: dict[str, Any] = (
        {"license": licence}
        if licence in _HUB_LICENCES
        else {"license": "other", "license_name": licence}
    )
    base = entry.base if entry else _base(config)
    repo = (ENTRIES[base].repo_id or base) if base in ENTRIES else base
    if repo is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        known |= {
            "base_model": repo,
            "base_model_relation": "adapter" if kind == "adapter" else "finetune",
        }
    algorithm = (config.get("training") or {}).get("algorithm")
    tags = [
        "attune",
        kind,
        str(config["architecture"]),
        *([algorithm.lower()] if algorithm else []),
        *own.get("tags", []),
    ]
    return ModelCardData(
        model_name=name,
        library_name="peft" if kind == "adapter" else "attune",
        pipeline_tag=own.get("pipeline_tag") or _PIPELINES[kind],
        tags=list(dict.fromkeys(tags)),
        language=own.get("language"),
        datasets=own.get("datasets"),
        eval_results=_results(config, entry, kind) or None,
        **known,
    )


def _results(config: Mapping[str, Any], entry: ZooEntry | None, kind: str) -> list[Any]:
    from huggingface_hub import EvalResult

    training = config.get("training") or {}
    numbers = (
        dict(entry.metrics)
        if entry
        else {key: pair["after"] for key, pair in (config.get("metrics") or {}).items()}
    )
    where = (
        "held-out prompts of its configuration, fixed noise" if not entry else "as its card says"
    )
    task = _PIPELINES[kind]
    return [
        EvalResult(
            task_type=task,
            dataset_type="attune",
            dataset_name=where,
            metric_type=re.sub(r"[^a-z0-9]+", "_", key.lower()),
            metric_name=f"{training.get('reward')} {key}" if training.get("reward") else key,
            metric_value=round(value, 6),
        )
        for key, value in numbers.items()
    ]


def _use(config: Mapping[str, Any], entry: ZooEntry | None) -> str:
    return snippet(config)


def _results_text(config: Mapping[str, Any], entry: ZooEntry | None) -> str:
    if entry is not None:
        return ""  # the written body has them, with their protocol
    numbers = config.get("metrics") or {}
    training = config.get("training") or {}
    if not numbers:
        return "No held-out numbers were measured in this run."
    prompts = training.get("prompts") or {}
    reward = training.get("reward") or "see its configuration"
    protocol = f"Mean of the training reward ({reward}) over the run's held-out prompts"
    protocol += f", {prompts['val_repeats']} samples each" if "val_repeats" in prompts else ""
    protocol += (
        ", always from the same noise; averaged weights where the run keeps an average. One run,"
        " one seed: no interval."
    )
    lines = ["| held-out prompts | before training | after |", "| --- | --- | --- |"]
    for key, pair in sorted(
        numbers.items(), key=lambda item: (item[0] != "held_out/mean", item[0])
    ):
        what = "all" if key == "held_out/mean" else key.split("/")[1]
        before = f"{pair['before']:.3f}" if "before" in pair else "not measured"
        lines.append(f"| {what} | {before} | {pair['after']:.3f} |")
    return protocol + "\n\n" + "\n".join(lines)


def _training_text(config: Mapping[str, Any], entry: ZooEntry | None) -> str:
    training = config.get("training") or {}
    if entry is not None or not training:
        return ""
    lines = [
        f"- {what}: {training[key]}"
        for key, what in (
            ("algorithm", "Algorithm"),
            ("reward", "Reward"),
            ("data", "Data module"),
            ("seed", "Seed"),
            ("optimiser_steps", "Optimiser steps"),
            ("taken_from", "Weights taken from"),
        )
        if training.get(key) is not None
    ]
    if not training.get("finished", True):
        lines.append("- The run was not finished when this was exported.")
    for key, what in (("prompts", "Prompts"), ("knobs", "Settings")):
        found = training.get(key) or {}
        if found:
            lines.append(f"- {what}:")
            lines += [f"  - {name}: {_words(value)}" for name, value in found.items()]
    return "\n".join(lines)


def _reward_text(config: Mapping[str, Any], entry: ZooEntry | None) -> str:
    """What the reward is and how it can be fooled, in the words of the reward's own card."""
    reward = (config.get("training") or {}).get("reward")
    if reward is None:
        return ""
    card = ENTRIES[reward].card if reward in ENTRIES else None
    path = CARDS.parent / card if card else None
    text = path.read_text("utf-8") if path is not None and path.is_file() else ""
    weak = re.findall(r"^- (Known (?:weakness|hacks?)[^\n]*(?:\n  [^\n]+)*)", text, re.MULTILINE)
    known = "\n".join(f"- {' '.join(item.split())}" for item in weak)
    return f"Trained to raise `{reward}`.\n\n" + (
        known
        or "- No way to fool this reward is known yet. There may well be one: judge by another"
        " network and by ear."
    )


def _licence_text(config: Mapping[str, Any], entry: ZooEntry | None) -> str:
    licence = entry.licence if entry else str(config.get("licence") or UNKNOWN)
    base = None if entry else _base(config)
    return licence_words(licence, False) + (f". Inherited from `{base}`." if base else ".")


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} ({_words(item)})" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(
            " ".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item)
            for item in value
        )
    return str(value)


_SECTIONS: dict[str, Callable[[Mapping[str, Any], ZooEntry | None], str]] = {
    "training": _training_text,
    "reward": _reward_text,
    "results": _results_text,
    "use": _use,
    "licence": _licence_text,
}
