"""The paper's questions at toy size: conditions, verdicts, tables, and the whole protocol."""

import json
from pathlib import Path

import numpy as np
import pytest
from toys import small_audio

from benchmarks import paper_questions as pq
from benchmarks import paper_tables as pt
from benchmarks.evaluation import Measured
from zoo.backbones.lora import add_lora
from zoo.configuration import read_configuration
from zoo.hub.adapters import save_adapter
from zoo.rewards.mood import MOODS

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "ddpo" / "paper_questions.yaml"
TITLES = {condition.name: condition.title for condition in pq.CONDITIONS}
SMALL = {"channels": [4, 4, 4, 4, 4, 4, 4], "n_mels": 32, "chunk_s": 0.5}


def measured(shift: float) -> Measured:
    base = np.arange(8.0) + shift + np.array([0.1, -0.1] * 4) * shift
    return Measured(list(MOODS) * 2, list("abcdefgh"), dict.fromkeys(pt.SCORES, base))


@pytest.mark.long
@pytest.mark.parametrize("condition", pq.CONDITIONS, ids=lambda condition: condition.name)
def test_every_condition_is_the_same_amount_of_work(condition):
    config = read_configuration([CONFIG], pq.overrides(condition, Path("clap"), Path("label")))
    module, data = config.module, config.data
    assert data["prompts_per_round"] * data["repeats"] == 48
    window = range(*module["update"]["window"])
    assert (
        round(len(window) * module["update"]["timestep_fraction"]) == 2
        and window.stop < module["sampler"]["steps"]
    )
    assert len(pq.condition_prompts({"data": data})) == data["prompts_per_round"], (
        "every prompt comes up in every round"
    )


def test_the_conditions_differ_in_what_their_names_say():
    loaded = {
        c.name: read_configuration([CONFIG], pq.overrides(c, Path("clap"), Path("label")))
        for c in pq.CONDITIONS
    }
    base = loaded["emotions_4"]
    words = {
        name: {p.labels["word"] for p in pq.condition_prompts({"data": c.data})}
        for name, c in loaded.items()
    }
    instruments = {
        name: {p.labels["instrument"] for p in pq.condition_prompts({"data": c.data})}
        for name, c in loaded.items()
    }
    assert {name: len(words[name]) for name in words} == {
        name: 16 if name == "emotions_16" else 4 for name in words
    }
    assert {name: len(i) for name, i in instruments.items()} == {
        n: 3 if n == "instruments_3" else 1 for n in instruments
    }
    assert loaded["first_steps"].module["update"]["window"] == [0, 2]
    assert loaded["last_steps"].module["update"]["window"] == [1, 3]
    assert loaded["label"].module["reward"]["name"] == "label"
    guided = {name: c.module["sampler"]["guidance_scale"] for name, c in loaded.items()}
    assert guided == {name: 0.25 if name.startswith("weak") else 0.5 for name in guided}
    assert loaded["clap"].module["reward"]["name"] == "clap" != base.module["reward"]["name"]


def test_the_label_reward_is_the_same_classifier_with_another_value(tmp_path):
    import torch

    import zoo
    from zoo.types import Prompt

    pq.write_label_reward(tmp_path / "label")
    mood = zoo.load("embedded/mood")
    label = zoo.load(tmp_path / "label")
    wave = torch.randn(4, 1, 65_536, generator=torch.Generator().manual_seed(0)) * 0.1
    prompts = [Prompt(name, name, labels={"mood": name}) for name in MOODS]
    value, zero_one = (reward(wave, 16_000, prompts).score_B for reward in (mood, label))
    assert torch.equal(zero_one, (value == 0).float()) and 0 < zero_one.sum() < 4


def test_drawn_seeds_are_labelled_by_their_numbers():
    conditions = {condition.name: condition for condition in pq.CONDITIONS}
    assert [pq.run_seed(conditions["emotions_4"], seed) for seed in range(7)] == list(range(7))
    drawn = [pq.run_seed(conditions["drawn_seeds"], seed) for seed in range(5)]
    assert len(set(drawn)) == 5 and min(drawn) > 4
    for seed in (5, -1):
        with pytest.raises(ValueError, match=f"has the seeds 0 to 4, got {seed}"):
            pq.run_seed(conditions["drawn_seeds"], seed)


def test_verdicts_need_an_interval_on_one_side_of_zero():
    before = measured(0.0)
    assert (
        pt.verdict(before, measured(1.0), "clap") == "rose"
        and pt.verdict(before, measured(-1.0), "clap") == "fell"
    )
    assert pt.verdict(before, before, "clap") == "unchanged"
    noisy = Measured(
        before.groups, before.prompts, {"clap": before.values["clap"] + np.array([1.0, -0.9] * 4)}
    )
    assert pt.verdict(before, noisy, "clap") == "unchanged"


