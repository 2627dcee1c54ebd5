"""A blind listening test without its page: order of trials, next trial, and meaning of answers.

Each trial plays one prompt by two systems, as A and B, and asks which fits the text better. The
test's seed draws order and sides for each listener: in half of the trials (one more or less of an
odd number) the second system is A. Nothing on the page depends on which side is which.
"""

from __future__ import annotations

import random
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from zoo.audio_files import read_audio
from zoo.errors import UserError, did_you_mean
from zoo.listening.answers import (
    ANSWERS,
    Answer,
    append_answer,
    check_answers_place,
    check_systems,
    read_answers,
)
from zoo.listening.pairs import Pair, pairs_fingerprint
from zoo.types import Waveform

MAX_NAME = 64
_ALIKE_S = 0.05  # players do not show a smaller difference in length
_SILENT = 1e-4  # RMS, -80 dB
_MAX_GAIN_RATIO = 10.0  # 20 dB


@dataclass(frozen=True)
class Trial:
    """One question to a listener.

    ``number``: from 1, in the listener's order. ``pair``: index in the test's pairs.
    ``a_is_second``: the second system is heard as A.
    """

    number: int
    pair: int
    a_is_second: bool


@dataclass(frozen=True)
class BlindTest:
    """One listening test.

    Args:
        name: a fingerprint of its pairs.
        pairs: of sounds.
        systems: names of the first and the second system of each pair.
        answers: the file of the answers.
        seed: of orders and sides.
        equal_level: whether both sides are played with the level of the quieter one (see
            ``equally_loud``).
    """

    name: str
    pairs: tuple[Pair, ...]
    systems: tuple[str, str]
    answers: Path
    seed: int = 0
    equal_level: bool = True


@dataclass(frozen=True)
class View:
    """What a listener sees next.

    ``trial``: None when all is answered. ``done`` of ``total`` trials are answered. ``message``:
    shown next to the progress.
    """

    trial: Trial | None
    done: int
    total: int
    message: str = ""


def listening_test(
    pairs: Sequence[Pair],
    answers: str | Path,
    systems: tuple[str, str],
    seed: int = 0,
    equal_level: bool = True,
) -> BlindTest:
    """Opens a test and reads every clip and answer, so that errors show before anyone listens.

    Args:
        pairs: the sounds.
        answers: the file that answers are added to.
        systems: names of the first and the second system, as answers hold them.
        seed, equal_level: see ``BlindTest``.

    Raises:
        UserError: for no pairs, audio that cannot be read, sides of different lengths, unfit or
            changed names of systems, and an answers file of another kind.
        OSError: for files that cannot be read or written.
    """
    check_systems(systems)
    found = read_answers(answers)
    check_answers_place(answers)
    if not pairs:
        raise UserError("a listening test needs at least one pair of sounds")
    for pair in pairs:
        lengths_s = [
            wave.samples_CN.shape[1] / wave.sample_rate_hz
            for wave in map(read_audio, (pair.first.path, pair.second.path))
        ]
        if abs(lengths_s[0] - lengths_s[1]) > _ALIKE_S:
            raise UserError(
                f"{pair.first.path} lasts {lengths_s[0]:g} s and {pair.second.path}"
                f" {lengths_s[1]:g} s: players show that, which would reveal the sides; generate"
                " both with the same --seconds"
            )
    name = pairs_fingerprint(pairs)
    test = BlindTest(name, tuple(pairs), systems, Path(answers), seed, equal_level)
    for answer in found.answers:
        if answer.test == name:
            _check_names(test, answer)
    return test


def _check_names(test: BlindTest, answer: Answer) -> None:
    """Raises ``UserError`` when an earlier answer to this test has other systems or sides."""
    own = trials(len(test.pairs), answer.listener, test.seed)[: answer.trial][-1]
    is_same_trial = (own.number, own.pair) == (answer.trial, answer.pair)
    if set(answer.systems) != set(test.systems) or (
        is_same_trial and _sides(test, own) != (answer.a, answer.b)
    ):
        raise UserError(
            f"{test.answers}: earlier answers to this test are about"
            f" {' and '.join(answer.systems)}, with other names or sides than"
            f" {' and '.join(test.systems)} and seed {test.seed} give; to continue, use the same"
            " names, in the same order, and the same seed"
        )


def _sides(test: BlindTest, trial: Trial) -> tuple[str, str]:
    """Names of the systems that are heard as A and as B."""
    first, second = test.systems
    return (second, first) if trial.a_is_second else (first, second)


