"""Language-of-audio tokens (AudioLDM 2, arXiv 2308.05734): a language model continues vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import UserError


def loa_tokens(
    language_model: nn.Module, inputs_BLD: Tensor, mask_BL: Tensor, count: int
) -> Tensor:
    """Continues ``inputs_BLD`` by ``count`` vectors (B, count, D) of a ``GPT2Model``.

    Each vector is the last layer's state at the last position and becomes the next input; keys and
    values of earlier positions are cached. ``mask_BL`` (bool or 0/1) is False at padding. Trap:
    positions count padding, so the result depends on the padded length. Raises ``UserError`` when
    the sequence and its continuation exceed the model's positions.
    """
    positions = language_model.config.n_positions
    if inputs_BLD.shape[1] + count - 1 > positions:
        raise UserError(
            f"{inputs_BLD.shape[1]} inputs and {count} tokens exceed the {positions} positions of"
            " the language model; shorten the prompt"
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
