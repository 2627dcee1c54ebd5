"""Texts to states of a frozen T5 encoder (arXiv 1910.10683), in whatever precision the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.conditioners.tokenizer import PromptTokenizer
from zoo.errors import UserError

if TYPE_CHECKING:
    from transformers import T5Config, T5EncoderModel


def fitting_tokenizer(packed: str, max_tokens: int, config: T5Config) -> PromptTokenizer:
    """The tokenizer of an encoder (``PromptTokenizer``).

    Raises ``UserError`` for one that does not belong to ``config``.
    """
    tokenizer = PromptTokenizer(packed, max_tokens, "T5")
    ids, words, last = (
        tokenizer("a dog barks", truncate=True),
        config.vocab_size,
        config.eos_token_id,
    )
    if ids[-1] != last or max(ids) >= words:
        raise UserError(
            f"the tokenizer does not belong to the text encoder: it makes {ids}, expected ids below"
            f" {words} that end with {last}"
        )
    return tokenizer


@torch.no_grad()
def t5_states(encoder: T5EncoderModel, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """(B, L, D) on the device and in the type of ``encoder``.

    ``mask_BL`` (bool) is false at padding, which is not attended.

    In float16 the last layers of its feed-forward blocks become float32 for good, as transformers
    loads them: what they give is too large for float16. Raises ``UserError`` when the encoder
    overflows all the same.
    """
    for module in encoder.modules():
        last = getattr(module, "wo", None)
        if isinstance(last, nn.Linear) and last.weight.dtype == torch.float16:
            last.float()
    mask_BL = torch.ones_like(ids_BL) if mask_BL is None else mask_BL
    states_BLD = encoder(
        input_ids=ids_BL.to(encoder.device), attention_mask=mask_BL.to(encoder.device, torch.long)
    ).last_hidden_state
    if not torch.isfinite(states_BLD).all():
        raise UserError(
            f"the text encoder overflows in {states_BLD.dtype}; keep it in float32 or bfloat16 (its"
            " .float())"
        )
    return states_BLD
