"""What frozen text encoders make of prompts: every text is read once and kept in main memory, and
then the encoders may go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zoo.conditioners.tokenizer import refused
from zoo.errors import UserError
from zoo.types import Prompt

CAPACITY = 16_384  # texts kept: 60 to 100 kB each at full size


class PromptMemory:
    """``memory(prompt)`` is what ``encode(text, length)`` gave for the prompt's text when it was
    asked for first.

    ``encode`` gives tensors, or a record of them, in main memory. ``tokenize``: a text's ids,
    ``UserError`` for too many; None for a model without a tokenizer, which reads nothing.
    ``in_pairs``: a prompt and its negative are padded to the longer of the two before they are
    read; ``length`` is then its count of tokens, else None.
    """

    def __init__(
        self,
        encode: Callable[[str, int | None], Any],
        tokenize: Callable[[str], list[int]] | None,
        in_pairs: bool = False,
    ) -> None:
        self._encode, self._tokenize, self._in_pairs = encode, tokenize, in_pairs
        self._kept: dict[tuple[str, int | None], Any] = {}
        self._closed = False

    def tokens(self, text: str) -> list[int]:
        """Ids of a text with their special tokens.

        Raises ``UserError`` without a tokenizer and for too many tokens.
        """
        if self._tokenize is None:
            raise UserError(
                "this model has no tokenizer, so it cannot read prompts; give it the tokenizer.json"
                " of its text encoder, google/flan-t5-large for the Tangos: from_pretrained(...,"
                " tokenizer=FILE)"
            )
        return self._tokenize(text)

    def __call__(self, prompt: Prompt) -> Any:
        """Raises ``UserError`` for too many tokens, without a tokenizer, and after ``close`` for
        what was not read before.
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
        """Reads prompts, with and without guidance, and their negatives, and keeps all of it.

        Raises ``UserError`` for more texts than are kept, and as a call.
        """
        for prompt in prompts:
            for side in (prompt, prompt.as_negative(), prompt.without_negative()):
                if self._key(side) not in self._kept and len(self._kept) >= CAPACITY:
                    raise UserError(
                        f"{CAPACITY} texts are kept at most; keep the text encoders for more"
                        " prompts than that"
                    )
                self(side)

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what the tokenizer says of a text with too many tokens; negatives count
        where they are read in pairs.
        """
        if self._tokenize is None:
            return {}
        found = (
            refused({prompt.id: prompt.negative for prompt in prompts}, self.tokens)
            if self._in_pairs
            else {}
        )
        return found | refused({prompt.id: prompt.text for prompt in prompts}, self.tokens)

    def forget(self) -> None:
        """For new weights: texts are read again; after ``close``, when nothing can be, they stay."""
        if not self._closed:
            self._kept.clear()

    def close(self) -> None:
        """The encoders are gone: texts that were not read before are refused from now on."""
        self._closed = True
