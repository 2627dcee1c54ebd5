"""Prompts without audio: the data of everything that learns from its own samples (DDPO and its
relatives).

One training batch is one *round*: the prompts whose samples are drawn, rewarded and learned from
before the next round.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L

from datamodules.batches import PromptBatch
from datamodules.prompt_grids import emotion_words, instrument_names
from datamodules.prompt_sources import file_prompts, template_prompts
from zoo.errors import UserError, did_you_mean
from zoo.types import Prompt


def round_prompts(
    prompts: Sequence[Prompt], prompts_per_round: int, repeats: int, seed: int, round_index: int
) -> PromptBatch:
    """The whole round ``round_index`` of a run: a pure function of its arguments.

    The prompts are dealt from shuffled decks (one shuffle of all prompts after the other), so that
    none comes up a second time before all came up once. Rows are ordered repeat by repeat: all
    prompts of the round, then all again, ``repeats`` times.
    """
    dealt = []
    for place in range(round_index * prompts_per_round, (round_index + 1) * prompts_per_round):
        deck, card = divmod(place, len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"prompt deck/{seed}/{deck}").shuffle(order)
        dealt.append(prompts[order[card]])
    return _numbered(dealt * repeats, round_index)


def _numbered(rows: Sequence[Prompt], round_index: int) -> PromptBatch:
    seen: dict[str, int] = {}
    numbers = []
    for prompt in rows:
        numbers.append(seen.get(prompt.id, 0))
        seen[prompt.id] = numbers[-1] + 1
    return PromptBatch(tuple(rows), tuple(numbers), round_index)


def shard(batch: PromptBatch, rank: int, world_size: int) -> PromptBatch:
    """The rows of one process: a consecutive block, so that the blocks of rank 0, 1, ... one after
    the other are the whole batch.

    Raises ``UserError`` when the rows do not divide over the processes.
    """
    if len(batch) % world_size:
        raise UserError(
            f"{len(batch)} samples do not divide over {world_size} processes; make them a multiple"
            f" of {world_size}"
        )
    size = len(batch) // world_size
    mine = slice(rank * size, (rank + 1) * size)
    return PromptBatch(batch.prompts[mine], batch.sample_index[mine], batch.round_index)


@dataclass
class PromptRounds:
    """An endless run cut into epochs: each pass yields ``len(self)`` further rounds.

    ``next_round`` is the cursor, which resume restores. Rows are those of process ``rank`` of
    ``world_size`` (``shard``).
    """

    prompts: tuple[Prompt, ...]
    prompts_per_round: int
    repeats: int
    rounds_per_epoch: int
    seed: int
    rank: int = 0
    world_size: int = 1
    next_round: int = 0

    def __len__(self) -> int:
        return self.rounds_per_epoch

    def __iter__(self) -> Iterator[PromptBatch]:
        for _ in range(self.rounds_per_epoch):
            batch = round_prompts(
                self.prompts, self.prompts_per_round, self.repeats, self.seed, self.next_round
            )
            # before the yield: a checkpoint written while the round is handled resumes at the next
            # one
            self.next_round += 1
            yield shard(batch, self.rank, self.world_size)


@dataclass(frozen=True)
class HeldOut:
    """One batch, the same in every pass (a bare list would be a list of loaders to Lightning)."""

    batch: PromptBatch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[PromptBatch]:
        yield self.batch


class PromptDataModule(L.LightningDataModule):
    """Rounds of prompts from a template, a file or elsewhere, and held-out prompts for evaluation.

    Either ``template`` with ``words`` (mood -> words) and ``instruments`` (``template_prompts``;
    labels mood, word, instrument), each of them literal or the name of a list in ``prompt_grids``,
    or ``file`` (``file_prompts``), or ``prompts``: training and held-out prompts as
    ``scene_prompts`` makes them, with a ``negative`` and ``seconds`` of their own. The validation
    set is one of: ``held_out``, [word, instrument] pairs that are never trained on;
    ``val_template``, every word and instrument of training in this wording, with noise that no
    training round has; ``val_file``. ``val_prompts`` keeps at most that many of them, evenly spread
    (None: all, 0: none). ``negative``: text of guidance's unconditional side. ``seconds``: length
    of every sample.

    A round has ``prompts_per_round * repeats`` samples over all processes together, of which each
    takes a consecutive block (``shard``); an epoch has ``rounds_per_epoch`` rounds. Prompts and
    order of a round depend on ``seed`` and the round's index only, so a resumed run continues with
    exactly the rounds that the interrupted one would have drawn.

    Raises ``UserError`` for settings that contradict each other, unknown words, no prompts, and a
    resumed run whose prompts differ.
    """

    batch_type = PromptBatch

    def __init__(
        self,
        template: str | None = None,
        words: dict[str, list[str]] | str | None = None,
        instruments: list[str] | str | None = None,
        held_out: list[list[str]] | None = None,
        val_template: str | None = None,
        file: str | None = None,
        negative: str = "",
        seconds: float = 4.096,
        prompts_per_round: int = 8,
        repeats: int = 4,
        rounds_per_epoch: int = 1,
        val_file: str | None = None,
        val_prompts: int | None = None,
        val_repeats: int = 1,
        seed: int = 0,
        prompts: tuple[tuple[Prompt, ...], tuple[Prompt, ...]] | None = None,
    ) -> None:
        super().__init__()
        sizes = (prompts_per_round, repeats, rounds_per_epoch, val_repeats)
        for name, value in zip(
            ("prompts_per_round", "repeats", "rounds_per_epoch", "val_repeats"), sizes, strict=True
        ):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if val_prompts is not None and val_prompts < 0:
            raise UserError(f"val_prompts must be 0 (no validation) or more, got {val_prompts}")
        if sum(source is not None for source in (template, file, prompts)) != 1:
            raise UserError(
                "give one of template (with words and instruments), file and prompts, and not two"
                " of them"
            )
        if template is not None:
            grid = (
                emotion_words(words or {}),
                instrument_names(instruments or []),
                negative,
                seconds,
            )
            train, validation = _hold_out(template_prompts(template, *grid), held_out or [])
            if val_template is not None and held_out:
                raise UserError(
                    "held_out and val_template both name the validation prompts; drop one of them"
                )
            validation = (
                validation if val_template is None else template_prompts(val_template, *grid)
            )
        elif words or instruments or held_out or val_template is not None:
            raise UserError(
                "words, instruments, held_out and val_template belong to a template; with file,"
                " give held-out prompts as val_file"
            )
        elif prompts is not None:
            if negative or seconds != 4.096:
                raise UserError(
                    "negative and seconds belong to the prompts here; set them below data.prompts"
                )
            train, validation = map(tuple, prompts)
        else:
            train, validation = file_prompts(file, negative, seconds), ()
        if val_file is not None:
            if validation:
                raise UserError(
                    "held_out (or val_template) and val_file both name the validation prompts; drop"
                    " one of them"
                )
            validation = file_prompts(val_file, negative, seconds)
        if not train:
            raise UserError(
                "every prompt is held out, so none is left to train on; shorten held_out"
            )
        if val_prompts is not None and val_prompts < len(validation):
            validation = tuple(
                validation[i * len(validation) // val_prompts] for i in range(val_prompts)
            )
        self.train_prompts, self.validation_prompts, self.val_repeats = (
            train,
            validation,
            val_repeats,
        )
        self.val_round = (
            0 if val_template is None else -1
        )  # prompts that are trained on get noise of no training round
        self.rounds = PromptRounds(train, prompts_per_round, repeats, rounds_per_epoch, seed)

    def setup(self, stage: str | None = None) -> None:
        """Takes this process's place from the trainer.

        Raises ``UserError`` when samples do not divide over the processes.
        """
        rank, world = (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )
        self.rounds.rank, self.rounds.world_size = rank, world
        samples = self.rounds.prompts_per_round * self.rounds.repeats
        if samples % world:
            raise UserError(
                f"prompts_per_round * repeats = {samples} samples do not divide over {world}"
                f" processes; make the product a multiple of {world}"
            )
        held_out = len(self.validation_prompts) * self.val_repeats
        if held_out % world:
            raise UserError(
                f"{len(self.validation_prompts)} held-out prompts * val_repeats = {held_out}"
                f" samples do not divide over {world} processes; set val_repeats to a multiple of"
                f" {world}"
            )

    def all_prompts(self) -> tuple[Prompt, ...]:
        """Of training, then those of validation that are not among them."""
        return tuple(dict.fromkeys((*self.train_prompts, *self.validation_prompts)))

    def drop_prompts(self, ids: Collection[str]) -> None:
        """Leaves these prompts out from now on.

        Raises ``UserError`` when none is left to train on, and as ``setup`` does.
        """
        kept, held_out = (
            tuple(prompt for prompt in prompts if prompt.id not in ids)
            for prompts in (self.train_prompts, self.validation_prompts)
        )
        if not kept:
            raise UserError(
                f"all {len(self.train_prompts)} training prompts would be left out, so there is"
                " nothing to train on"
            )
        self.train_prompts, self.validation_prompts, self.rounds.prompts = kept, held_out, kept
        self.setup()

    def first_round(self, world_size: int) -> PromptBatch:
        """The first process's rows of round 0. Raises ``UserError`` when they do not divide."""
        r = self.rounds
        batch = round_prompts(r.prompts, r.prompts_per_round, r.repeats, r.seed, 0)
        return shard(batch, 0, world_size)

    def train_dataloader(self) -> PromptRounds:
        return self.rounds

    def val_dataloader(self) -> HeldOut | list:
        """One batch: held-out prompts ``val_repeats`` times in a fixed order, always from the same
        noise. Empty without any.
        """
        if not self.validation_prompts:
            return []
        batch = _numbered(list(self.validation_prompts) * self.val_repeats, self.val_round)
        return HeldOut(shard(batch, self.rounds.rank, self.rounds.world_size))

    def state_dict(self) -> dict[str, Any]:
        return {"next_round": self.rounds.next_round, "fingerprint": self.fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["fingerprint"] != self.fingerprint():
            raise UserError(
                "the checkpoint was written with other prompts, prompts_per_round, repeats or seed,"
                " so it cannot be continued exactly; use the settings in the run folder's"
                " config.yaml, or start a new run"
            )
        self.rounds.next_round = int(state_dict["next_round"])

    def fingerprint(self) -> str:
        """A hash of what decides the rounds: the training prompts, their number a round, the
        repeats and the seed.
        """
        r = self.rounds
        parts = [
            r.prompts_per_round,
            r.repeats,
            r.seed,
            *(f"{p.id}\0{p.text}\0{p.negative}\0{p.seconds}" for p in r.prompts),
        ]
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _hold_out(
    prompts: Sequence[Prompt], pairs: Sequence[Sequence[str]]
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    wanted = set()
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise UserError(f"held_out lists [word, instrument] pairs, got {pair!r}")
        for value, name in zip(pair, ("word", "instrument"), strict=True):
            known = {prompt.labels[name] for prompt in prompts}
            if value not in known:
                raise UserError(
                    f"held_out: {value!r} is none of the {name}s; {did_you_mean(value, known)}"
                )
        wanted.add(tuple(pair))
    held = [
        prompt
        for prompt in prompts
        if (prompt.labels["word"], prompt.labels["instrument"]) in wanted
    ]
    return tuple(prompt for prompt in prompts if prompt not in held), tuple(held)
