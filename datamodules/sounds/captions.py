"""Describes scenes of sounds: their truth, varied captions, and deliberately wrong captions.

A caption is a template ("{0} followed by {1}") filled with one phrase per event. So a caption with
two events swapped or one replaced differs from the right one in nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import UserError, did_you_mean

# always fits 64 tokens: in the embedded models a word outside the vocabulary costs one token per
# byte and one for its end
MAX_CAPTION_BYTES = 63
_DRAWS = 8  # wordings to try before a long caption falls back to the shortest one

# relation -> number of sounds -> templates; {0} is the event that begins first
TEMPLATES: dict[str, dict[int, tuple[str, ...]]] = {
    "single": {1: ("{0}", "{0}", "the sound of {0}", "a recording of {0}")},
    "together": {
        2: (
            "{0} and {1}",
            "{0} with {1}",
            "{0} while {1}",
            "{0} together with {1}",
            "{0} and {1} together",
            "{0} and {1} simultaneously",
            "both {0} and {1}",
        ),
        3: (
            "{0}, {1} and {2}",
            "{0} with {1} and {2}",
            "{0} and {1} while {2}",
            "{0}, {1} and {2} together",
        ),
    },
    "overlap": {
        2: ("{0} joined by {1}", "{0}, meanwhile {1}", "{1} during {0}", "{0} and meanwhile {1}"),
        3: (
            "{0} joined by {1} and {2}",
            "{0}, meanwhile {1} and {2}",
            "{0} joined by {1} and then {2}",
        ),
    },
    "then": {
        2: (
            "{0} followed by {1}",
            "{0} followed by {1}",
            "{0}, then {1}",
            "{0} and then {1}",
            "{0} before {1}",
            "{1} after {0}",
            "first {0}, then {1}",
            "{0}, next {1}",
        ),
        3: (
            "{0}, then {1}, then {2}",
            "{0} followed by {1} and then {2}",
            "first {0}, then {1}, finally {2}",
            "first {0}, next {1}, last {2}",
            "{0}, then {1} followed by {2}",
        ),
    },
}
RELATIONS = tuple(TEMPLATES)


@dataclass(frozen=True)
class SceneEvent:
    """One sound of a scene, with its times in seconds from the start of the scene.

    - ``phrase``: the caption of the recording.
    - ``audioset_labels``: names of AudioSet classes that count as right.
    - ``recording_split``: False where training and test scenes share the recording (classes with
      few recordings).
    """

    sound_class: str
    clip_id: str
    phrase: str
    audioset_labels: tuple[str, ...]
    start_s: float
    end_s: float
    recording_split: bool = True


@dataclass(frozen=True)
class Scene:
    """The truth of a scene.

    - ``relation``: the temporal relation of the events.
    - ``events``: in order of onset.
    - ``template``: of the caption, with one field per event.
    - ``words[i]``: the words for ``events[i]``.
    """

    relation: str
    events: tuple[SceneEvent, ...]
    seed: int
    template: str
    words: tuple[str, ...]

    @property
    def caption(self) -> str:
        return self.template.format(*self.words)


def class_words(sound_class: str) -> str:
    """The name of a class as words: "car horn" for ``car_horn``, "bird" for ``bird_other``."""
    return re.sub(r"[\s_-]+", " ", sound_class.removesuffix("_other")).strip()


def _phrase(sound_class: str, caption: str, rng: random.Random) -> str:
    """The caption of a recording, the name of its class, or the caption without its article."""
    form = rng.random()
    if form < 0.6:
        return caption
    if form < 0.85:
        return class_words(sound_class)
    return re.sub(r"^(an?|the) ", "", caption)


def _template(relation: str, count: int, rng: random.Random) -> str:
    template = rng.choice(TEMPLATES[relation][count])
    if relation != "together":
        return template
    # the sounds begin together, so the caption may name them in any order
    places = rng.sample(range(count), count)
    return re.sub(r"{(\d)}", lambda field: f"{{{places[int(field[1])]}}}", template)


def _fits(template: str, words: Sequence[str], max_bytes: int) -> bool:
    return len(template.format(*words).encode()) <= max_bytes


def worded(
    relation: str,
    events: Sequence[SceneEvent],
    seed: int,
    rng: random.Random,
    max_bytes: int = MAX_CAPTION_BYTES,
) -> Scene:
    """A scene with a random caption of at most ``max_bytes``.

    Where the drawn wordings are longer, the shortest template with the names of the classes.

    Args:
        relation: a key of ``TEMPLATES``.
        events: in order of onset.
        seed: of the scene.
        rng: draws the wording.
        max_bytes: length of the caption in UTF-8.

    Raises:
        UserError: when even the shortest caption is too long.
    """
    for _ in range(_DRAWS):
        template = _template(relation, len(events), rng)
        words = tuple(_phrase(event.sound_class, event.phrase, rng) for event in events)
        if _fits(template, words, max_bytes):
            return Scene(relation, tuple(events), seed, template, words)
    template = min(TEMPLATES[relation][len(events)], key=len)
    words = tuple(class_words(event.sound_class) for event in events)
    if not _fits(template, words, max_bytes):
        raise UserError(
            f"the caption {template.format(*words)!r} is longer than max_caption_bytes ="
            f" {max_bytes}; raise it (the text encoder must take one token more) or shorten the"
            " names of the classes"
        )
    return Scene(relation, tuple(events), seed, template, words)


def recaption(scene: Scene, rng: random.Random, max_bytes: int = MAX_CAPTION_BYTES) -> Scene:
    """The same scene with another caption."""
    return worded(scene.relation, scene.events, scene.seed, rng, max_bytes)


def swap_order(scene: Scene) -> str | None:
    """The caption with two neighbouring events swapped, wrong only in the order.

    None unless the relation is "then".
    """
    if scene.relation != "then":
        return None
    first = random.Random(f"swap/{scene.seed}").randrange(len(scene.words) - 1)
    words = list(scene.words)
    words[first], words[first + 1] = words[first + 1], words[first]
    return scene.template.format(*words)


def replace_class(
    scene: Scene,
    phrases: Mapping[str, Sequence[str]],
    rng: random.Random,
    max_bytes: int = MAX_CAPTION_BYTES,
) -> str | None:
    """The caption with the words of another class for one event.

    ``phrases``: class -> captions of its recordings. None when there is no other class, or none
    that fits ``max_bytes``.
    """
    others = sorted(set(phrases) - {event.sound_class for event in scene.events})
    place = rng.randrange(len(scene.words))
    for other in rng.sample(others, min(_DRAWS, len(others))):
        for phrase in (_phrase(other, rng.choice(phrases[other]), rng), class_words(other)):
            words = (*scene.words[:place], phrase, *scene.words[place + 1 :])
            if phrase not in scene.words and _fits(scene.template, words, max_bytes):
                return scene.template.format(*words)
    return None


def scene_labels(scene: Scene) -> dict[str, Any]:
    """The truth as plain values for ``Prompt.labels``.

    The lists ``events`` (classes), ``audioset`` (accepted AudioSet names), ``onsets_s``,
    ``ends_s``, ``clips`` (ids of the recordings) and ``recording_split`` have one entry per event,
    in order of onset. ``relation`` is a word, and ``swapped`` the caption in the wrong order or
    None.
    """
    return {
        "events": [event.sound_class for event in scene.events],
        "relation": scene.relation,
        "audioset": [list(event.audioset_labels) for event in scene.events],
        "onsets_s": [event.start_s for event in scene.events],
        "ends_s": [event.end_s for event in scene.events],
        "clips": [event.clip_id for event in scene.events],
        "recording_split": [event.recording_split for event in scene.events],
        "swapped": swap_order(scene),
    }


def check_relations(relations: Sequence[str], among: Sequence[str] = RELATIONS) -> None:
    """Raises ``UserError`` for an unknown relation, with the nearest one."""
    for name in relations:
        if name not in among:
            raise UserError(f"relations: {name!r} is unknown; {did_you_mean(name, among)}")
