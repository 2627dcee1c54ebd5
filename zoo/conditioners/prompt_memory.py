"""Caches the outputs of frozen text encoders, so that the encoders can be dropped afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zoo.conditioners.tokenizer import refused
from zoo.errors import UserError
from zoo.types import Prompt

CAPACITY = 16_384  # texts kept: 60 to 100 kB each at full size


class PromptMemory:
    """Encodes every text once: ``memory(prompt)`` returns the first ``encode(text, length)``.

    - ``encode``: returns tensors, or a record of them, in main memory.
    - ``tokenize``: returns the ids of a text and raises ``UserError`` for too many; None for a
      model without a tokenizer, which cannot read prompts.
    - ``in_pairs``: a prompt and its negative are padded to the longer of the two; ``length`` is its
      count of tokens, else None.
    """

    def __init__(
        self,
        encode: Callable[[str, int | None], Any],
        tokenize: Callable[[str], list[int]] | None,
        in_pairs: bool = False,
    ) -> None:
        self._encode = encode
        self._tokenize = tokenize
        self._in_pairs = in_pairs
        self._kept: dict[tuple[str, int | None], Any] = {}
        self._closed = False

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text, with special tokens.

        Raises ``UserError`` without a tokenizer and for too many tokens.
        """
        if self._tokenize is None:
            raise UserError(
                "this model has no tokenizer, so it cannot read prompts; give it the tokenizer.json"
                " of its text encoder, google/flan-t5-large for the Tangos:"
                " zoo.load(NAME, tokenizer=FILE)"
            )
        return self._tokenize(text)

    def __call__(self, prompt: Prompt) -> Any:
        """The encoded text of a prompt.

        Raises ``UserError`` for too many tokens, without a tokenizer, and after ``close`` for a
        text that was not encoded before.
        """
        key = self._key(prompt)
        if key not in self._kept:
            if self._closed:
                length = "" if key[1] is None else f" (at {key[1]} tokens)"
                raise UserError(
                    f"the text encoders were dropped and {prompt.text[:60]!r}{length} was not"
                    " encoded before; give all prompts to drop_text_encoders"
                )
            if len(self._kept) >= CAPACITY:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = self._encode(*key)
        return self._kept[key]

    def _key(self, prompt: Prompt) -> tuple[str, int | None]:
        if not self._in_pairs:
            return prompt.text, None
        return prompt.text, max(len(self.tokens(text)) for text in (prompt.text, prompt.negative))

    def remember(self, prompts: Sequence[Prompt]) -> None:
        """Encodes prompts and their negatives, with and without guidance, and keeps the results.

        Raises ``UserError`` for more texts than the memory holds, and like a call.
        """
        for prompt in prompts:
            for side in (prompt, prompt.as_negative(), prompt.without_negative()):
                if self._key(side) not in self._kept and len(self._kept) >= CAPACITY:
                    raise UserError(
                        f"too many texts: at most {CAPACITY} are kept; keep the text encoders for"
                        " more prompts than that"
                    )
                self(side)

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> the tokenizer's message about a text with too many tokens.

        Negatives are checked where prompts are encoded in pairs.
        """
        if self._tokenize is None:
            return {}
        found = {}
        if self._in_pairs:
            found = refused({prompt.id: prompt.negative for prompt in prompts}, self.tokens)
        return found | refused({prompt.id: prompt.text for prompt in prompts}, self.tokens)

    def forget(self) -> None:
        """Forgets all texts, for new weights; after ``close`` they stay, as none can be encoded."""
        if not self._closed:
            self._kept.clear()

    def close(self) -> None:
        """Refuses new texts from now on, because the encoders are dropped."""
        self._closed = True