def trials(count: int, listener: str, seed: int) -> tuple[Trial, ...]:
    """Every one of ``count`` pairs once, in the listener's own order, with balanced sides.

    The same arguments give the same trials.
    """
    draw = random.Random(f"listening test/{seed}/{listener}")
    order = draw.sample(range(count), count)
    sides = balanced_sides(count, draw)
    return tuple(
        Trial(i, pair, side) for i, (pair, side) in enumerate(zip(order, sides, strict=True), 1)
    )


def balanced_sides(count: int, draw: random.Random) -> list[bool]:
    """In random order, True for half of ``count`` (of an odd number, one more or less)."""
    sides = [True] * (count // 2) + [False] * (count // 2) + [draw.random() < 0.5] * (count % 2)
    draw.shuffle(sides)
    return sides


def now() -> str:
    """The time in UTC, as answers hold it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def listener_name(text: str) -> str:
    """The name or code of a listener, in any language, in one form of Unicode, with single spaces.

    Raises ``UserError`` for an empty or long name, other characters, and a first character that a
    spreadsheet might take for a formula.
    """
    name = " ".join(unicodedata.normalize("NFC", str(text)).split())
    kinds = [unicodedata.category(letter)[0] for letter in name]  # letters, their marks, numbers
    is_plain = all(
        kind in "LMN" or letter in " ._-@'’" for kind, letter in zip(kinds, name, strict=True)
    )
    if not is_plain or len(name) > MAX_NAME or kinds[:1] not in (["L"], ["N"]):
        raise UserError(
            f"give a name or code of 1 to {MAX_NAME} letters, digits, spaces and . _ - @ ', a"
            " letter or digit first"
        )
    return name


def next_view(test: BlindTest, listener: str) -> View:
    """The view of the first trial without a saved answer of this listener.

    Raises ``UserError`` for an invalid name; ``OSError``.
    """
    name = listener_name(listener)
    own = {
        answer.pair
        for answer in read_answers(test.answers).answers
        if (answer.test, answer.listener) == (test.name, name)
    }
    left = [trial for trial in trials(len(test.pairs), name, test.seed) if trial.pair not in own]
    return View(left[0] if left else None, len(test.pairs) - len(left), len(test.pairs))


def give_answer(test: BlindTest, listener: str, number: int, answer: str) -> View:
    """Saves the answer to trial ``number`` and returns the next view.

    An existing answer stays (a double click). Raises ``UserError`` for an unknown answer or trial,
    and ``OSError`` when it could not be saved; the listener then stays at this trial.
    """
    name = listener_name(listener)
    if answer not in ANSWERS:
        raise UserError(f"the answer {answer!r} is unknown; {did_you_mean(answer, ANSWERS)}")
    all_trials = trials(len(test.pairs), name, test.seed)
    if not 1 <= number <= len(all_trials):
        raise UserError(f"there is no trial {number}; this test has 1 to {len(all_trials)}")
    trial = all_trials[number - 1]
    a, b = _sides(test, trial)
    prompt = " ".join(test.pairs[trial.pair].prompt.id.split())
    saved = append_answer(
        test.answers, Answer(now(), test.name, name, number, trial.pair, prompt, a, b, answer)
    )
    view = next_view(test, name)
    if saved:
        return view
    message = "You had already answered that one; the first answer counts."
    return View(view.trial, view.done, view.total, message)


def equally_loud(first: Waveform, second: Waveform) -> tuple[Waveform, Waveform]:
    """Lowers the louder sound to the level of the quieter one, as listeners prefer louder sounds.

    Nothing is amplified, so nothing clips. Sounds that are silent or 20 dB apart stay as they are,
    because that difference should be heard.
    """
    levels = [float(wave.samples_CN.square().mean().sqrt()) for wave in (first, second)]
    low, high = min(levels), max(levels)
    if low < _SILENT or high > _MAX_GAIN_RATIO * low:
        return first, second
    return tuple(
        Waveform(wave.samples_CN * (low / level), wave.sample_rate_hz)
        for wave, level in zip((first, second), levels, strict=True)
    )


def heard(test: BlindTest, trial: Trial) -> tuple[Waveform, Waveform]:
    """The sounds to play as A and as B. Raises as ``zoo.audio_files.read_audio``."""
    pair = test.pairs[trial.pair]
    first, second = (read_audio(sample.path) for sample in (pair.first, pair.second))
    if test.equal_level:
        first, second = equally_loud(first, second)
    return (second, first) if trial.a_is_second else (first, second)


def playable(wave: Waveform) -> tuple[int, Tensor]:
    """(sample rate in Hz, int16 samples (N, C)), which players take without changing the level."""
    return (
        wave.sample_rate_hz,
        (wave.samples_CN.clamp(-1, 1) * 32767).round().short().T.contiguous(),
    )
