"""Language-of-audio tokens (AudioLDM 2, arXiv 2308.05734): a language model that continues a
sequence of vectors, not words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import UserError


def loa_tokens(
    language_model: nn.Module, inputs_BLD: Tensor, mask_BL: Tensor, count: int
) -> Tensor:
    """The ``count`` vectors (B, count, D) with which ``language_model`` (a ``GPT2Model``) continues
    ``inputs_BLD``.

    Each is the last layer's state at the last position and becomes the next input; keys and values
    of what went before are kept. ``mask_BL`` (bool or 0/1) is False at padding. Positions count
    padding too, so what comes out depends on the padded length: give every sequence the length that
    it is meant to have. Raises ``UserError`` when the sequence and its continuation are longer
    than the model's positions.
    """
    positions = language_model.config.n_positions
    if inputs_BLD.shape[1] + count - 1 > positions:
        raise UserError(
            f"{inputs_BLD.shape[1]} inputs and {count} tokens are more than the {positions}"
            " positions of the language model; shorten the prompt"
        )
    mask = mask_BL.long()
    output = language_model(inputs_embeds=inputs_BLD, attention_mask=mask, use_cache=True)
    tokens = [output.last_hidden_state[:, -1:]]
    while len(tokens) < count:
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = language_model(
            inputs_embeds=tokens[-1],
            attention_mask=mask,
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        tokens.append(output.last_hidden_state[:, -1:])
    return torch.cat(tokens, dim=1)
