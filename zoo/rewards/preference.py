"""Would people say that a clip fits its caption: a small head on a frozen CLAP, as a reward.

Source: BATON (arXiv 2402.00744) and its code. A CLAP embeds clip and caption once, without
gradient; a head of two layers, trained on people's labels (lightning_modules/preference_model.py),
turns both embeddings into a probability. What a head on another CLAP says means nothing, so the
CLAP is part of the model and is saved with it.

Shapes: ``E`` numbers per embedding, ``F`` features of the head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import UserError, did_you_mean
from zoo.rewards.members import described, reward_node, reward_of
from zoo.rewards.waves import StaysInEvalMode, check_waves
from zoo.types import Prompt, RewardOutput

FEATURES = ("concat", "match")
_NEEDED = ("embed_audio", "embed_text", "name")  # of a CLAP


def head_features(audio_BE: Tensor, text_BE: Tensor, features: str) -> Tensor:
    """What the head hears of unit embeddings (B, E).

    Args:
        audio_BE, text_BE: of clips and of their captions.
        features: "concat" (as BATON): the embedding of the clip, then that of the caption, (B, 2E).
            "match": their product times E, the size of their difference times sqrt(E), and their
            cosine, (B, 2E + 1). The factors bring the numbers near 1. Unlike "concat" it cannot
            learn which captions are easy, only how a clip meets its caption.
    """
    if features == "concat":
        return torch.cat([audio_BE, text_BE], dim=-1)
    count = audio_BE.shape[-1]
    product_BE = audio_BE * text_BE
    difference_BE = (audio_BE - text_BE).abs()
    cosine_B1 = product_BE.sum(dim=-1, keepdim=True)
    return torch.cat([product_BE * count, difference_BE * math.sqrt(count), cosine_B1], dim=-1)


class PreferenceHead(nn.Module):
    """Linear, ReLU, Linear: embeddings of clips and captions (B, E) to logits (B,).

    ``fc1`` and ``fc2`` have the names of BATON's files. Each listener may have a vector that is
    added before the ReLU; without a listener it is the mean of all of them.
    """

    def __init__(
        self,
        embedding: int = 512,
        hidden: int = 512,
        features: str = "concat",
        dropout: float = 0.0,
        listeners: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if features not in FEATURES:
            raise UserError(f"invalid features {features!r}; {did_you_mean(features, FEATURES)}")
        if embedding < 1 or hidden < 1:
            raise UserError(
                f"invalid embedding {embedding} or hidden {hidden}: expected whole numbers >= 1"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"invalid dropout {dropout}: expected a share from 0 to below 1")
        if len(set(listeners)) != len(listeners):
            doubled = next(name for name in listeners if list(listeners).count(name) > 1)
            raise UserError(f"listeners: {doubled!r} occurs twice")
        self.embedding = embedding
        self.features = features
        self.rows = {name: row for row, name in enumerate(listeners)}
        self.fc1 = nn.Linear(2 * embedding + (features == "match"), hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, 1)
        if listeners:
            self.listener = nn.Embedding(len(listeners), hidden)
            nn.init.zeros_(self.listener.weight)  # all hear alike until the labels say otherwise

    def forward(
        self,
        audio_BE: Tensor,
        text_BE: Tensor,
        listeners: Sequence[str | None] | None = None,
    ) -> Tensor:
        """Logits (B,), float32.

        Raises ``UserError`` for embeddings of another size and for an unknown listener.
        """
        if audio_BE.shape[-1] != self.embedding or text_BE.shape[-1] != self.embedding:
            got = sorted({audio_BE.shape[-1], text_BE.shape[-1]})
            raise UserError(
                f"the head takes embeddings of {self.embedding} numbers, this CLAP gives"
                f" {' and '.join(map(str, got))}; set embedding to that"
            )
        inputs_BF = head_features(audio_BE, text_BE, self.features)
        hidden_BH = self.fc1(inputs_BF.to(self.fc1.weight.dtype))
        if self.rows:
            hidden_BH = hidden_BH + self._listener_vectors(listeners, len(audio_BE))
        hidden_BH = self.dropout(functional.relu(hidden_BH))
        return self.fc2(hidden_BH).squeeze(-1).float()

    def _listener_vectors(self, listeners: Sequence[str | None] | None, count: int) -> Tensor:
        """(B, H): one's own vector, or the mean of all."""
        mean_H = self.listener.weight.mean(dim=0)
        vectors = []
        for name in listeners if listeners is not None else [None] * count:
            if name is not None and name not in self.rows:
                raise UserError(f"unknown listener {name!r}; {did_you_mean(name, self.rows)}")
            vectors.append(mean_H if name is None else self.listener.weight[self.rows[name]])
        return torch.stack(vectors)


