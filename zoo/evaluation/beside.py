"""Table 3: trained models beside the best of n clips of the model that they were trained from.

Choosing among n clips needs no training, but n times the sampling for each clip that is kept. So
the table says what either gains by each scorer, and what a clip costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.evaluation.best_of_n import cost
from zoo.evaluation.results import (
    TRAINED,
    ClipSet,
    Picking,
    Results,
    ScorerFacts,
    baseline_of,
)
from zoo.evaluation.statistics import (
    SCORE,
    Difference,
    Estimate,
    accuracy,
    accuracy_difference,
    has,
    mean,
    mean_difference,
    picked,
)
from zoo.evaluation.tables import (
    NONE,
    OVER_PROMPTS,
    Table,
    few_prompts_note,
    measure,
    shown,
    shown_difference,
    sizes,
)
from zoo.files import written_beside

PICTURE = "best_of_n.png"
DEFAULT_N = 4


@dataclass(frozen=True)
class Way:
    """One way to a clip: a model as it is, the best of n of its clips, or a trained model.

    - ``forwards``, ``reward_calls``: per clip that is kept, as words.
    - ``values``, ``differences``: scorer -> number, and what it gains over the model as it is.
    - ``own``: the scorer that picked the clips, which does not judge them; "" where none did.
    """

    title: str
    sizes: str
    forwards: str
    reward_calls: str
    values: Mapping[str, Estimate | None]
    differences: Mapping[str, Difference | None]
    own: str = ""


def picking_of(
    pick_by: str | None,
    best_of: int | None,
    scorers: Mapping[str, ScorerFacts],
    default: Picking | str | None,
    clips_per_prompt: Sequence[int],
) -> Picking | None:
    """What the options ask for; without options the training reward picks, where it scores.

    Args:
        pick_by: the word after ``--pick-by``.
        best_of: the number after ``--best-of``.
        scorers: their names, and the words that opened them -> facts.
        default: what is picked by where nothing is asked for: a name among ``scorers``, or an
            earlier picking.
        clips_per_prompt: of the sets that are picked from.

    Returns:
        None where nothing picks: no scorer, no set to pick from, or one clip per prompt.

    Raises:
        UserError: for a scorer that is not there, a number that nothing picks by, and prompts with
            fewer clips.
    """
    if best_of == 1:
        return None
    earlier = default if isinstance(default, Picking) else None
    by = pick_by or (earlier.by if earlier else default)
    if pick_by is not None and pick_by not in scorers:
        raise UserError(
            f"--pick-by {pick_by} is not among the scorers of --rewards:"
            f" {', '.join(dict.fromkeys(facts.name for facts in scorers.values()))}"
        )
    is_asked = pick_by is not None or best_of is not None
    if by not in scorers:
        if best_of is not None:
            raise UserError("--best-of: say which of the --rewards picks, with --pick-by NAME")
        return None
    if not clips_per_prompt:
        if is_asked:
            raise UserError(
                "the best of n is picked among the clips of a model that was not trained; give"
                " --baseline too"
            )
        return None
    fewest = min(clips_per_prompt)
    wanted = best_of or (earlier.n if earlier else min(DEFAULT_N, fewest))
    if wanted > fewest or (is_asked and fewest == 1):
        raise UserError(
            f"--best-of {wanted}: a prompt has {fewest} clip{'s' * (fewest != 1)}, and the best is"
            " picked among the clips of one prompt; make more, or pick among fewer"
        )
    return Picking(scorers[by].name, wanted) if wanted > 1 else None


def clips_per_prompt(sets: Iterable[tuple[str, Iterable[str]]]) -> list[int]:
    """The counts of all prompts of the sets, given as (role, prompt of each clip), not trained."""
    counted = [Counter(prompts) for role, prompts in sets if role != TRAINED]
    return [count for counts in counted for count in counts.values()]


def ways(results: Results) -> list[list[Way]]:
    """Per set that is picked from: as it is, the best of n, and what was trained from it."""
    picking = results.picking
    if picking is None:
        return []
    by = next(scorer for scorer in results.scorers if scorer.name == picking.by)
    groups = []
    for one in results.sets:
        if one.role == TRAINED or not has(one, by, SCORE):
            continue
        own = [_plain(one, results.scorers), _best(one, results.scorers, by, picking.n)]
        for other in results.sets:
            if other.role == TRAINED and baseline_of(other, results.sets) == one:
                own.append(_trained(one, other, results.scorers))
        groups.append(own)
    return groups


def _plain(one: ClipSet, scorers: Sequence[ScorerFacts]) -> Way:
    values = {scorer.name: _value(one, scorer) for scorer in scorers}
    return Way(one.title, sizes(one), *_price(one, 1), values, {})


def _best(one: ClipSet, scorers: Sequence[ScorerFacts], by: ScorerFacts, n: int) -> Way:
    found = {scorer.name: picked(one, by, n, scorer) for scorer in scorers}
    own = [name for name, each in found.items() if each is not None and not each.is_judged]
    return Way(
        f"best of {n} by {by.name} ({one.name})",
        sizes(one),
        *_price(one, n),
        {name: None if each is None else each.value for name, each in found.items()},
        {
            name: None if each is None else Difference(each.gain, is_paired=True)
            for name, each in found.items()
        },
        *own[:1],
    )


def _trained(original: ClipSet, one: ClipSet, scorers: Sequence[ScorerFacts]) -> Way:
    differences = {}
    for scorer in scorers:
        find = accuracy_difference if scorer.class_names else mean_difference
        differences[scorer.name] = find(original, one, scorer)
    values = {scorer.name: _value(one, scorer) for scorer in scorers}
    return Way(one.title, sizes(one), *_price(one, 1), values, differences)


def _value(one: ClipSet, scorer: ScorerFacts) -> Estimate | None:
    if not scorer.class_names:
        return mean(one, scorer)
    found = accuracy(one, scorer)
    return None if found is None else found.balanced


def _price(one: ClipSet, n: int) -> tuple[str, str]:
    """(forwards, reward calls) per clip; of clips of a folder only how many times as many."""
    source = one.source
    calls = cost(Sampler(1), n).reward_calls
    if not {"steps", "guidance_scale"} <= source.keys():
        return (f"{n} x" if n > 1 else "not recorded"), str(calls)
    sampler = Sampler(
        source["steps"],
        source["guidance_scale"],
        source.get("eta", 1.0),
        source.get("rule", "ddim"),
    )
    return str(cost(sampler, n).network_evaluations), str(calls)


def best_of_n_table(results: Results) -> Table | None:
    """None where nothing was picked."""
    groups = ways(results)
    if results.picking is None or not groups:
        return None
    header = ["clips", "clips (prompts)", "network evaluations per clip", "reward calls per clip"]
    for scorer in results.scorers:
        header += [f"{measure(scorer)} by {scorer.title}", "difference"]
    rows = [_row(way, results.scorers) for group in groups for way in group]
    n = results.picking.n
    judges = [scorer.name for scorer in results.scorers if scorer.name != results.picking.by]
    how = (
        f"Best of {n}: of {n} clips of a prompt, the one that {results.picking.by} scores highest;"
        " the mean over all groups of so many among the clips of a prompt (a tie is shared)."
        " Differences are to the clips as they are, paired by prompt."
    )
    own = (
        f"{results.picking.by} picks, so its own number of the picked clips (in parentheses) says"
        " how hard it picked, not how good they are."
        + ("" if judges else " Nothing else judges them here: name more --rewards.")
    )
    price = (
        "Network evaluations: rows of the denoiser for one clip that is kept (steps, twice with"
        " guidance, times the clips it is picked from). Training is not counted."
    )
    used = [(one.title, one) for one in results.sets]
    notes = (how, own, price, OVER_PROMPTS, *few_prompts_note(used))
    return Table(f"Table 3: beside the best of {n}", tuple(header), tuple(rows), notes)


def _row(way: Way, scorers: Sequence[ScorerFacts]) -> tuple[str, ...]:
    cells = [way.title, way.sizes, way.forwards, way.reward_calls]
    for scorer in scorers:
        digits = 2 if scorer.class_names else 3
        pair = [
            shown(way.values[scorer.name], digits),
            shown_difference(way.differences.get(scorer.name), digits),
        ]
        is_own = scorer.name == way.own
        cells += [f"({cell})" if is_own and cell != NONE else cell for cell in pair]
    return tuple(cells)


def plain_ways(results: Results) -> list[dict[str, Any]]:
    """All numbers of the table as plain values, for ``results.json``."""
    return [asdict(way) for group in ways(results) for way in group]


def draw_best_of_n(results: Results, path: Path) -> bool:
    """Draws what every way gains by every scorer, with 95 % intervals.

    Returns:
        Whether there was anything to draw.

    Raises:
        OSError: where the file cannot be written.
    """
    from matplotlib.figure import Figure

    gained = [way for group in ways(results) for way in group if way.differences]
    if not gained:
        return False
    scorers = [one for one in results.scorers if any(way.differences[one.name] for way in gained)]
    height = 1.6 + 0.45 * len(gained)
    figure = Figure(figsize=(4.2 * len(scorers) + 2.5, height), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(scorers), squeeze=False, sharey=True).flatten()
    for axis, scorer in zip(axes, scorers, strict=True):
        for place, way in enumerate(gained):
            found = way.differences[scorer.name]
            if found is not None:
                _point(axis, found.estimate, place, is_own=scorer.name == way.own)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_yticks(range(len(gained)), [way.title.replace("$", r"\$") for way in gained])
        axis.set_ylim(len(gained) - 0.5, -0.5)
        axis.set_title(f"{measure(scorer)} by {scorer.title}".replace("$", r"\$"), fontsize=9)
        axis.set_xlabel("gain over the clips as they are", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    with written_beside(path) as part:
        figure.savefig(part, format="png")
    return True


def _point(axis: Any, found: Estimate, place: int, *, is_own: bool) -> None:
    """A point with its interval; hollow where the scorer picked the clips itself."""
    sides = None
    if found.low is not None and found.high is not None:
        sides = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
    colour = "gray" if is_own else "tab:blue"
    face = "white" if is_own else colour
    axis.errorbar(
        [found.value], [place], xerr=sides, fmt="o", color=colour, mfc=face, capsize=3, lw=1.2
    )
