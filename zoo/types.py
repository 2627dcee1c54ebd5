"""Records that cross module boundaries, and the roles (Protocols) of backbones and rewards.

Shape suffixes used in the whole project: ``B`` batch, ``C`` channels, ``N`` wave samples, ``T``
latent frames, ``L`` tokens, ``D`` features, ``S`` sampling steps. A latent is written
``latent_BCT`` although a backbone may use more axes (mel latents are ``BCTF``): only axis 0 is
fixed.

Azimuth convention, everywhere: degrees, 0 = right, 90 = front, 180 = left, 270 = behind
(counter-clockwise seen from above). Interaural time difference: positive = sound reaches the right
ear later = the source is on the left.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from zoo.audio_files import Waveform as Waveform  # part of the records; defined with its files
from zoo.errors import UserError


@dataclass(frozen=True)
class SourcePath:
    """Where one sound is and how it moves.

    ``azimuth_start_deg``/``azimuth_end_deg`` follow the convention at the top of this file.
    ``onset_s``/``end_s`` bound the motion in seconds; ``jump_s`` (instead of them) is the moment of
    a jump. ``elevation_deg`` is positive upwards, ``distance_m`` in metres, ``level_db`` relative
    to the other sources.
    """

    azimuth_start_deg: float
    azimuth_end_deg: float | None = None
    onset_s: float | None = None
    end_s: float | None = None
    jump_s: float | None = None
    elevation_deg: float | None = None
    distance_m: float | None = None
    level_db: float | None = None

    def __post_init__(self) -> None:
        if self.jump_s is not None and (self.onset_s is not None or self.end_s is not None):
            raise UserError(
                "a SourcePath either jumps (jump_s) or moves (onset_s, end_s), not both; drop one"
                " of them"
            )


@dataclass(frozen=True)
class Prompt:
    """One request: everything that a backbone or a reward may need.

    ``id`` keys the per-prompt reward statistics and the noise; ``seconds`` is the wanted length;
    ``labels`` holds facts for rewards and logs (``{"mood": "sad", "instrument": "piano"}``).
    """

    id: str
    text: str
    negative: str = ""
    seconds: float = 4.096
    sources: tuple[SourcePath, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise UserError(
                f"prompt {self.id!r}: seconds must be positive and finite, got {self.seconds}"
            )

    def as_negative(self) -> Prompt:
        """The unconditional side of guidance: text and negative swapped, without sources.

        The text stays, as the negative, because some backbones pad a prompt to its negative.
        """
        return replace(self, text=self.negative, negative=self.text, sources=())

    def without_negative(self) -> Prompt:
        """The prompt to encode without guidance: some backbones pad a prompt to its negative."""
        return replace(self, negative="") if self.negative else self

    def samples(self, sample_rate_hz: int) -> int:
        """The fewest wave samples that cover ``seconds`` (at least 1): the length of every clip."""
        return max(1, math.ceil(self.seconds * sample_rate_hz - 1e-6))


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser is conditioned on: named tensors, batch first, one row per sample.

    A stream is a sequence of tokens (``tokens_BLD``), a mask (``mask_BL``, bool) or a plain vector
    (``seconds_B``). Samples share nothing in it. Streams of different lengths are padded with zeros
    (``False`` in masks) when rows are concatenated.
    """

    streams: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        sizes = {name: tensor.shape[0] for name, tensor in self.streams.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(f"every conditioning stream needs one row per sample, got rows {sizes}")

    def __len__(self) -> int:
        return next(iter(self.streams.values())).shape[0]

    def __getitem__(self, name: str) -> Tensor:
        return self.streams[name]

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning({name: function(tensor) for name, tensor in self.streams.items()})

    def rows(self, index: Tensor | slice | Sequence[int]) -> Conditioning:
        """The conditioning of some samples."""
        if not isinstance(index, (Tensor, slice)):
            index = torch.as_tensor(list(index), dtype=torch.long)
        return self.map(
            lambda tensor: tensor[index.to(tensor.device) if isinstance(index, Tensor) else index]
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """A copy on ``device``; ``dtype`` applies to floating-point streams only."""
        return self.map(
            lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None)
        )

    def detach(self) -> Conditioning:
        return self.map(Tensor.detach)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenates the rows of all parts; axis 1 is padded to the longest.

        Raises ``UserError`` when the parts do not hold the same streams.
        """
        names = set(parts[0].streams)
        for part in parts:
            if set(part.streams) != names:
                raise UserError(
                    f"conditionings hold different streams: {sorted(names)} and"
                    f" {sorted(part.streams)}"
                )
        return Conditioning(
            {name: _cat_padded([part[name] for part in parts]) for name in parts[0].streams}
        )


def _cat_padded(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].ndim < 2:
        return torch.cat(list(tensors))
    length = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([_pad_axis_1(tensor, length) for tensor in tensors])


def _pad_axis_1(tensor: Tensor, length: int) -> Tensor:
    missing = length - tensor.shape[1]
    if missing == 0:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])], dim=1)


@dataclass(frozen=True)
class Trajectory:
    """One rollout of B samples in S steps, float32.

    - ``latents_SB``: (S + 1, B, *latent); index 0 is the start noise.
    - ``times_S``: (S + 1,), the network's times.
    - ``log_prob_SB``: (S, B), nats per scored element; 0 where the step was deterministic.
    - ``std_S``: (S,); 0 where the step was deterministic.
    - ``scored_mask``: broadcasts against one latent batch; None when every element counts.
    - ``negative``: the unconditional side of guidance; None when guidance is off.
    - ``unconditional_SB``: what the network put out for it, (S, B, *latent); None when not kept.
    """

    prompts: tuple[Prompt, ...]
    conditioning: Conditioning
    negative: Conditioning | None
    latents_SB: Tensor
    times_S: Tensor
    log_prob_SB: Tensor
    std_S: Tensor
    scored_mask: Tensor | None = None
    unconditional_SB: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def clean(self) -> Tensor:
        """The finished latents (B, *latent)."""
        return self.latents_SB[-1]

    def rows(self, index: Sequence[int]) -> Trajectory:
        """The trajectory of some samples, with their own conditioning."""
        index = [int(i) for i in index]
        kept = self.unconditional_SB
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in index),
            conditioning=self.conditioning.rows(index),
            negative=None if self.negative is None else self.negative.rows(index),
            latents_SB=self.latents_SB[:, index],
            log_prob_SB=self.log_prob_SB[:, index],
            scored_mask=self.mask_of(index),
            unconditional_SB=None if kept is None else kept[:, index],
        )

    def mask_of(self, index: Tensor | Sequence[int]) -> Tensor | None:
        """``scored_mask`` of some samples."""
        mask = self.scored_mask
        return mask if mask is None or mask.shape[0] == 1 else mask[index]


@dataclass(frozen=True)
class RewardOutput:
    """What a reward returns.

    - ``score_B``: float32, higher is better.
    - ``parts``: named numbers per sample (B,), logged next to the score.
    - ``vectors``: named vectors per sample (B, D), not logged; for a reward's ``combine`` (see
      ``Reward``).
    """

    score_B: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


TASKS = ("integrity", "temporal", "pairwise", "quality", "relevance")
SOURCES = ("HD", "RD", "PD")


@dataclass(frozen=True)
class Vote:
    """What one rater said of one clip, or of a pair of clips.

    - ``value``: 0 to 1, higher is better; of a pair: 1 = the first clip is better, 0 = the other
      one is, 0.5 = a tie.
    - ``both_bad``: a tie of two clips of which neither is acceptable.
    - ``time_ms``: how long the rater took; None when nobody measured it.
    """

    rater: str
    value: float
    both_bad: bool = False
    time_ms: float | None = None

    def __post_init__(self) -> None:
        _check_share("value", self.value)
        if self.time_ms is not None and not 0 <= self.time_ms < math.inf:
            raise UserError(f"time_ms: expected milliseconds >= 0, got {self.time_ms}")
        if self.both_bad and self.value != 0.5:
            raise UserError(f"both_bad: expected a tie (value 0.5), got value {self.value}")


@dataclass(frozen=True)
class Preference:
    """What is known of one clip (or, in the task ``pairwise``, of a pair) for one prompt.

    - ``prompt``: the text that the clip was made for; "" when nobody wrote it down.
    - ``audio``, ``other``: names of clips with forward slashes; ``other`` in pairs only.
    - ``task``: one of ``TASKS``.
    - ``votes``: single opinions; ``label``: what they came to, 0 to 1 as ``Vote.value``.
    - ``score``: what a reward model says, 0 to 1.
    - ``source``: HD = labelled by people, RD = by a reward model, PD = pretraining data.
    - ``split``: "train", "val", "test" or another name; "" before it is drawn.
    - ``model``, ``other_model``: which generators made the clips; "" when unknown.
    - ``seconds``: stated length of the clip; None when nothing states it.
    """

    prompt: str
    audio: str
    task: str
    other: str = ""
    votes: tuple[Vote, ...] = ()
    label: float | None = None
    score: float | None = None
    source: str = "HD"
    split: str = ""
    model: str = ""
    other_model: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"task: expected one of {', '.join(TASKS)}, got {self.task!r}")
        if self.source not in SOURCES:
            raise UserError(f"source: expected one of {', '.join(SOURCES)}, got {self.source!r}")
        if self.label is not None:
            _check_share("label", self.label)
        if self.score is not None:
            _check_share("score", self.score)
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise UserError(f"seconds: expected a length above 0, got {self.seconds}")
        is_pair = bool(self.other or self.other_model)
        if is_pair != (self.task == "pairwise"):
            raise UserError(
                f"other: the task pairwise compares two clips and no other task does, got the task"
                f" {self.task!r} and the other clip {self.other or self.other_model!r}"
            )
        if self.audio and self.audio == self.other:
            raise UserError(f"other: a clip cannot be compared with itself ({self.audio})")
        raters = [vote.rater for vote in self.votes]
        twice = sorted({rater for rater in raters if raters.count(rater) > 1})
        if twice:
            raise UserError(
                f"votes: {twice[0]!r} voted more than once on {self.audio or self.prompt!r};"
                " keep one vote per rater"
            )


def _check_share(name: str, value: float) -> None:
    """Raises ``UserError`` unless ``value`` is a number from 0 to 1 (NaN is not)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise UserError(f"{name}: expected a number from 0 to 1, got {value!r}")


