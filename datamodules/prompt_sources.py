"""Sources of prompts: a template filled with words, or a text file."""

from __future__ import annotations

import hashlib
import logging
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.audiocaps import caption_prompts, is_audiocaps
from datamodules.tables import Record, read_table
from zoo.errors import UserError, did_you_mean
from zoo.language import ARTICLE, with_articles
from zoo.types import Prompt

log = logging.getLogger(__name__)
_FIELDS = ("word", "mood", "instrument", "article")
_OWN_COLUMNS = ("text", "id", "negative", "seconds", "labels")


def prompt_id(text: str, negative: str, seconds: float) -> str:
    """A readable, stable id: a slug of the text, and a hash of text, negative and seconds."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64].rstrip("-")
    digest = hashlib.sha256(f"{text}\0{negative}\0{float(seconds)!r}".encode()).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest


def template_prompts(
    template: str,
    words: dict[str, list[str]],
    instruments: Sequence[str],
    negative: str = "",
    seconds: float = 4.096,
) -> tuple[Prompt, ...]:
    """Every word with every instrument, in the order mood, word, instrument.

    Args:
        template: text with the fields ``{word}``, ``{mood}`` (the class of the word),
            ``{instrument}`` and ``{article}`` ("a" or "an", as the next word requires).
        words: mood -> words.
        instruments: their names.
        negative: text of guidance's unconditional side.
        seconds: length of every sample.

    Returns:
        Prompts with the labels ``mood``, ``word`` and ``instrument``.

    Raises:
        UserError: for other fields, an empty list, and two combinations with the same text (in a
            template without ``{word}`` give one word per mood).
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(
            f"template {template!r}: {error}; write {{{{ for a brace that is not a field"
        ) from error
    for name in fields:
        if name not in _FIELDS:
            raise UserError(
                f"template {template!r} has the unknown field {{{name}}};"
                f" {did_you_mean(name, _FIELDS)}"
            )
    if not words or not instruments or not all(words.values()):
        raise UserError(
            "words (mood -> list of words) and instruments must not be empty, nor may the words of"
            " a mood"
        )
    prompts: dict[str, Prompt] = {}
    for mood, mood_words in words.items():
        for word in mood_words:
            for instrument in instruments:
                labels = {"mood": mood, "word": word, "instrument": instrument}
                prompt = _prompt(
                    with_articles(template.format(**labels, article=ARTICLE)),
                    negative,
                    seconds,
                    labels,
                )
                if prompt.id in prompts:
                    first = dict(prompts[prompt.id].labels)
                    raise UserError(
                        f"two prompts have the text {prompt.text!r} (for {first} and {labels}); use"
                        " {word} and {instrument} in the template, or drop the repeated entry"
                    )
                prompts[prompt.id] = prompt
    return tuple(prompts.values())


def file_prompts(
    path: str | Path, negative: str = "", seconds: float = 4.096
) -> tuple[Prompt, ...]:
    """Reads prompts from a ``.txt`` (one per line), ``.csv``, ``.tsv`` or ``.jsonl`` file.

    The text is in the column ``text`` (or ``prompt``, ``caption``). Columns ``id``, ``negative``
    and ``seconds`` override the defaults; ``labels`` (an object in jsonl) and all other columns
    become labels. A CSV with the header of AudioCaps gives all its captions
    (``datamodules.audiocaps`` can select among them). Empty lines and repeated prompts are dropped
    and counted in the log. Raises ``UserError`` as ``read_table``, for a file without prompts, a
    record without text, and seconds that are not a positive number.
    """
    if is_audiocaps(path):
        return caption_prompts(path, negative=negative, seconds=seconds)
    table = read_table(path, "text")
    prompts: dict[str, Prompt] = {}
    doubled = 0
    for record in table.rows:
        prompt = _file_prompt(record, negative, seconds)
        if prompt.id in prompts and prompts[prompt.id] != prompt:
            raise UserError(
                f"{record.where}: the id {prompt.id!r} is already used for another prompt; "
                "ids must be unique"
            )
        doubled += prompt.id in prompts
        prompts.setdefault(prompt.id, prompt)
    if not prompts:
        raise UserError(f"{path} holds no prompt ({table.empty} empty lines); write at least one")
    if table.empty or doubled or table.encoding == "latin-1":
        note = "; not UTF-8, read as Latin-1" if table.encoding == "latin-1" else ""
        log.warning(
            "%s: %d prompts, dropped %d empty and %d repeated%s",
            path,
            len(prompts),
            table.empty,
            doubled,
            note,
        )
    return tuple(prompts.values())


def _file_prompt(record: Record, negative: str, seconds: float) -> Prompt:
    own_seconds = record.number("seconds")
    labels = {**record.others(*_OWN_COLUMNS), **record.mapping("labels")}
    text = record.words("text")
    own_negative = record.name("negative") or negative
    if own_seconds is None:
        own_seconds = seconds
    try:
        return _prompt(text, own_negative, own_seconds, labels, record.name("id"))
    except UserError as error:
        raise UserError(f"{record.where}: {error}") from None


def _prompt(
    text: str, negative: str, seconds: float, labels: dict[str, Any], name: str = ""
) -> Prompt:
    return Prompt(
        name or prompt_id(text, negative, seconds), text, negative, float(seconds), labels=labels
    )
