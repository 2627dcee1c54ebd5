"""CLAP in transformers' classes: front end, weights and tokenizer from folders, invalid input."""

import json
import math
import shutil

import pytest
import torch
from toy_clap import AUDIO, CONFIG, SHORT, VOCABULARY, random_clap, tokenizer_file
from transformers import ClapFeatureExtractor

import zoo.hub.registry
from zoo.hub import store
from zoo.hub.artifact import load_artifact, save_artifact
from zoo.importers.pretrained_clap import with_files
from zoo.rewards.clap import ClapReward
from zoo.rewards.transformers_clap import ClapMel, TransformersClapTowers
from zoo.types import Prompt

pytestmark = pytest.mark.long

EXTRACTOR = {
    "frequency_min": 50,
    "frequency_max": 14_000,
    "truncation": "rand_trunc",
    "padding": "repeatpad",
}
PROMPTS = (Prompt("a", "a dog barks"), Prompt("b", "rain then wind"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained CLAP in transformers' layout."""
    path = tmp_path_factory.mktemp("clap")
    random_clap().save_pretrained(path)
    ClapFeatureExtractor(**EXTRACTOR).save_pretrained(path)
    tokenizer_file(path)
    return path


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """A random one with a window of 1.25 s."""
    tokenizer = str(tokenizer_file(tmp_path_factory.mktemp("tokenizer")))
    return ClapReward(
        "random", "transformers", with_files({**SHORT, "tokenizer": tokenizer})
    ).requires_grad_(False)


def noise(count: int = 2, samples: int = 60_000, channels: int = 1, seed: int = 1) -> torch.Tensor:
    return (
        torch.randn(count, channels, samples, generator=torch.Generator().manual_seed(seed)) * 0.1
    )


def with_silence(samples: int) -> torch.Tensor:
    wave = noise(1, samples)
    wave[..., samples // 3 : samples // 2] = 0
    return wave


@pytest.mark.parametrize("samples", [480_000, 144_000, 333_333, 5_000])
def test_the_front_end_is_the_library_s_on_clips_it_need_not_cut(samples):
    reward = ClapReward("x", "transformers", {"config": CONFIG})
    wave = with_silence(samples)
    expected = ClapFeatureExtractor(**EXTRACTOR)(
        wave[0, 0].numpy(), sampling_rate=48_000, return_tensors="pt"
    ).input_features
    found = reward.towers.mel(reward.cut(wave, 48_000)[0])
    assert found.shape == expected.shape == (1, 1, 1001, 64)
    assert (found - expected).abs().max() <= 1e-3  # dB
    assert (expected.min() == -100) == (samples > 10_000)  # a silence shorter than a frame is none


def test_the_library_s_own_defaults_are_another_front_end():
    wave = with_silence(480_000)
    default = ClapFeatureExtractor(truncation="rand_trunc")(
        wave[0, 0].numpy(), sampling_rate=48_000, return_tensors="pt"
    )
    found = ClapMel(48_000, 1024, 480, 64, 50.0, 14_000.0)(wave[0])
    assert (found - default.input_features).abs().max() > 1


def test_the_front_end_is_batched_and_its_gradient_finite_also_on_silence():
    mel = ClapMel(48_000, 1024, 480, 64, 50.0, 14_000.0)
    wave = noise(3, 48_000)[:, 0]
    wave[1] = 0
    wave.requires_grad_()
    together = mel(wave)
    assert torch.allclose(together[2:], mel(wave[2:]), atol=1e-4)
    together.sum().backward()
    assert (
        wave.grad.isfinite().all()
        and (wave.grad[1] == 0).all()
        and (wave.grad[[0, 2]].abs().sum(dim=1) > 0).all()
    )


def test_half_precision_leaves_the_front_end_s_tables(reward):
    towers = TransformersClapTowers(**SHORT)
    before = towers.mel(noise()[:, 0])
    towers.to(torch.bfloat16)
    assert torch.equal(towers.mel(noise()[:, 0]), before)
    embedding = towers.embed_audio(noise()[:, 0])
    assert embedding.dtype == torch.float32 and torch.allclose(embedding.norm(dim=1), torch.ones(2))


def test_a_clap_opened_in_bfloat16_hears_the_same(reward, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.rewards.clap._COLLAPSED", 1.1)  # its weights are random
    about = {"kind": "reward", "architecture": "clap", "arguments": reward.arguments}
    save_artifact(tmp_path / "clap", **about, module=reward)
    full, half = (zoo.load(tmp_path / "clap", dtype=dtype) for dtype in (None, "bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    wave_BCN = noise(3)
    turned_B = (full.embed_audio(wave_BCN, 48_000) * half.embed_audio(wave_BCN, 48_000)).sum(dim=-1)
    assert turned_B.min() > 0.999
    output = half(wave_BCN, 48_000, [Prompt(str(i), "a dog barks") for i in range(3)])
    assert output.score_B.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in output.parts.values())


def test_a_pretrained_folder_scores_as_the_library_does(folder):
    reward = ClapReward("small", "transformers", with_files({"pretrained": str(folder)}))
    library = random_clap()
    wave = noise(2, 480_000)
    features = ClapFeatureExtractor.from_pretrained(folder)(
        list(wave[:, 0].numpy()), sampling_rate=48_000, return_tensors="pt"
    )
    with torch.no_grad():
        audio = library.get_audio_features(input_features=features.input_features).pooler_output
        ids = torch.tensor(
            [
                [0, VOCABULARY["a"], VOCABULARY["dog"], VOCABULARY["barks"], 2],
                [0, VOCABULARY["rain"], VOCABULARY["then"], VOCABULARY["wind"], 2],
            ]
        )
        text = library.get_text_features(input_ids=ids).pooler_output
        output = reward(wave, 48_000, PROMPTS)
    assert torch.allclose(output.score_B, (audio * text).sum(dim=1), atol=1e-6) and list(
        output.parts
    ) == ["clap/small"]


def test_an_artefact_needs_neither_the_files_nor_a_network(folder, tmp_path):
    copy = tmp_path / "pretrained"
    shutil.copytree(folder, copy)
    reward = ClapReward("small", "transformers", with_files({"pretrained": str(copy)}))
    save_artifact(
        tmp_path / "out",
        kind="reward",
        architecture="clap",
        arguments=reward.arguments,
        module=reward,
    )
    wave = noise(2, 144_000)
    with torch.no_grad():
        expected = reward(wave, 48_000, PROMPTS).score_B
    shutil.rmtree(copy)
    assert str(copy) not in (tmp_path / "out" / "config.json").read_text()
    loaded = load_artifact(tmp_path / "out")
    assert (
        torch.equal(loaded(wave, 48_000, PROMPTS).score_B, expected)
        and loaded.arguments == reward.arguments
    )


def test_a_pulled_model_of_the_zoo_is_loaded_by_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # no lock file here
    entry = zoo.hub.registry.entry_of("clap-htsat-unfused")
    with pytest.raises(FileNotFoundError, match="clap-htsat-unfused"):
        zoo.load(entry.name)
    place = store.place(entry.name, entry.revision)
    shutil.copytree(folder, place)
    store.write_record(place, store.PullRecord(entry.repo_id, entry.revision, entry.licence, {}))
    wave = noise(2, 480_000)
    scores = zoo.load(entry.name)(wave, 48_000, PROMPTS)
    expected = ClapReward("x", "transformers", with_files({"pretrained": str(folder)}))(
        wave, 48_000, PROMPTS
    )
    assert list(scores.parts) == ["clap/clap-htsat-unfused"] and torch.equal(
        scores.score_B, expected.score_B.detach()
    )
    assert TransformersClapTowers(**with_files({"pretrained": entry.name})).tokenizer is not None
    with pytest.raises(ValueError, match="'clap_fusion'"):
        zoo.load("clap-htsat-fused")
    with pytest.raises(ValueError, match=r"'clap_fusion', expected 'clap'"):
        TransformersClapTowers(**with_files({"pretrained": "clap-htsat-fused"}))


def test_padding_and_batch_do_not_change_a_text(reward):
    texts = ["rain", "a dog barks and rain falls on leaves"]
    together = reward.towers.embed_text(texts)
    assert torch.allclose(together, reward.embed_text(texts), atol=1e-6)
    ids, mask = reward.towers.tokenizer(texts)
    assert ids[0].tolist() == [0, VOCABULARY["rain"], 2, *[1] * 7] and mask.sum(dim=1).tolist() == [
        3,
        10,
    ]


def test_a_long_text_is_refused_or_cut_before_its_end_token(tmp_path):
    long = "rain and " * 60
    file = str(tokenizer_file(tmp_path))
    with pytest.raises(ValueError, match="122 tokens, at most 77"):
        TransformersClapTowers(**with_files({**SHORT, "tokenizer": file})).embed_text([long])
    cutting = TransformersClapTowers(
        **with_files({**SHORT, "tokenizer": file, "long_texts": "cut"})
    ).tokenizer
    assert cutting([long])[0].shape == (1, 77) and cutting([long])[0][0, -1] == 2


def test_missing_and_foreign_tokenizers_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="'nobody/nothing'.*HF_HUB_OFFLINE"):
        TransformersClapTowers(**with_files({**SHORT, "tokenizer": "nobody/nothing"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        TransformersClapTowers(**with_files({**SHORT, "tokenizer": str(tmp_path / "empty")}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        TransformersClapTowers(**with_files({**SHORT, "tokenizer": str(tmp_path)}))
    nothing = tokenizer_file(tmp_path / "nothing", {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3})
    with pytest.raises(
        ValueError, match="empty stand-in"
    ):  # the library gives such a one when files are missing
        TransformersClapTowers(**with_files({**SHORT, "tokenizer": str(nothing)}))
    large = tokenizer_file(
        tmp_path / "large", {**VOCABULARY, **{f"word{i}": 18 + i for i in range(40)}}
    )
    with pytest.raises(ValueError, match="58 tokens.* 32"):
        TransformersClapTowers(**with_files({**SHORT, "tokenizer": str(large)}))
    with pytest.raises(ValueError, match="has no tokenizer"):
        TransformersClapTowers(
            **with_files({"pretrained": str(folder), "tokenizer": "none"})
        ).embed_text(["rain"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of the two"),
        ({"config": CONFIG, "pretrained": "x"}, "pretrained: 'x' names files"),
        ({"config": {**CONFIG, "projection_dims": 8}}, "did you mean 'projection_dim'"),
        (
            {"config": {**CONFIG, "audio_config": {**AUDIO, "depth": [1]}}},
            r"config\.audio_config\.depth: .*'depths'",
        ),
        ({"config": {"text_config": [1]}}, "must be an object"),
        ({"config": CONFIG, "n_mels": 32}, "num_mel_bins=64"),
        ({"config": CONFIG, "window_s": 12.0}, "1201 frames is longer than the 1024"),
        (
            {"config": {**CONFIG, "audio_config": {**AUDIO, "enable_fusion": True}}},
            "feature fusion",
        ),
        ({"config": CONFIG, "tokenizer_bytes": 8, "long_texts": "drop"}, "unknown long_texts"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClapReward("x", "transformers", arguments)


def test_wrong_folders_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere'"):
        TransformersClapTowers(**with_files({"pretrained": "nowhere"}))
    with pytest.raises(FileNotFoundError, match=r"no config\.json and 0 \.pt"):
        TransformersClapTowers(**with_files({"pretrained": str(tmp_path)}))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    extractor = json.loads((copy / "preprocessor_config.json").read_text())
    config = json.loads((copy / "config.json").read_text())
    huge = config | {
        "text_config": config["text_config"] | {"intermediate_size": 10**7}
    }  # 2.5 GB a matrix
    (copy / "config.json").write_text(json.dumps(huge))
    with pytest.raises(ValueError, match="far larger than the weights"):
        TransformersClapTowers(**with_files({"pretrained": str(copy)}))
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "preprocessor_config.json").write_text(
        json.dumps(extractor | {"frequency_min": 0, "truncation": "fusion"})
    )
    with pytest.raises(ValueError, match=r"fmin_hz=50\.0 here, 0 there; feature fusion there"):
        TransformersClapTowers(**with_files({"pretrained": str(copy)}))
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert', expected 'clap'"):
        TransformersClapTowers(**with_files({"pretrained": str(copy)}))


@pytest.mark.parametrize("rate", [None, 0, -1, 22_050.5, math.nan, math.inf, True, "48000"])
def test_an_invalid_rate_is_refused(reward, rate):
    with pytest.raises(ValueError, match="sample rate"):
        reward(noise(), rate, PROMPTS)


@pytest.mark.parametrize("rate", [8_000, 44_101, 192_000])
def test_low_odd_and_high_rates_are_heard_at_their_pitch(reward, rate):
    tone = 0.1 * torch.sin(2 * math.pi * 440 * torch.arange(int(1.25 * rate)) / rate)[None, None]
    window = reward.cut(tone, rate)[0, 0]
    assert window.shape == (60_000,) and torch.fft.rfft(
        window
    ).abs().argmax() * 48_000 / 60_000 == pytest.approx(440, abs=1)
    assert reward.embed_audio(tone, rate).isfinite().all()


@pytest.mark.parametrize(
    "wave", [torch.zeros(2, 2, 9000), torch.ones(2, 1, 70_000), noise().sign() * 3, noise(2, 1)]
)
def test_silent_clipped_and_tiny_clips_have_a_defined_score(reward, wave):
    output = reward(wave, 48_000, PROMPTS)
    assert output.score_B.isfinite().all() and (output.score_B.abs() <= 1 + 1e-6).all()
    assert torch.equal(output.score_B, reward(wave, 48_000, PROMPTS).score_B)


def test_stereo_is_mixed_and_a_broken_wave_spoils_its_own_row_only(reward):
    wave = noise(channels=2)
    mono = wave.mean(dim=1, keepdim=True)
    assert torch.allclose(
        reward.embed_audio(wave, 48_000), reward.embed_audio(mono, 48_000), atol=1e-6
    )
    mono[0, 0, 100] = torch.nan
    score = reward(mono, 48_000, PROMPTS).score_B
    assert score[0].isnan() and torch.allclose(
        score[1], reward(wave, 48_000, PROMPTS).score_B[1], atol=1e-6
    )


def test_no_samples_are_refused(reward):
    with pytest.raises(ValueError, match="0 samples"):
        reward(torch.zeros(2, 1, 0), 48_000, PROMPTS)


def test_the_gradient_reaches_the_wave_but_not_through_16_bits(reward):
    wave = noise().requires_grad_()
    reward(wave, 16_000, PROMPTS).score_B.sum().backward()
    assert wave.grad.isfinite().all() and (wave.grad.abs().amax(dim=(1, 2)) > 0).all()
    rounded = ClapReward("random", "transformers", SHORT, int16=True)
    assert not rounded.differentiable and not rounded.embed_audio(wave, 48_000).requires_grad
