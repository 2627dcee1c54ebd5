"""Prompts without audio: the data of algorithms that learn from their own samples, such as DDPO.

One training batch is one *round*: the prompts whose samples are drawn, scored and learned from
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
    """All rows of round ``round_index``: a pure function of its arguments.

    Prompts are dealt from shuffled decks (one shuffle of all prompts after another), so that none
    is repeated before all have been used. Rows are ordered by repeat: all prompts of the round,
    then all again, ``repeats`` times.

    Args:
        prompts: all training prompts.
        prompts_per_round: how many different prompts a round has.
        repeats: samples per prompt and round.
        seed: of the shuffles.
        round_index: counts from 0.
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
    """The rows of one process: a consecutive block; all blocks in order are the whole batch.

    Raises ``UserError`` when the rows cannot be divided evenly among the processes.
    """
    if len(batch) % world_size:
        raise UserError(
            f"{len(batch)} samples do not divide evenly among {world_size} processes; make them a"
            f" multiple of {world_size}"
        )
    size = len(batch) // world_size
    mine = slice(rank * size, (rank + 1) * size)
    return PromptBatch(batch.prompts[mine], batch.sample_index[mine], batch.round_index)


@dataclass
class PromptRounds:
    """Endless rounds: each pass (epoch) yields the next ``len(self)`` rounds.

    ``next_round`` is the position, which resume restores. Rows are those of process ``rank`` of
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
            # before the yield, so that a checkpoint written during this round resumes at the next
            self.next_round += 1
            yield shard(batch, self.rank, self.world_size)


@dataclass(frozen=True)
class HeldOut:
    """The same batch in every pass (Lightning would take a bare list for a list of loaders)."""

    batch: PromptBatch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[PromptBatch]:
        yield self.batch


class PromptDataModule(L.LightningDataModule):
    """Rounds of training prompts, and held-out prompts for evaluation.

    A round has ``prompts_per_round * repeats`` samples over all processes; each process takes a
    consecutive block (``shard``). The prompts and order of a round depend only on ``seed`` and the
    round's index, so a resumed run continues with exactly the rounds that were left.

    Training prompts come from one of ``template``, ``file`` and ``prompts``. Validation prompts
    come from at most one of ``held_out``, ``val_template``, ``val_file`` and ``prompts``.

    Args:
        template: wording of the prompts, filled with ``words`` and ``instruments``
            (``template_prompts``; labels mood, word, instrument).
        words: mood -> words, or the name of a list in ``prompt_grids``.
        instruments: their names, or the name of a list in ``prompt_grids``.
        held_out: [word, instrument] pairs for validation that are never trained on.
        val_template: wording of validation prompts with every word and instrument of training;
            their noise occurs in no training round.
        file: of training prompts (``file_prompts``).
        negative: text of guidance's unconditional side.
        seconds: length of every sample.
        prompts_per_round: different prompts per round.
        repeats: samples per prompt and round.
        rounds_per_epoch: rounds per epoch.
        val_file: of validation prompts (``file_prompts``).
        val_prompts: keep at most this many validation prompts, evenly spread (None: all, 0: none).
        val_repeats: samples per validation prompt.
        seed: of the order of prompts.
        prompts: (training, validation) prompts as ``scene_prompts`` makes them, with their own
            ``negative`` and ``seconds``.

    Raises:
        UserError: for contradictory settings, unknown words, no prompts, and a resumed run whose
            prompts differ.
    """

    batch_type = PromptBatch

    EXPORTED = (  # settings that the card of an exported model states; those of a node in it
        "template",
        "words",
        "instruments",
        "held_out",
        "negative",
        "seconds",
        "prompts_per_round",
        "repeats",
        "val_prompts",
        "val_repeats",
        "prompts",
    )

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
        sizes = {
            "prompts_per_round": prompts_per_round,
            "repeats": repeats,
            "rounds_per_epoch": rounds_per_epoch,
            "val_repeats": val_repeats,
        }
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if val_prompts is not None and val_prompts < 0:
            raise UserError(f"val_prompts must be 0 (no validation) or more, got {val_prompts}")
        if sum(source is not None for source in (template, file, prompts)) != 1:
            raise UserError(
                "give exactly one of template (with words and instruments), file and prompts"
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
            if val_template is not None:
                validation = template_prompts(val_template, *grid)
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
            train = file_prompts(file, negative, seconds)
            validation = ()
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
        self.train_prompts = train
        self.validation_prompts = validation
        self.val_repeats = val_repeats
        # round -1: prompts that are also trained on get noise that no training round has
        self.val_round = 0 if val_template is None else -1
        self.rounds = PromptRounds(train, prompts_per_round, repeats, rounds_per_epoch, seed)

    def setup(self, stage: str | None = None) -> None:
        """Reads rank and number of processes from the trainer.

        Raises ``UserError`` when samples cannot be divided evenly among the processes.
        """
        rank = 0
        world = 1
        if self.trainer is not None:
            rank = self.trainer.global_rank
            world = self.trainer.world_size
        self.rounds.rank = rank
        self.rounds.world_size = world
        samples = self.rounds.prompts_per_round * self.rounds.repeats
        if samples % world:
            raise UserError(
                f"prompts_per_round * repeats = {samples} samples do not divide evenly among"
                f" {world} processes; make the product a multiple of {world}"
            )
        held_out = len(self.validation_prompts) * self.val_repeats
        if held_out % world:
            raise UserError(
                f"{len(self.validation_prompts)} held-out prompts * val_repeats = {held_out}"
                f" samples do not divide evenly among {world} processes; set val_repeats to a"
                f" multiple of {world}"
            )

    def all_prompts(self) -> tuple[Prompt, ...]:
        """Training prompts, then validation prompts that are not among them."""
        return tuple(dict.fromkeys((*self.train_prompts, *self.validation_prompts)))

    def drop_prompts(self, ids: Collection[str]) -> None:
        """Drops the prompts with these ids from training and validation.

        Raises ``UserError`` when no training prompt is left, and as ``setup`` does.
        """
        kept = tuple(prompt for prompt in self.train_prompts if prompt.id not in ids)
        if not kept:
            raise UserError(
                f"all {len(self.train_prompts)} training prompts would be left out, so there is"
                " nothing to train on"
            )
        self.train_prompts = kept
        self.rounds.prompts = kept
        self.validation_prompts = tuple(
            prompt for prompt in self.validation_prompts if prompt.id not in ids
        )
        self.setup()

    def first_round(self, world_size: int) -> PromptBatch:
        """The first process's rows of round 0. Raises ``UserError`` as ``shard`` does."""
        r = self.rounds
        batch = round_prompts(r.prompts, r.prompts_per_round, r.repeats, r.seed, 0)
        return shard(batch, 0, world_size)

    def train_dataloader(self) -> PromptRounds:
        return self.rounds

    def val_dataloader(self) -> HeldOut | list:
        """One batch of held-out prompts, always in the same order and from the same noise.

        Every prompt occurs ``val_repeats`` times. Empty without held-out prompts.
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
        """A hash of what determines the rounds: prompts, prompts per round, repeats and seed."""
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
                raise UserError(f"held_out: unknown {name} {value!r}; {did_you_mean(value, known)}")
        wanted.add(tuple(pair))
    held = [
        prompt
        for prompt in prompts
        if (prompt.labels["word"], prompt.labels["instrument"]) in wanted
    ]
    return tuple(prompt for prompt in prompts if prompt not in held), tuple(held)
