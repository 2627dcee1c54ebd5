"""The benchmarks at toy size: arithmetic of the judge, measurements, and written files."""

import json

import numpy as np
import pytest
import torch
from toys import small_audio

from benchmarks import data_speed, embedded_music, evaluation, judges, quickstart_seeds
from benchmarks.judges import OUTPUTS, MoodJudge, vibenet_log_mel
from zoo.backbones.lora import add_lora
from zoo.backbones.tiny import TinyAudio
from zoo.diffusion import Sampler
from zoo.hub.adapters import save_adapter
from zoo.rewards.mood import MOODS, EmotionReward

TINY = {
    "width": 32,
    "depth": 1,
    "heads": 2,
    "text_width": 16,
    "codec_width": 32,
    "codec_decoder_depth": 1,
}
SMALL = {"channels": [4, 4, 4, 4, 4, 4, 4], "n_mels": 32, "chunk_s": 0.5}
CENTRES = {"happy": (1, 1), "angry": (-1, 1), "sad": (-1, -1), "tender": (1, -1)}  # valence, energy


def outputs_of(moods, spread: float, seed: int = 0) -> np.ndarray:
    """Invented VibeNet outputs: valence and energy in the mood's quadrant, noise elsewhere."""
    outputs = np.random.default_rng(seed).normal(size=(len(moods), len(OUTPUTS))) * spread
    for row, mood in enumerate(moods):
        outputs[row, OUTPUTS.index("valence")] += CENTRES[mood][0]
        outputs[row, OUTPUTS.index("energy")] += CENTRES[mood][1]
    return outputs


def loudness_network(wave_BCN, sample_rate_hz):
    """A stand-in for VibeNet: two statistics of the wave as valence and energy."""
    assert sample_rate_hz == 16_000
    outputs = np.zeros((len(wave_BCN), len(OUTPUTS)))
    outputs[:, OUTPUTS.index("valence")] = wave_BCN.abs().mean(dim=(1, 2))
    outputs[:, OUTPUTS.index("energy")] = (
        (wave_BCN[..., 1:] - wave_BCN[..., :-1]).abs().mean(dim=(1, 2))
    )
    return outputs


def test_judge_recognises_separate_moods_and_rejects_wrong_ones():
    moods = list(MOODS) * 10
    judge = MoodJudge.fit(outputs_of(moods, 0.1), moods)
    fresh = outputs_of(moods, 0.1, seed=1)
    right = judge.verdict(fresh, moods).summary()
    assert (
        right["quadrant_right"][0] == right["probability_right"][0] == 1
        and right["probability"][0] > 0.9
    )
    wrong = judge.verdict(fresh, [MOODS[(MOODS.index(mood) + 1) % 4] for mood in moods]).summary()
    assert (
        wrong["quadrant_right"][0] == wrong["probability_right"][0] == 0
        and wrong["probability"][0] < 0.1
    )


def test_judge_is_calibrated_when_moods_overlap():
    moods = list(MOODS) * 200
    verdict = MoodJudge.fit(outputs_of(moods, 1.0), moods).verdict(
        outputs_of(moods, 1.0, seed=1), moods
    )
    probabilities = MoodJudge.fit(outputs_of(moods, 1.0), moods).probabilities(
        outputs_of(moods, 1.0, seed=1)
    )
    assert verdict.probability_right.mean() == pytest.approx(
        probabilities.max(axis=1).mean(), abs=0.05
    )


def test_judge_refuses_invalid_data():
    with pytest.raises(ValueError, match="none of sad, tender"):
        MoodJudge.fit(outputs_of(["happy", "angry"], 0.1), ["happy", "angry"])
    with pytest.raises(ValueError, match="unknown moods"):
        judges.mood_indices(["happy", "merry"])


def test_a_missing_judge_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps vibenet"):
        judges.vibenet_model_path()
    with pytest.raises(ValueError, match="vibenet or none"):
        evaluation.loaded_network("vibe")
    assert evaluation.loaded_network("none") is None


