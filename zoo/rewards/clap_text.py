"""Texts to token ids for a CLAP whose tokenizer is stored with its weights, as bytes.

Kept as a tensor, so an artefact needs no other file and no network. The format is that of
huggingface/tokenizers; it is data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.conditioners.tokenizer import check_vocabulary
from zoo.errors import UserError, did_you_mean

LONG_TEXTS = ("refuse", "cut")
NO_TOKENIZER = "none"  # of towers that embed audio alone


def contents_key(tensors: Iterable[Tensor]) -> tuple:
    """Another one after the tensors were written to, replaced, cast or moved.

    (A write through ``.data`` is not seen.)
    """
    return tuple(
        (
            tensor.data_ptr(),
            None if tensor.is_inference() else tensor._version,
            tensor.device,
            tensor.dtype,
        )
        for tensor in tensors
    )


class ClapTokenizer(nn.Module):
    """Texts to ids with a tokenizer that is kept as bytes.

    Args:
        json_bytes: the content of a tokenizer.json, or a number: room for so many bytes, which come
            with the weights.
        vocab_size: of the text tower.
        pad_id: fills shorter rows.
        max_tokens: the longest text, start and end tokens included.
        long_texts: "refuse": longer texts raise ``UserError``; "cut": they lose what is too much
            before the end token, as in laion_clap.

    Raises: ``UserError`` for an unknown rule, and for an invalid tokenizer or that of another
        tower.
    """

    def __init__(
        self,
        json_bytes: bytes | int,
        vocab_size: int,
        pad_id: int = 1,
        max_tokens: int = 77,
        long_texts: str = "refuse",
    ) -> None:
        super().__init__()
        if long_texts not in LONG_TEXTS:
            raise UserError(
                f"unknown long_texts {long_texts!r}; {did_you_mean(long_texts, LONG_TEXTS)}"
            )
        if max_tokens < 3:
            raise UserError(
                f"max_tokens must leave room for one token between start and end, got {max_tokens}"
            )
        self.vocab_size = vocab_size
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.long_texts = long_texts
        empty = isinstance(json_bytes, int)
        content = bytearray(json_bytes)  # of a number: as many zeros
        self.register_buffer("json", torch.frombuffer(content, dtype=torch.uint8).clone())
        self._parsed: Any = None
        self._parsed_of: tuple | None = None
        if not empty:
            self._tokenizer()

    def _tokenizer(self) -> Any:
        """The tokenizer, read again when the bytes have changed.

        Raises ``UserError`` for an invalid one.
        """
        key = contents_key([self.json])
        if self._parsed_of == key:
            return self._parsed
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(bytes(self.json.cpu().numpy()).decode("utf-8"))
        except Exception as error:  # the library raises Exception itself
            raise UserError(
                f"tokenizer.json cannot be read ({error}); save the tokenizer again"
            ) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        check_vocabulary(tokenizer, "this tokenizer")
        if len(tokenizer.encode("dog").ids) < 3:
            raise UserError(
                "this tokenizer sets no start and end tokens, which CLAP's text tower expects; save"
                " it again with them"
            )
        if tokenizer.get_vocab_size() > self.vocab_size:
            raise UserError(
                f"this tokenizer has {tokenizer.get_vocab_size()} tokens, the text tower knows"
                f" {self.vocab_size}: they do not belong together"
            )
        self._parsed = tokenizer
        self._parsed_of = key
        return tokenizer

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L), int64, padded to the longest, on the buffer's device.

        Raises ``UserError``.
        """
        rows = [encoding.ids for encoding in self._tokenizer().encode_batch(list(texts))]
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            if len(row) > self.max_tokens and self.long_texts == "refuse":
                raise UserError(
                    f"a text has {len(row)} tokens, at most {self.max_tokens} are read:"
                    f" {text[:60]!r}...; shorten it, or set long_texts=cut"
                )
            rows[i] = row if len(row) <= self.max_tokens else [*row[: self.max_tokens - 1], row[-1]]
        ids_BL = torch.full((len(rows), max(map(len, rows), default=0)), self.pad_id)
        mask_BL = torch.zeros_like(ids_BL)
        for i, row in enumerate(rows):
            ids_BL[i, : len(row)] = torch.tensor(row)
            mask_BL[i, : len(row)] = 1
        return ids_BL.to(self.json.device), mask_BL.to(self.json.device)


def refuse_names(pretrained: Any, tokenizer: Any) -> None:
    """Raises ``UserError`` for names of files, which are read before towers are built."""
    for key, given in (("pretrained", pretrained), ("tokenizer", tokenizer)):
        if isinstance(given, str) and (key, given) != ("tokenizer", NO_TOKENIZER):
            raise UserError(
                f"{key}: {given!r} names files; read them first: "
                "zoo.importers.pretrained_clap.with_files(arguments)"
            )
