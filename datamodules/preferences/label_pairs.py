"""Preference pairs from label files: comparisons, and clips of one prompt with different labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from datamodules.batches import ClipPair, ClipPairs
from datamodules.preferences.clips import Clips, log_quarantined, usable
from datamodules.preferences.dialects import read_labels
from datamodules.preferences.pairs import ordered_pairs, turned
from datamodules.preferences.splits import prompt_key
from datamodules.preferences.votes import aggregate
from datamodules.rated_clips import split_of
from zoo.errors import UserError
from zoo.types import Preference, Prompt


class LabelPairs:
    """Pairs of clips from files of any dialect (docs/labels.md).

    A comparison of two clips is a pair, the winner first. Clips that were labelled by themselves
    are compared within their prompt and task: all that differ by ``minimum_gap``. Ties make no
    pair; they, and prompts without one, are counted (``ClipPairs.left_out``).

    Only records of the splits "train", "val" and of no split are read. Clips that cannot be read
    are left out, named in ``quarantined`` and in the log.

    Args:
        files: one file, or several.
        audio_root: the clips are below this folder.
        task: what the labels are about; None: all tasks in the files.
        rule: from votes to labels: mean or majority.
        minimum_agreement: 0 to 1; leaves out records whose largest side is a smaller share.
        minimum_votes: leaves out records with votes, but fewer.
        minimum_gap: least difference of two labels within a prompt.
        val_share: of the prompts that are held out, where no record names a split.
        sample_rate_hz: what the clips are said to have; None: what their files say.
        seed: of that split.
    """

    epochs: int | None = None  # the same pairs in all epochs

    def __init__(
        self,
        files: str | Sequence[str],
        audio_root: str,
        task: str | None = None,
        rule: str = "mean",
        minimum_agreement: float = 0.0,
        minimum_votes: int = 1,
        minimum_gap: float = 0.0,
        val_share: float = 0.0,
        sample_rate_hz: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("minimum_gap", minimum_gap), ("val_share", val_share)):
            if not 0 <= value < 1:
                raise UserError(f"invalid {name} {value}: expected a number >= 0 and < 1")
        self.files = (files,) if isinstance(files, str) else tuple(files)
        self.audio_root = audio_root
        self.task = task
        self.rule = rule
        self.minimum_agreement = minimum_agreement
        self.minimum_votes = minimum_votes
        self.minimum_gap = minimum_gap
        self.val_share = val_share
        self.sample_rate_hz = sample_rate_hz
        self.seed = seed
        self.quarantined: dict[str, str] = {}  # clip -> why it cannot be used; of the last reading

    def pairs(self, iteration: int = 0) -> ClipPairs:
        """Reads the files; the same for every ``iteration``.

        Raises ``UserError`` for bad rows, a clip of another rate than stated, records of which some
        name a split and others do not, a prompt in two splits, and when no record is left.
        """
        records = [one for file in self.files for one in read_labels(file).checked()]
        records = [one for one in records if self.task in (None, one.task)]
        kept, left_out = aggregate(records, self.rule, self.minimum_agreement, self.minimum_votes)
        kept = tuple(one for one in kept if one.split in ("", "train", "val") and one.prompt)
        if not kept:
            raise UserError(
                f"no labelled record with a prompt of the task {self.task or 'any'!r} is for"
                f" training in {', '.join(self.files)}"
            )
        clips = Clips(self.audio_root)
        found = usable(kept, clips, self.sample_rate_hz)
        self.quarantined = dict(found.quarantined)
        log_quarantined(self.quarantined)
        counted = Counter(left_out)
        pairs = [*_compared(found.records, counted), *self._within(found.records, counted)]
        split = self._splits(found.records)
        dealt: dict[str, list[ClipPair]] = {"train": [], "val": []}
        for winner, loser in pairs:
            files = tuple(clips.path(one.audio) for one in (winner, loser))
            dealt[split[prompt_key(winner.prompt)]].append(_pair(winner.prompt, *files))
        return ClipPairs(tuple(dealt["train"]), tuple(dealt["val"]), dict(counted))

    def _splits(self, records: Sequence[Preference]) -> dict[str, str]:
        """Prompt -> train or val."""
        named = {record.split for record in records}
        if "" in named and len(named) > 1:
            raise UserError(
                "some records name a split and others do not; name one in every record, or in none"
            )
        found: dict[str, str] = {}
        for record in records:
            key = prompt_key(record.prompt)
            split = record.split or split_of(key, self.seed, self.val_share, 0.0)
            if found.setdefault(key, split) != split:
                raise UserError(
                    f"the prompt {record.prompt!r} is in the splits {found[key]} and {split}; draw"
                    " splits with tools/labels.py split"
                )
        return found

    def _within(
        self, records: Sequence[Preference], counted: Counter[str]
    ) -> list[tuple[Preference, Preference]]:
        """Pairs of clips of one prompt and task, the better one first."""
        groups: dict[str, list[Preference]] = defaultdict(list)
        for record in records:
            if record.task != "pairwise" and _value(record) is not None:
                groups[f"{record.task}\0{prompt_key(record.prompt)}"].append(record)
        pairs = []
        for own in groups.values():
            values = [_value(record) for record in own]
            wide = [
                (own[better], own[worse])
                for better, worse in ordered_pairs(values, [""] * len(own))
                if values[better] - values[worse] >= self.minimum_gap
            ]
            pairs += wide
            if len(own) == 1:
                counted["prompts with one clip"] += 1
            elif len(set(values)) == 1:
                counted["prompts whose clips have equal labels"] += 1
            elif not wide:
                counted["prompts whose labels differ by less than minimum_gap"] += 1
        return pairs


def _value(record: Preference) -> float | None:
    return record.label if record.label is not None else record.score


def _compared(
    records: Sequence[Preference], counted: Counter[str]
) -> list[tuple[Preference, Preference]]:
    """The comparisons with a winner, as (record of the winner, record of the loser)."""
    pairs = []
    for record in records:
        if record.task != "pairwise":
            continue
        value = _value(record)
        if value is None:
            counted["comparisons without a label"] += 1
        elif value == 0.5:
            counted["ties"] += 1
        else:
            both = (record, turned(record))
            pairs.append(both if value > 0.5 else both[::-1])
    return pairs


def _pair(text: str, chosen: Path, rejected: Path) -> ClipPair:
    return ClipPair(Prompt(chosen.name, text), chosen, rejected)