def test_tables_count_seeds():
    bases = {"emotions_4": {pt.TABLE1: measured(0.0)}}
    runs = {
        ("emotions_4", seed): {pt.TABLE1: measured(shift)}
        for seed, shift in enumerate((1.0, 1.0, -1.0))
    }
    text = pt.summary(TITLES, bases, runs, pt.TABLE1)
    assert "| 4 emotions, piano | 3.500 -> 3.833 | 2 / 1 of 3 |" in text
    assert text.count("\n") == 3, "conditions without runs have no row"
    assert pt.every_run(bases, runs, pt.TABLE1).count("| emotions_4 |") == 3
    assert "| base | 2.00 | 3.00 | 4.00 | 5.00 |" in pt.by_emotion(TITLES, bases, runs)


def test_the_mean_over_seeds_has_the_error_over_seeds():
    bases = {"clap": {pt.TABLE1: measured(0.0)}}
    runs = {
        ("clap", seed): {pt.TABLE1: measured(shift)} for seed, shift in enumerate((1.0, 2.0, 6.0))
    }
    row = pt.over_seeds(TITLES, bases, runs, pt.TABLE1).splitlines()[-1]
    assert (
        row == "| CLAP reward |" + " 3.000 ± 1.528 |" * 4
    )  # sqrt(7) deviation of 1, 2, 6, over sqrt(3)


def test_references_show_what_was_measured():
    values = {
        "accuracy": np.array([1.0, 0.0]),
        "reward": np.array([0.0, -0.5]),
        "in_tune": np.ones(2),
    }
    real = Measured(["sad", "happy"], ["p", "q"], values)
    rows = pt.references({"real clips": real}).splitlines()
    assert rows[0] == "| clips | balanced accuracy | value reward |"
    assert (
        rows[2] == "| real clips | 0.500 [-5.853, 6.853] | -0.250 [-3.427, 2.927] |"
    )  # t of one degree: 12.706
    assert "no judge" in pt.references({})


def test_a_condition_with_another_base_shows_it():
    bases = {
        name: {pt.TABLE1: measured(shift)}
        for name, shift in (("clap", 0.0), ("ensemble", 0.0), ("weak_guidance", -1.0))
    }
    runs = {(name, 0): {pt.TABLE1: measured(2.0)} for name in bases}
    rows = [
        line.split(" | ")[0].strip("| ")
        for line in pt.by_emotion(TITLES, bases, runs).splitlines()[2:]
    ]
    weak = TITLES["weak_guidance"]
    assert rows == ["base", TITLES["clap"], TITLES["ensemble"], f"base of: {weak}", weak]


@pytest.mark.long
def test_the_protocol_at_toy_size(tmp_path, capsys, monkeypatch):
    import zoo
    from zoo.rewards.mood import EmotionReward

    reward = {"_target_": "zoo.rewards.mood.EmotionReward", **SMALL}
    module = {
        "_target_": "lightning_modules.rl.ddpo.DDPO",
        "backbone": {"_target_": "toys.small_audio"},
        "reward": reward,
    }
    data = {
        "_target_": "datamodules.prompts.PromptDataModule",
        "template": "a {word} {instrument} solo",
        "seconds": 1.024,
    }
    data |= {"words": {mood: [mood] for mood in MOODS}, "instruments": ["piano"]}
    (tmp_path / "config.yaml").write_text(
        json.dumps({"module": {**module, "sampler": {"steps": 2}}, "data": data})
    )  # JSON is YAML
    for name in ("emotions_4-0", "instruments_3-0"):
        backbone = small_audio()
        add_lora(backbone, 2)
        save_adapter(backbone, tmp_path / "out" / name / "adapter")
    monkeypatch.setattr(zoo, "load", lambda name: EmotionReward(**SMALL))
    arguments = [
        "--config",
        str(tmp_path / "config.yaml"),
        "--out",
        str(tmp_path / "out"),
        "--clap",
        str(tmp_path),
    ]
    arguments += [
        "--conditions",
        "emotions_4",
        "instruments_3",
        "--seeds",
        "0",
        "--samples",
        "3",
        "--judge",
        "none",
    ]
    with pytest.raises(ValueError, match="vibenet or none"):
        pq.main([*arguments, "--judge", "Vibe"])
    pq.main(arguments)
    first = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "results.json").read_text())["clips"]
    assert (
        len(record["emotions_4-0"]["table1"]["values"]["clap"]) == 12
        and "own" not in record["emotions_4-0"]
    )
    assert len(record["instruments_3-0"]["own"]["values"]["clap"]) == 12, (
        "12 prompts, one clip each"
    )
    assert (
        tmp_path / "out" / "table.png"
    ).stat().st_size > 5000 and "4 emotions, 3 instruments" in first
    monkeypatch.setattr(pq, "generations", None)
    pq.main(arguments)  # nothing is generated a second time
    assert capsys.readouterr().out == first
