"""BATON's benchmark: captions split by pair, the label rule, statistics by hand, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import baton_chain, baton_figures, baton_sounds, baton_units
from benchmarks.baton_figures import Record
from benchmarks.sound_scores import CLASSES
from datamodules.preferences.dialects import read_labels
from zoo.audio_files import write_audio
from zoo.errors import UserError
from zoo.evaluation.best_of_n import Cost
from zoo.generations import Sample
from zoo.types import Prompt, Waveform

CAPTIONS = baton_chain.captions()


def record(values: dict[str, list[float]], captions: str = "aabb") -> Record:
    columns = {name: np.array(column, dtype=float) for name, column in values.items()}
    return Record(tuple(captions), tuple(captions), columns)


def test_captions_are_split_by_pair_of_sounds() -> None:
    counts = {part: len(own) for part, own in CAPTIONS.parts.items()}
    assert counts == {"head": 150, "head_val": 30, "scored": 90}
    assert len(CAPTIONS.held_out) == 90
    assert len({prompt.id for prompt in (*CAPTIONS.train, *CAPTIONS.held_out)}) == 360
    pairs = [
        {baton_chain.pair_of(prompt) for prompt in own}
        for own in (*CAPTIONS.parts.values(), CAPTIONS.held_out)
    ]
    assert [len(own) for own in pairs] == [50, 10, 30, 30]
    assert len(set.union(*pairs)) == 120  # so no pair is in two of them
    held = {name for pair in pairs[-1] for name in pair}
    assert held <= {name for own in pairs[:-1] for pair in own for name in pair}


def test_noise_of_training_is_not_that_of_evaluation() -> None:
    seeds = [seed for k in range(5) for seed in baton_chain.clip_seeds(k)]
    assert len(set(seeds)) == 30
    assert max(seeds) < baton_chain.EVALUATION_SEED


class Rater:
    """Hears what the first sample of a clip says: the three classes from there on."""

    def hear(self, wave_BCN: torch.Tensor, sample_rate_hz: int) -> torch.Tensor:
        logit_BPK = torch.full((len(wave_BCN), 2, len(CLASSES)), -5.0)
        for row, wave_CN in enumerate(wave_BCN):
            first = round(float(wave_CN[0, 0]) * 100)
            logit_BPK[row, 0, first : first + 2] = 1.0
            logit_BPK[row, 1, first + 2] = 2.0
        return logit_BPK


def test_the_rater_asks_for_both_sounds_among_its_three(tmp_path: Path) -> None:
    names = [CLASSES[2], CLASSES[4]]
    prompts = [
        Prompt(f"p{i}", "two", labels={"events": events, "relation": relation})
        for i, (events, relation) in enumerate(
            [(names, "together"), (names[::-1], "then"), ([CLASSES[1], CLASSES[4]], "together")]
        )
    ]
    clips = []
    for place, prompt in enumerate(prompts):
        path = tmp_path / f"{place}.wav"
        write_audio(path, Waveform(torch.full((2, 64), 0.02), 16_000))
        clips.append(Sample(path, prompt, 0))
    # classes 2, 3 and 4 are heard; order is not asked
    assert baton_chain.rater_labels(clips, Rater(), batch_size=2) == [1, 1, 0]


def test_label_files_of_a_seed(tmp_path: Path) -> None:
    clips = [
        Sample(tmp_path / f"{place}_{seed}.wav", prompt, seed)
        for place, prompt in enumerate(CAPTIONS.train)
        for seed in (0, 1)
    ]
    labels = [float(clip.seed) for clip in clips]
    baton_chain.write_label_files(tmp_path, clips, labels, CAPTIONS)
    files = {p.stem: read_labels(p).checked() for p in tmp_path.glob("*.jsonl")}
    assert {name: len(own) for name, own in files.items()} == {
        "rater": 540,
        "head": 360,
        "hd": 360,
        "scored": 180,
        "positives": 270,
    }
    held = {prompt.text for prompt in CAPTIONS.held_out}
    assert not any(one.prompt in held for own in files.values() for one in own)
    assert {one.audio for one in files["hd"]}.isdisjoint(one.audio for one in files["scored"])
    assert all(one.label is None and one.score is None for one in files["scored"])
    assert {one.label for one in files["positives"]} == {1}
    assert [one.split for one in files["head"]].count("val") == 60
    assert {one.split for one in files["hd"]} == {"train"}  # fine-tuning learns all of them
    assert {one.source for one in files["hd"]} == {"HD"}


def test_differences_are_paired_and_a_caption_counts_once() -> None:
    base = record({"x": [0, 1, 0, 1]})
    after = [record({"x": [1, 1, 0, 1]}), record({"x": [1, 1, 1, 1]})]
    # clips: +1, 0, +.5, 0; captions: .5 and .25
    found = baton_figures.difference(base, after, "x")
    assert found.value == pytest.approx(0.375)
    assert found.error == pytest.approx(0.125)
    seeds = baton_figures.over_seeds([base], after, "x")
    assert seeds.value == pytest.approx(0.375)  # .25 and .5
    assert seeds.error == pytest.approx(0.125)
    other = baton_figures.contrast(after[:1], after[1:], "x")
    assert other.value == pytest.approx(0.25)


def test_a_measure_that_does_not_apply_is_left_out() -> None:
    base = record({"x": [0, np.nan, 0, np.nan]})
    after = record({"x": [1, np.nan, 0, np.nan]})
    assert baton_figures.difference(base, [after], "x").value == pytest.approx(0.5)
    text = json.dumps(base.to_json(), allow_nan=False)
    back = Record.from_json(json.loads(text))
    assert np.isnan(back.values["x"]).tolist() == [False, True, False, True]


def test_a_verdict_needs_every_interval_on_one_side() -> None:
    from zoo.statistics.clustered import clustered_mean

    up = clustered_mean([0.1, 0.11, 0.12], "abc")
    down = clustered_mean([-0.1, -0.11, -0.12], "abc")
    unsure = clustered_mean([0.3, -0.1, 0.1], "abc")
    lone = clustered_mean([0.3], "a")
    assert baton_figures.direction(up, up) == "rose"
    assert baton_figures.direction(down, down) == "fell"
    assert {baton_figures.direction(up, other) for other in (down, unsure, lone)} == {"unchanged"}


def test_best_of_n_by_hand() -> None:
    base = record({"x": [0, 1, 1, 0]})
    # picks the second clip of a (gain .5), and of b the first (.5)
    good = np.array([0.1, 0.9, 0.6, 0.5])
    assert baton_figures.best_of([good], base, "x").value == pytest.approx(0.5)
    # another reward picks the worse clip of a: averaged over both rewards a gains 0
    both = [good, np.array([0.9, 0.1, 0.6, 0.5])]
    found = baton_figures.best_of(both, base, "x")
    assert found.value == pytest.approx(0.25)
    assert found.prompts == 2


def test_gain_by_weight_by_hand() -> None:
    clips = [
        {"caption": "a", "weight": 1.0, "B": 1.0},
        {"caption": "a", "weight": 0.0, "B": 0.0},
        {"caption": "b", "weight": 1.0, "B": 0.0},
        {"caption": "b", "weight": 1.0, "B": 1.0},
    ]
    # a: (.5 * 1 - .5 * 0) / 2 / .75 = 1/3; b: nothing to choose
    found = baton_figures.weighted_gain(clips, "B")
    assert found.value == pytest.approx(1 / 6)
    assert found.prompts == 2


def test_the_lower_score_of_the_asked_sounds() -> None:
    score_BK = torch.arange(64.0).reshape(2, 32)
    prompts = [Prompt("p", "two", labels={"events": [CLASSES[7], CLASSES[3]]})] * 2
    assert baton_figures.weakest_of_asked(score_BK, prompts).tolist() == [3, 35]


def test_main_arms_are_compared_on_the_seeds_that_all_have(tmp_path: Path) -> None:
    places = baton_units.Places(tmp_path, tmp_path, tmp_path)
    for arm, seeds in {"raw": (0, 1), "unfiltered": (1, 2), "double": (0,)}.items():
        for seed in seeds:
            path = places.result(seed, arm)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(record({"x": [seed] * 4}).to_json()))
    found = baton_sounds.results(places, [0, 1, 2], ["raw", "unfiltered", "double"])
    assert {title: list(own) for title, own in found.items()} == {
        "BATON raw": [1],
        "unfiltered, r = 1": [1],
        "BATON raw, 300 steps": [0],
    }


def test_units_come_seed_by_seed_and_need_their_own_files(tmp_path: Path) -> None:
    places = baton_units.Places(tmp_path, tmp_path, tmp_path)
    arms = baton_units.training(places, [0, 1], ["raw", "centred"], on_trained=False)
    names = [unit.file.stem for unit in arms]
    assert names == ["seed0_raw", "seed0_centred", "seed1_raw", "seed1_centred"]
    prepared = baton_units.preparation(places, [3])
    made = {unit.file for unit in prepared}
    assert all(need in made for unit in prepared for need in unit.needs)


def test_the_gate_asks_for_a_whole_interval_above_0() -> None:
    from zoo.statistics.clustered import clustered_mean

    def of(values: list[float]) -> list[baton_figures.Choice]:
        gains = {"B.both3": clustered_mean(values, range(len(values)))}
        return [baton_figures.Choice("head", Cost(48, 3), gains)]

    assert baton_sounds.moves_a_judge(of([0.1, 0.2, 0.15]))
    assert not baton_sounds.moves_a_judge(of([0.1, 0.2, -0.15]))


def test_tables_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = baton_units.Places(tmp_path, tmp_path, tmp_path)
    names = [*baton_figures.MEASURES, "A.graded"]

    def write(path: Path, shift: float) -> None:
        values = {name: [shift + (i % 2) / 2 for i in range(9)] for name in names}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record(values, "aaabbbccc").to_json()))

    write(places.base(), 0.0)
    for seed in (0, 1):
        for arm, shift in (("raw", 0.1), ("unfiltered", -0.2)):
            write(places.result(seed, arm), shift + 0.01 * seed)
        places.head_scores(seed).parent.mkdir(exist_ok=True)
        places.head_scores(seed).write_text(json.dumps({"scores": list(range(9))}))
    places.codec.write_text(json.dumps({"level_db": 0.5, "latents": 0.1, "clips": 96}))
    out = ["--out", str(tmp_path), "--table-only", "--arms", "raw", "unfiltered"]
    baton_sounds.main(out)
    shown = capsys.readouterr().out
    assert shown.strip() == (tmp_path / "table.md").read_text("utf-8").strip()
    assert "| BATON raw | B both | +0.105" in shown
    assert "| BATON raw - unfiltered, r = 1 | +0.300" in shown
    assert "| best of 3, head (2 seeds) | 48 | 3 |" in shown
    assert "level +0.50 dB" in shown
    verdicts = [line for line in shown.splitlines() if line.endswith("| rose |")]
    assert len(verdicts) == 2  # BATON raw by B and by C; r = 1 fell
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results["seeds"] == {"BATON raw": [0, 1], "unfiltered, r = 1": [0, 1]}
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="rawe"):
        baton_sounds.main(["--out", str(tmp_path), "--arms", "rawe"])
