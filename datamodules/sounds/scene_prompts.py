"""Prompts of two sounds, from ``rules.tsv`` alone, for models that learn from their own samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from datamodules.prompt_sources import prompt_id
from datamodules.sounds.bank import RULES, Rule, load_rules
from datamodules.sounds.captions import RELATIONS, SceneEvent, check_relations, swap_order, worded
from datamodules.sounds.sources import SOURCES
from zoo.errors import UserError, did_you_mean
from zoo.types import Prompt

_OF_TWO = tuple(name for name in RELATIONS if name != "single")


def scene_prompts(
    classes: Sequence[str],
    relations: Sequence[str] = ("together", "then"),
    pairs: Sequence[Sequence[str]] | None = None,
    count: int | None = None,
    held_out_share: float = 0.25,
    negative: str = "",
    seconds: float = 4.096,
    seed: int = 0,
    sources: Sequence[str] | None = None,
    rules: str | Path = RULES,
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Training and held-out prompts: captions of two different sounds.

    Each pair gets, in each relation, one caption for sounds "together" or in "overlap", and one per
    order for "then".

    Args:
        classes: of the sounds.
        relations: some of "together", "overlap" and "then".
        pairs: [class, class]; None: all pairs of ``classes``.
        count: how many pairs to draw by ``seed``; None: all.
        held_out_share: share of pairs that is held out in every relation and order; each class
            stays in training with another partner.
        negative: text of guidance's unconditional side.
        seconds: length of every sample.
        seed: of everything that is drawn.
        sources: names in the rule table whose words are used; None: all.
        rules: the rule table.

    Returns:
        (training prompts, held-out prompts) with the labels ``events`` (classes in order),
        ``relation``, ``audioset`` (accepted AudioSet names of each event) and ``swapped`` (the
        caption in the other order, for "then" only).

    Raises:
        UserError: for unknown names, a class paired with itself, and shares that cannot be held
            out.
    """
    check_relations(relations, _OF_TWO)
    words = _rules_of(classes, sources, rules)
    chosen = sorted(
        {_pair(pair, classes) for pair in (combinations(classes, 2) if pairs is None else pairs)}
    )
    rng = random.Random(f"scene prompts/{seed}")
    if count is not None:
        if not 0 < count <= len(chosen):
            raise UserError(
                f"count is {count}, but there are {len(chosen)} pairs of sounds; give 1 to"
                f" {len(chosen)}"
            )
        chosen = sorted(rng.sample(chosen, count))
    held = _hold_out(chosen, held_out_share, rng)
    train = {}
    validation = {}
    for pair in chosen:
        prompts = validation if pair in held else train
        for relation in relations:
            orders = [pair, pair[::-1]] if relation == "then" else [tuple(rng.sample(pair, 2))]
            for order in orders:
                prompt = _prompt(order, relation, words, negative, seconds, rng)
                prompts[prompt.id] = prompt
    if not train:
        raise UserError(
            "there are no pairs of sounds to train on; give at least two classes and one relation"
        )
    return tuple(train.values()), tuple(validation.values())


def _rules_of(
    classes: Sequence[str], sources: Sequence[str] | None, table: str | Path
) -> dict[str, list[Rule]]:
    for name in sources or ():
        if name not in SOURCES:
            raise UserError(
                f"sources: unknown source of sounds {name!r}; {did_you_mean(name, SOURCES)}"
            )
    found: dict[str, list[Rule]] = {}
    for rule in load_rules(Path(table)):
        needs_recording = "{" in rule.caption  # {words} are those of a recording
        if not needs_recording and (sources is None or rule.source in sources):
            found.setdefault(rule.sound_class, []).append(rule)
    for name in classes:
        if name not in found:
            where = f" in the sources {', '.join(sources)}" if sources is not None else ""
            raise UserError(
                f"classes: there is no sound class {name!r}{where}; {did_you_mean(name, found)}"
            )
    return found


def _pair(pair: Sequence[str], classes: Sequence[str]) -> tuple[str, str]:
    if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
        raise UserError(f"invalid pair {pair!r}: expected two different classes in a list")
    for name in pair:
        if name not in classes:
            raise UserError(
                f"pairs: {name!r} is not one of the classes; {did_you_mean(name, classes)}"
            )
    return tuple(sorted(pair))


def _hold_out(
    pairs: Sequence[tuple[str, str]], share: float, rng: random.Random
) -> set[tuple[str, str]]:
    """Draws a share of the pairs so that every class remains in another pair."""
    if not 0 <= share < 1:
        raise UserError(f"invalid held_out_share {share}: expected 0 <= share < 1")
    wanted = round(share * len(pairs))
    held = set()
    left = set(pairs)
    for pair in rng.sample(pairs, len(pairs)):
        if len(held) < wanted and all(
            any(name in other for other in left - {pair}) for name in pair
        ):
            held.add(pair)
            left.remove(pair)
    if len(held) < wanted:
        raise UserError(
            f"held_out_share {share} of {len(pairs)} pairs is {wanted}, but only {len(held)} can be"
            " held out while every class stays in training; lower it or give more classes"
        )
    return held


def _prompt(
    order: Sequence[str],
    relation: str,
    words: dict[str, list[Rule]],
    negative: str,
    seconds: float,
    rng: random.Random,
) -> Prompt:
    rules = [rng.choice(words[name]) for name in order]
    events = [
        SceneEvent(rule.sound_class, "", rule.caption, rule.audioset_labels, 0.0, seconds)
        for rule in rules
    ]
    scene = worded(relation, events, 0, rng)  # only its words are used: there is no recording yet
    labels = {
        "events": list(order),
        "relation": relation,
        "audioset": [list(rule.audioset_labels) for rule in rules],
        "swapped": swap_order(scene),
    }
    return Prompt(
        prompt_id(scene.caption, negative, seconds),
        scene.caption,
        negative,
        float(seconds),
        labels=labels,
    )