class PreferenceReward(StaysInEvalMode):
    """Scores clips by the probability that people say: it fits the caption (``prompt.text``).

    Clips are resampled to the CLAP's rate and heard in its windows, the same ones every time. Parts
    are the logit, and the CLAP's own cosine under its name, so that every table shows what the head
    adds to it.

    Args:
        clap: a ``ClapReward`` (an object or ``{architecture:, arguments:}``; in a configuration
            also a zoo name). It is frozen.
        embedding: numbers per embedding of this CLAP; 512 for LAION's.
        hidden: width of the head.
        features: see ``head_features``.
        dropout: of the hidden layer, in training only.
        listeners: names of listeners with a vector of their own. A score is that of their mean.

    Raises: ``UserError`` for other values, and for a reward that is not a CLAP.
    """

    unit = "probability that people hear what the prompt asks for; 1 is best"
    bounds = (0.0, 1.0)

    @staticmethod
    def with_nodes(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in a configuration, with a node in place of the name of a CLAP."""
        return {
            key: reward_node(value) if key == "clap" else value for key, value in arguments.items()
        }

    def __init__(
        self,
        clap: Any,
        embedding: int = 512,
        hidden: int = 512,
        features: str = "match",
        dropout: float = 0.0,
        listeners: Sequence[str] = (),
    ) -> None:
        super().__init__()
        clap = reward_of(clap, "clap")
        lacked = [name for name in _NEEDED if not hasattr(clap, name)]
        if lacked or not isinstance(clap, nn.Module):
            raise UserError(
                f"clap: a {type(clap).__name__} is not a CLAP (it has no"
                f" {', '.join(lacked) or 'weights'}); give one such as embedded/clap"
            )
        self.clap = clap.requires_grad_(False)
        self.head = PreferenceHead(embedding, hidden, features, dropout, listeners)
        self.differentiable = bool(clap.differentiable)
        own = described(clap)
        self.arguments = None
        if own is not None:  # else it has no artefact form
            self.arguments = {
                "clap": own,
                "embedding": embedding,
                "hidden": hidden,
                "features": features,
                "dropout": dropout,
                "listeners": list(listeners),
            }
        self.eval()

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what the CLAP says of its text if it refuses it (too many tokens)."""
        ask = getattr(self.clap, "too_long", None)
        return {} if ask is None else ask(prompts)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ``UserError`` for a prompt without text."""
        for prompt in prompts:
            if not prompt.text.strip():
                raise UserError(
                    f"prompt {prompt.id!r} has no text; this reward compares a clip with its"
                    " caption, so give it one"
                )

    def forward(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        """Score (B,), the probability; parts ``logit`` and the CLAP's cosine under its name.

        All are NaN for a wave that is not finite. Raises ``UserError`` for a wrong shape, rate or
        number of prompts, and for a prompt without text.
        """
        check_waves(wave_BCN, sample_rate_hz, "the preference reward", len(prompts))
        self.check_prompts(prompts)
        audio_BE = self.clap.embed_audio(wave_BCN, sample_rate_hz).float()
        text_BE = self.clap.embed_text([prompt.text for prompt in prompts]).to(audio_BE)
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            logit_B = self.head(audio_BE, text_BE)
        cosine_B = (audio_BE * text_BE).sum(dim=-1)
        parts = {"logit": logit_B.detach(), self.clap.name: cosine_B.detach()}
        return RewardOutput(logit_B.sigmoid(), parts)
