"""What scenes of sounds are called: the truth of a scene, its captions in varied words, and
captions that are wrong on purpose.

A caption is a template ("{0} followed by {1}") filled with one phrase an event, so that the caption
with the events swapped or one of them replaced differs from the right one in nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import UserError, did_you_mean

# a word outside an embedded model's vocabulary costs a token a byte and one for its end, so that
# this many always fit 64 tokens
MAX_CAPTION_BYTES = 63
_DRAWS = (
    8  # wordings that are tried before a caption that is too long falls back to the shortest one
)

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
    """One sound of a scene: what it is and when it sounds, in seconds from the scene's start.

    ``phrase`` is the recording's own caption; ``audioset_labels`` are names of AudioSet classes
    that a tagger may give it. ``recording_split`` is False where the recording serves training and
    test scenes alike (classes with few recordings).
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
    """The truth of a scene:

    ``events`` in order of onset, how they lie in time (``relation``), and the words of its caption.

    ``template`` holds one field an event; ``words[i]`` is what it calls ``events[i]``.
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
    """A class's name as words: ``car_horn`` is "car horn", ``bird_other`` is "bird"."""
    return re.sub(r"[\s_-]+", " ", sound_class.removesuffix("_other")).strip()


def _phrase(sound_class: str, caption: str, rng: random.Random) -> str:
    """A recording's caption, the same without its article, or its class's name."""
    form = rng.random()
    if form < 0.6:
        return caption
    return class_words(sound_class) if form < 0.85 else re.sub(r"^(an?|the) ", "", caption)


def _template(relation: str, count: int, rng: random.Random) -> str:
    template = rng.choice(TEMPLATES[relation][count])
    if relation != "together":
        return template
    places = rng.sample(
        range(count), count
    )  # none is first, so the caption names them in any order
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
    """A scene with a caption of at most ``max_bytes``; where the drawn wordings are longer, the
    events' class names.

    Raises ``UserError`` when even those are too long.
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
    """The same truth in other words."""
    return worded(scene.relation, scene.events, scene.seed, rng, max_bytes)


def swap_order(scene: Scene) -> str | None:
    """The caption with two neighbouring events swapped: wrong in nothing but the order.

    None for all but "then" scenes.
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
    """The caption with one event called by another class.

    ``phrases``: class -> captions of its recordings.

    None when there is no other class, or none whose name fits ``max_bytes``.
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
    """The truth as plain values for ``Prompt.labels``: lists have one entry an event, in order of
    onset.

    ``events`` (classes), ``relation``, ``audioset`` (accepted AudioSet names of each event),
    ``onsets_s``, ``ends_s``, ``clips`` (ids of the recordings), ``recording_split``, and
    ``swapped``: the caption in the wrong order, or None.
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
    """Raises ``UserError`` naming the nearest right relation."""
    for name in relations:
        if name not in among:
            raise UserError(
                f"relations: {name!r} is no relation between sounds; {did_you_mean(name, among)}"
            )


def check_classes(classes: Sequence[str], known: Sequence[str]) -> None:
    """Raises ``UserError`` naming the nearest right class, or the doubled one."""
    for name in classes:
        if name not in known:
            raise UserError(
                f"classes: there is no sound class {name!r}; {did_you_mean(name, known)}"
            )
    doubled = sorted({name for name in classes if list(classes).count(name) > 1})
    if doubled:
        raise UserError(f"classes: {', '.join(doubled)} stand there twice; drop one of each")
