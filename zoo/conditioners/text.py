"""The small text encoder of the embedded models: from words and bytes to tokens and vectors.

The vocabulary is open: each word of a fixed list (music, moods, everyday sounds and their grammar,
directions, motion, order) has one token; any other word is spelled in bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import UserError

PAD, EMPTY, _FIRST_BYTE, _FIRST_WORD = 0, 1, 2, 258
_WORDS = """
a an the and of in on at with from to by for as is are while then after before during followed next
first second last finally
again both together simultaneously meanwhile once twice one two three several multiple many single
solo recording sound sounds
source sources music piece noise quality high low clear good bad instrumental playing plays played
played' melody
happy joyful cheerful upbeat angry aggressive intense ferocious sad mournful somber sorrowful tender
gentle soft soothing
calm quiet loud fast slow bright dark warm
piano guitar acoustic electric harp vibraphone marimba music-box violin cello flute trumpet
saxophone drums drum organ bass bell
left right front behind back center middle ahead above below up down near far close distant side
directly slightly diagonally moves moving move passes passing approaches approaching leaves leaving
jumps turns rotating
slowly quickly suddenly gradually instantly
dog cat bird birds horse cow sheep rooster frog insect car truck bus train plane helicopter boat
engine siren horn door water
rain wind thunder fire footsteps man woman child person people crowd speech speaking laughing
clapping whistling singing
barking meowing chirping ringing knocking
joined hit note electronic being starting flying percussion tom blowing taking off departing running
mooing bleating neighing
growling screeching monkeys honking struck
applause beep bubble burp cash chainsaw choir chop circular cowbell crash crow cymbal drone
explosion fall finger glass hammer
hiss jackhammer jet lion loop machinery primate propeller register saw scratch ship snap snare spark
steam synth tabla tree
whistle whoosh
"""
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        word for word in _WORDS.split() if word.isascii() and word.replace("-", "").isalpha()
    )
)
_INDEX = {word: _FIRST_WORD + position for position, word in enumerate(WORDS)}
# has room for new words; the list only grows at its end, so that old weights stay valid
VOCABULARY_SIZE = 512


def tokenize(text: str, max_tokens: int = 64) -> list[int]:
    """Token ids of a caption, case-folded and without punctuation.

    A text without words gives ``[EMPTY]``. Raises ``UserError`` for more than ``max_tokens``.
    """
    ids: list[int] = []
    for word in re.findall(r"[\w'-]+", text.casefold()):
        if word in _INDEX:
            ids.append(_INDEX[word])
        else:
            ids += [_FIRST_BYTE + byte for byte in f"{word} ".encode()]
    if len(ids) > max_tokens:
        raise UserError(
            f"the caption {text[:60]!r}... needs {len(ids)} tokens, the model takes {max_tokens};"
            " shorten it (words outside the vocabulary cost one token per byte)"
        )
    return ids or [EMPTY]


class TextEncoder(nn.Module):
    """Maps captions to ``tokens_BLD`` and ``mask_BL``: a small pre-norm transformer."""

    def __init__(
        self, width: int = 128, depth: int = 2, heads: int = 4, max_tokens: int = 64
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.embedding = nn.Embedding(VOCABULARY_SIZE, width)
        self.position = nn.Parameter(0.02 * torch.randn(max_tokens, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                2 * width,
                dropout=0.0,
                activation=F.gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [tokenize(text, self.max_tokens) for text in texts]
        length = max(len(row) for row in rows)
        ids = torch.tensor(
            [row + [PAD] * (length - len(row)) for row in rows], device=self.position.device
        )
        mask_BL = ids != PAD
        hidden = self.embedding(ids) + self.position[:length]
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~mask_BL)
        return self.norm(hidden) * mask_BL[..., None], mask_BL
