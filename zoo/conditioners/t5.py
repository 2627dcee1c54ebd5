"""States of a frozen T5 encoder (arXiv 1910.10683), in any precision of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.conditioners.tokenizer import PromptTokenizer
from zoo.errors import UserError

if TYPE_CHECKING:
    from transformers import T5Config, T5EncoderModel


def fitting_tokenizer(packed: str, max_tokens: int, config: T5Config) -> PromptTokenizer:
    """The ``PromptTokenizer`` of an encoder.

    Raises ``UserError`` for a tokenizer that does not belong to ``config``.
    """
    tokenizer = PromptTokenizer(packed, max_tokens, "T5")
    ids = tokenizer("a dog barks", truncate=True)
    words = config.vocab_size
    last = config.eos_token_id
    if ids[-1] != last or max(ids) >= words:
        raise UserError(
            f"the tokenizer does not belong to the text encoder: it makes {ids}, expected ids below"
            f" {words} that end with {last}"
        )
    return tokenizer


@torch.no_grad()
def t5_states(encoder: T5EncoderModel, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """The encoder's states (B, L, D), on its device and in its type.

    ``mask_BL`` (bool) is False at padding, which is not attended to. Trap: in a float16 encoder
    this permanently converts the last layers of the feed-forward blocks to float32, as transformers
    does, because their outputs are too large for float16. Raises ``UserError`` when the encoder
    overflows anyway.
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