def test_log_mel_has_its_range_and_finds_a_tone():
    wave = torch.sin(2 * np.pi * 1000 * torch.arange(16_000) / 16_000).unsqueeze(0)
    mel = vibenet_log_mel(wave)[0]
    assert mel.shape == (128, 49) and float(mel.max() - mel.min()) <= 80.0001
    loudest = int(mel.mean(dim=1).argmax())  # Slaney: 15 mel at 1 kHz, 45.2 mel at 8 kHz, 129 steps
    assert abs(loudest - (15 / 45.245 * 129 - 1)) <= 1


def test_shuffling_keeps_clips_and_prompts_but_not_their_pairing():
    clips = evaluation.real_clips(2, ["piano"], 1.0, 16_000, evaluation.REAL_SEED, "additive")
    other = evaluation.shuffled(clips)
    assert sorted(other.moods) == sorted(clips.moods) and other.moods != clips.moods
    assert torch.equal(other.wave_BCN, clips.wave_BCN)


@pytest.mark.long
def test_card_table_at_toy_size(tmp_path):
    torch.manual_seed(0)
    backbone = TinyAudio(**TINY).eval()
    reward = EmotionReward(**SMALL)
    with torch.no_grad():
        rows = embedded_music.run(
            backbone,
            reward,
            loudness_network,
            Sampler(2, 2.0),
            ["piano"],
            1.024,
            2,
            repeats=2,
            seed=0,
            renderer="additive",
        )
    assert [len(row.groups) for row in rows.values()] == [
        8,
        8,
        8,
        24,
        8,
    ]  # one instrument: 12 of 16 words are held out
    text = embedded_music.table(rows)
    assert len(text.splitlines()) == 7 and "held-out judge" in text and "nan" not in text
    assert rows["real"].estimate("in_tune").value > 0.6
    embedded_music.picture(rows, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_paired_differences_and_verdicts():
    base = np.arange(8.0)
    before = evaluation.Measured(
        list(MOODS) * 2, list("abcdefgh"), {"reward": base, "judge_probability": base}
    )
    jitter = np.array([0.1, -0.1] * 4)
    up = evaluation.Measured(
        before.groups,
        before.prompts,
        {"reward": base + 1 + jitter, "judge_probability": base - 1 + jitter},
    )
    found = quickstart_seeds.differences(before, up, "reward")
    assert found.value == pytest.approx(1) and found.error == pytest.approx(
        0.1 * np.sqrt(8 / 7) / np.sqrt(8)
    )
    assert quickstart_seeds.verdict(before, up, quickstart_seeds.JUDGE) == "learned, judge fell"
    same = evaluation.Measured(
        before.groups, before.prompts, {"reward": base + jitter, "judge_probability": base + jitter}
    )
    assert (
        quickstart_seeds.verdict(before, same, quickstart_seeds.JUDGE)
        == "not certain, judge unchanged"
    )
    some = base + np.repeat(
        [1.0, 0.0, 0.0], [4, 2, 2]
    )  # all four clips of one prompt rose, those of two others did not
    few = evaluation.Measured(before.groups, ["a"] * 4 + ["b"] * 2 + ["c"] * 2, before.values)
    rose = evaluation.Measured(few.groups, few.prompts, {"reward": some})
    assert quickstart_seeds.differences(few, rose, "reward").error == pytest.approx(1 / 3)
    assert quickstart_seeds.verdict(few, rose, "none") == "not certain"
    assert "over 3 prompts (8 clips)" in quickstart_seeds.footnote(few)


def test_the_last_row_is_the_best_of_four_base_clips(tmp_path):
    values = {
        "reward": np.array([1.0, 2.0, 4.0, 3.0, 5.0, 1.0, 2.0, 3.0]),
        "judge_probability": np.array([0.0, 0.0, 0.8, 0.0, 0.6, 0.2, 0.0, 0.0]),
        "in_tune": np.ones(3),  # of some clips only
    }
    before = evaluation.Measured(list(MOODS) * 2, ["a"] * 4 + ["b"] * 4, values)
    shown = quickstart_seeds.table(
        before, {}, quickstart_seeds.SCORES, quickstart_seeds.JUDGE, Sampler(10, 3.0)
    )
    (row,) = [line for line in shown.splitlines() if line.startswith("| best of 4")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # means 2.5 and 2.75, the best 4 and 5; the judge says .8 and .6 of them, .2 and .2 of all
    assert cells[1].startswith("(2.625 -> 4.500)") and cells[2].startswith("(1.875 [")
    assert cells[3] == "0.200 -> 0.700" and cells[4].startswith("0.500 [")
    assert cells[5] == "-"  # in tune
    assert "judge unchanged; 80 network evaluations and 4 reward calls a clip, 20 without" in row
    quickstart_seeds.picture(before, {0: before}, quickstart_seeds.SCORES, tmp_path / "table.png")
    assert (tmp_path / "table.png").is_file()
    few = evaluation.Measured(before.groups, list("aaabbbbb"), values)
    assert quickstart_seeds.best_of(few) == {}
    assert "best of" not in quickstart_seeds.table(
        few, {}, quickstart_seeds.SCORES, quickstart_seeds.JUDGE, Sampler(10, 3.0)
    )


def test_quickstart_protocol_at_toy_size(tmp_path, capsys):
    words = {mood: [mood] for mood in MOODS}
    config = {
        "module": {
            "_target_": "lightning_modules.rl.ddpo.DDPO",
            "backbone": {"_target_": "toys.small_audio"},
            "reward": {"_target_": "zoo.rewards.mood.EmotionReward", **SMALL},
            "sampler": {"steps": 2, "guidance_scale": 2.0},
        },
        "data": {
            "_target_": "datamodules.prompts.PromptDataModule",
            "template": "a {word} {instrument} solo",
            "words": words,
            "instruments": ["piano", "harp"],
            "held_out": [[mood, "harp"] for mood in MOODS],
            "val_prompts": 1,
            "seconds": 1.024,
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    backbone = small_audio()
    add_lora(backbone, 2)
    save_adapter(backbone, tmp_path / "out" / "seed0" / "adapter")
    folders = ["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]
    quickstart_seeds.main([*folders, "--seeds", "0", "--samples", "4", "--judge", "none"])
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(record["prompts"]) == 4 and len(record["before"]["values"]["reward"]) == 16
    shown = capsys.readouterr().out
    assert "| 0 |" in shown and "| best of 4 (no training) | (" in shown
    assert (tmp_path / "out" / "table.png").is_file()


def test_quickstart_needs_a_held_out_prompt_of_every_mood():
    data = {
        "_target_": "datamodules.prompts.PromptDataModule",
        "template": "a {word} {instrument} solo",
        "words": {mood: [mood] for mood in MOODS},
        "instruments": ["piano", "harp"],
        "held_out": [["happy", "harp"]],
    }
    with pytest.raises(ValueError, match="no prompt of angry, sad, tender"):
        quickstart_seeds.held_out_prompts(data, "mood")


@pytest.mark.long
def test_both_ways_of_reading_encoding_and_scoring_are_compared():
    rows = data_speed.crops(repeats=1, seconds=6.0)
    assert len(rows) == 3
    assert all(row.startswith("4 crops of 4 s, 6 s of ") and "= x" in row for row in rows)
    (row, difference) = data_speed.latents(repeats=1, backbone=small_audio(), clips=5)
    assert row.startswith("5 clips encoded")
    assert float(difference.rpartition(" ")[2]) < 2e-3
    (row,) = data_speed.scores(repeats=1, clips=3, seconds=0.2)
    assert row.startswith("3 clips, 3 scorers")