@runtime_checkable
class Path(Protocol):
    """How ``x = alpha * clean + sigma * noise`` runs from noise to clean (``zoo/diffusion``)."""

    prediction: str

    def times(self, steps: int) -> Tensor: ...

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]: ...

    def sample_times(self, uniform_B: Tensor) -> Tensor: ...


@runtime_checkable
class Backbone(Protocol):
    """A generator.

    Its constructor takes plain JSON values (kept as ``arguments``), which become ``config.json``.

    A backbone may also have

    - ``scored_mask(prompts) -> Tensor | None``: which latent elements reach the listener (bool,
      broadcast against (B, *latent)); only those count in log-probabilities;
    - ``too_long(prompts) -> dict[str, str]``: prompt id -> what is too long for its encoders (a
      reward may have this too);
    - ``parts``: "text" and "decoder" -> names of its modules that may be on another device. With
      "text" it also has ``remember(prompts)``, which encodes prompts and their negatives and keeps
      the result, and ``drop_text_encoders(prompts)``.
    """

    sample_rate_hz: int
    channels: int
    path: Path
    denoiser: nn.Module

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning: ...

    def predict(self, latent_BCT: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor: ...

    def encode(self, wave_BCN: Tensor) -> Tensor: ...

    def decode(self, latent_BCT: Tensor) -> Tensor: ...

    def latent_shape(self, seconds: float) -> tuple[int, ...]: ...


@runtime_checkable
class Scorer(Protocol):
    """Gives each clip a number: a reward, or a metric of one clip.

    Deterministic, resamples by itself. The number is ``RewardOutput.score_B``; ``parts`` are
    further ones. A scorer may also have

    - ``name``: heads its columns;
    - ``unit``: how to read its score, such as "cosine similarity of clip and prompt; 1 is best";
    - ``bounds``: (least, greatest) score that it can give.
    """

    def __call__(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput: ...


@runtime_checkable
class Reward(Scorer, Protocol):
    """A scorer that training can learn from: higher is better.

    ``differentiable`` states whether gradients flow from the score to the wave.

    A reward may also have

    - ``combine(output, prompts) -> RewardOutput``: compares a sample with the others of its prompt.
      A pure function of the answers to all samples of a round, from all processes, in the order of
      (prompt id, sample index). Training learns from its score; the score of the single call is
      what is logged, so that curves are comparable over rounds;
    - ``check_prompts(prompts)``: raises ``UserError`` for a prompt that it cannot score; called
      with all prompts before anything is sampled.
    """

    differentiable: bool


def is_scorer(value: Any) -> bool:
    """Whether ``value`` scores clips. A backbone is callable too, but it generates them."""
    return callable(value) and not isinstance(value, type) and bool(lacking(value, Backbone))


def lacking(value: Any, role: type) -> list[str]:
    """The members of a role (``Backbone``, ``Reward``) that ``value`` lacks; empty if it has all.

    ``isinstance`` does not serve: from Python 3.12 on it does not see submodules such as
    ``denoiser`` of an ``nn.Module``.
    """
    members: set[str] = set()
    for kind in role.__mro__[: role.__mro__.index(Protocol)]:
        members |= {name for name in vars(kind) if name == "__call__" or not name.startswith("_")}
        members |= set(inspect.get_annotations(kind))
    return sorted(name for name in members if not hasattr(value, name))
