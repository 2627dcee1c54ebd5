"""Prompts to token ids with the tokenizer of a released text encoder, which travels inside the
model's arguments as text.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import UserError

# of as many words: a stand-in that knows no word still counts them
_CAPTIONS = ("a dog barks", "rain falls on")
_PACKED_BYTES = 64 * 2**20  # of a tokenizer's JSON; the largest in use are a few megabytes


def pack_tokenizer(json_text: str) -> str:
    """The contents of a ``tokenizer.json`` as one short line of ASCII, for ``PromptTokenizer``:
    zlib, then base 64.
    """
    return base64.b64encode(zlib.compress(json_text.encode("utf-8"), 9)).decode("ascii")


def _unpacked(packed: str, what: str) -> str:
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(packed, validate=True), _PACKED_BYTES)
        if stream.unconsumed_tail or not stream.eof:
            raise UserError(f"it is cut off, or unpacks to more than {_PACKED_BYTES} bytes")
        return content.decode("utf-8")
    except (ValueError, TypeError, zlib.error) as error:
        made = "pack_tokenizer makes one of the text of a tokenizer.json"
        raise UserError(f"the {what} tokenizer cannot be read ({error}); {made}") from error


def refused(texts: Mapping[str, str], read: Callable[[str], Any]) -> dict[str, str]:
    """Of ``texts`` (name -> text) those for which ``read``, a tokenizer, raises ``UserError``:
    name -> what it says.
    """
    found = {}
    for name, text in texts.items():
        try:
            read(text)
        except ValueError as error:
            found[name] = str(error)
    return found


def check_vocabulary(tokenizer: Any, what: str) -> None:
    """Raises ``UserError`` when a ``tokenizers.Tokenizer`` does not know the words of plain
    captions.

    Libraries build such a stand-in without an error where the files of a vocabulary are missing:
    all words are "unknown", and captions of as many words mean the same. Two captions of equal
    length must differ, and come back out of their tokens.
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
    """``tokenizer(text) -> ids`` with the special tokens that its encoder expects, at most
    ``max_tokens`` of them.

    ``packed``: by ``pack_tokenizer``. ``what`` names the encoder in errors. Raises ``UserError``
    when it is no tokenizer, or one
    without a vocabulary (``check_vocabulary``).
    """

    def __init__(self, packed: str, max_tokens: int, what: str) -> None:
        from tokenizers import Tokenizer

        self.max_tokens, self._what = max_tokens, what
        try:
            self._tokenizer = Tokenizer.from_str(_unpacked(packed, what))
        except ValueError:
            raise
        except Exception as error:  # the library raises plain Exception
            said = str(error)[:120]
            raise UserError(
                f"the {what} tokenizer is not the contents of a tokenizer.json ({said})"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        check_vocabulary(self._tokenizer, f"the {what} tokenizer")

    def __call__(self, text: str, truncate: bool = False) -> list[int]:
        """Raises ``UserError`` for a text of too many tokens, unless ``truncate`` cuts it (special
        tokens stay).
        """
        ids = self._tokenizer.encode(text).ids
        if len(ids) <= self.max_tokens:
            return ids
        if not truncate:
            said = f"{text[:60]!r}... has {len(ids)} tokens, {self._what} takes {self.max_tokens}"
            raise UserError(f"the prompt {said}; shorten it")
        self._tokenizer.enable_truncation(self.max_tokens)
        try:
            return self._tokenizer.encode(text).ids
        finally:
            self._tokenizer.no_truncation()
