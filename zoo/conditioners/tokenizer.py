"""Tokenizes prompts with the tokenizer of a released text encoder.

The tokenizer is stored as text in the model's arguments.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import UserError

# equally long: a stand-in without a vocabulary still counts the words
_CAPTIONS = ("a dog barks", "rain falls on")
_MOST_BYTES = 64 * 2**20  # of a tokenizer's JSON; the largest in use are a few megabytes


def pack_tokenizer(json_text: str) -> str:
    """Packs a ``tokenizer.json`` into one line of ASCII (zlib, base 64) for ``PromptTokenizer``."""
    return base64.b64encode(zlib.compress(json_text.encode("utf-8"), 9)).decode("ascii")


def _unpacked(packed: str, what: str) -> str:
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(packed, validate=True), _MOST_BYTES)
        if stream.unconsumed_tail or not stream.eof:
            raise UserError(f"it is cut off, or unpacks to more than {_MOST_BYTES} bytes")
        return content.decode("utf-8")
    except (ValueError, TypeError, zlib.error) as error:
        advice = "pack_tokenizer makes one from the text of a tokenizer.json"
        raise UserError(f"the {what} tokenizer cannot be read ({error}); {advice}") from error


def refused(texts: Mapping[str, str], read: Callable[[str], Any]) -> dict[str, str]:
    """Name -> message of the ``texts`` (name -> text) that the tokenizer ``read`` refuses."""
    found = {}
    for name, text in texts.items():
        try:
            read(text)
        except UserError as error:
            found[name] = str(error)
    return found


def check_vocabulary(tokenizer: Any, what: str) -> None:
    """Raises ``UserError`` when a ``tokenizers.Tokenizer`` has no vocabulary.

    Where the vocabulary files are missing, libraries silently build a stand-in in which every word
    is "unknown". So two captions of equal length must have different tokens, and their tokens must
    decode to the captions.
    """
    rows = [tokenizer.encode(caption, add_special_tokens=False).ids for caption in _CAPTIONS]
    if rows[0] == rows[1]:
        raise UserError(
            f"{what} gives {_CAPTIONS[0]!r} and {_CAPTIONS[1]!r} the same tokens: it is an empty"
            " stand-in without a vocabulary; fetch the tokenizer's files again (tokenizer.json)"
        )
    for caption, row in zip(_CAPTIONS, rows, strict=True):
        back = tokenizer.decode(row)
        if _letters(back) != _letters(caption):
            raise UserError(
                f"{what} turns {caption!r} into tokens that read {back[:60]!r}: its vocabulary is"
                " not whole; fetch the tokenizer's files again (tokenizer.json)"
            )


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.casefold())


class PromptTokenizer:
    """``tokenizer(text) -> ids``: at most ``max_tokens``, with the encoder's special tokens.

    ``packed`` comes from ``pack_tokenizer``; ``what`` names the encoder in errors. Raises
    ``UserError`` when ``packed`` is not a tokenizer or has no vocabulary (``check_vocabulary``).
    """

    def __init__(self, packed: str, max_tokens: int, what: str) -> None:
        from tokenizers import Tokenizer

        self.max_tokens = max_tokens
        self._what = what
        try:
            self._tokenizer = Tokenizer.from_str(_unpacked(packed, what))
        except UserError:
            raise
        except Exception as error:  # the library raises plain Exception
            reason = str(error)[:120]
            raise UserError(
                f"the {what} tokenizer is not the contents of a tokenizer.json ({reason})"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        check_vocabulary(self._tokenizer, f"the {what} tokenizer")

    def __call__(self, text: str, truncate: bool = False) -> list[int]:
        """The ids of a text; ``truncate`` cuts them to ``max_tokens`` and keeps special tokens.

        Raises ``UserError`` for too many tokens without ``truncate``.
        """
        ids = self._tokenizer.encode(text).ids
        if len(ids) <= self.max_tokens:
            return ids
        if not truncate:
            raise UserError(
                f"the prompt {text[:60]!r}... has {len(ids)} tokens, {self._what} takes"
                f" {self.max_tokens}; shorten it"
            )
        self._tokenizer.enable_truncation(self.max_tokens)
        try:
            return self._tokenizer.encode(text).ids
        finally:
            self._tokenizer.no_truncation()
