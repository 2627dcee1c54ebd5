"""A frozen T5 encoder that reads each text once: its states of all texts stay in main memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.conditioners.tokenizer import PromptTokenizer, refused
from zoo.types import Prompt

CACHED_TEXTS = 16_384  # encoded texts kept, in main memory: 60 kB each at full size


class FrozenT5(nn.Module):
    """``config``: of ``T5Config``. ``tokenizer``: by ``pack_tokenizer``; without one no text can be read. ``max_tokens``: of a
    text with its end; ``truncate`` cuts longer ones instead of refusing them. It runs on the device it lies on.

    Raises ``ValueError`` for a tokenizer that does not belong to the encoder.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: str | None, max_tokens: int, truncate: bool = False) -> None:
        from transformers import T5Config, T5EncoderModel

        super().__init__()
        self.encoder = T5EncoderModel(T5Config(**config))
        self.max_tokens, self.truncate, self.width = max_tokens, truncate, int(self.encoder.config.d_model)
        self._tokenizer = None if tokenizer is None else PromptTokenizer(tokenizer, max_tokens, "T5")
        if self._tokenizer is not None:
            ids, words, last = self.tokens("a dog barks"), self.encoder.config.vocab_size, self.encoder.config.eos_token_id
            if ids[-1] != last or max(ids) >= words:
                raise ValueError(f"the tokenizer does not belong to the text encoder: it makes {ids}, expected ids below {words} "
                                 f"that end with {last}")  # fmt: skip
        self._cache: dict[tuple[str, int], Tensor] = {}

    def tokens(self, text: str) -> list[int]:
        """Ids with their end. Raises ``ValueError`` without a tokenizer, and for too many tokens unless they are cut."""
        if self._tokenizer is None:
            raise ValueError("this model has no tokenizer, so it cannot read prompts; give that of its T5 encoder")
        return self._tokenizer(text, self.truncate)

    def forward(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """States (B, L, D), zeros beyond a text's end, and their mask (B, L); L is ``length``, else that of the longest text.

        In main memory. Raises ``ValueError`` for a text of too many tokens, and one that was not read before ``drop``.
        """
        rows = [self.read(text) for text in texts]
        length = length or max(len(row) for row in rows)
        states = torch.stack([nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])
        return states, torch.arange(length)[None] < torch.tensor([[len(row)] for row in rows])

    def read(self, text: str, length: int | None = None) -> Tensor:
        """States (L, D) in main memory, kept. L: its tokens, or ``length`` with padding that is read (and masked) as well.

        Raises as ``forward``.
        """
        key = (text, length or 0)
        if key not in self._cache:
            if self.encoder is None:
                raise ValueError(f"the text encoder was dropped and {text[:60]!r} was not encoded before; give all prompts to "
                                 "drop_text_encoders")  # fmt: skip
            if len(self._cache) >= CACHED_TEXTS:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._encoded(self.tokens(text), length).cpu()
        return self._cache[key]

    @torch.no_grad()
    def _encoded(self, ids: list[int], length: int | None) -> Tensor:
        padding = [self.encoder.config.pad_token_id] * (0 if length is None else length - len(ids))
        ids_BL = torch.tensor([ids + padding], device=self.encoder.device)
        mask_BL = torch.tensor([[1] * len(ids) + [0] * len(padding)], device=self.encoder.device)
        states = self.encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state[0]
        if not torch.isfinite(states).all():
            raise ValueError(f"the text encoder overflows in {states.dtype}; keep it in float32 or bfloat16 "
                             "(backbone.text.float())")  # fmt: skip
        return states

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what the tokenizer says of its text if that has too many tokens."""
        return refused({prompt.id: prompt.text for prompt in prompts}, self.tokens if self._tokenizer else len)

    def remember(self, texts: Iterable[tuple[str, int | None]]) -> None:
        """Reads texts at their lengths (``read``). Raises ``ValueError`` for more than are kept."""
        for text, length in dict.fromkeys(texts):
            if (text, length or 0) not in self._cache and len(self._cache) >= CACHED_TEXTS:
                raise ValueError(f"{CACHED_TEXTS} texts are kept at most; keep the text encoder for more prompts than that")
            self.read(text, length)

    def forget(self) -> None:
        """For new weights: texts are read again."""
        self._cache.clear()

    def drop(self) -> None:
        """Frees the encoder: texts that were not read before are refused from then on."""
        self.encoder = None
