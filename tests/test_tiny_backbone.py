"""The embedded backbone's parts: text, codec, denoiser."""

import hashlib
import math

import pytest
import torch

import zoo
from zoo.backbones.spectral_codec import SpectralCodec
from zoo.backbones.tiny import TinyAudio, from_codec
from zoo.conditioners.spatial import source_features
from zoo.conditioners.text import EMPTY, VOCABULARY_SIZE, WORDS, tokenize
from zoo.types import Prompt, SourcePath

SMALL = {
    "width": 32,
    "depth": 1,
    "heads": 2,
    "text_width": 16,
    "text_depth": 1,
    "codec_width": 16,
    "codec_encoder_depth": 1,
    "codec_decoder_depth": 1,
}


# rows of two samples: mean, standard deviation and number 77; what is heard: left and right RMS
SHIPPED = {
    "output": [[0.10218, 0.54388, -0.61904], [0.020908, 0.69341, -0.11654]],
    "latents": [[-0.29535, 1.0851, -1.7512], [0.16252, 1.3167, -1.1245]],
    "heard": [[0.032338, 0.029939], [0.031329, 0.030735]],
}


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    model = TinyAudio(**SMALL).eval()
    torch.nn.init.normal_(model.denoiser.patch_out.weight, std=0.1)
    for block in model.denoiser.blocks:
        torch.nn.init.normal_(block.cross.to_out.weight, std=0.3)
    return model


def tone(frequency_hz, seconds=1.024, rate=16_000, left=1.0, right=1.0, delay_samples=0):
    time = torch.arange(round(seconds * rate)) / rate
    late = (torch.arange(round(seconds * rate)) - delay_samples) / rate
    return 0.2 * torch.stack(
        [
            left * torch.sin(2 * math.pi * frequency_hz * time),
            right * torch.sin(2 * math.pi * frequency_hz * late),
        ]
    )


def test_known_words_are_one_token_and_others_are_spelled():
    assert len(tokenize("A sad PIANO solo, high quality")) == 6
    assert tokenize("sad") != tokenize("tender")
    assert len(tokenize("qzx")) == 4  # three bytes and the space
    assert tokenize("") == tokenize(" ,.") == [EMPTY]
    assert len(WORDS) == len(set(WORDS)) and 258 + len(WORDS) <= VOCABULARY_SIZE


def test_words_keep_their_token_when_the_list_grows():
    """Weights trained with a shorter list stay valid, as new words are added at the end."""
    places = {"a": 0, "music": 47, "happy": 61, "knocking": 183, "joined": 184, "whoosh": 245}
    assert {word: WORDS.index(word) for word in places} == places
    digest = hashlib.sha256(" ".join(WORDS[:184]).encode()).hexdigest()
    assert (
        digest[:16] == "f23054678a85177e"
    )  # the words that the first shipped weights know, in their order


def test_a_caption_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="needs .* tokens, the model takes 64"):
        tokenize("xylophonist " * 20)


def test_padding_does_not_change_a_caption(backbone):
    alone = backbone.encode_prompts([Prompt("a", "sad piano")])
    padded = backbone.encode_prompts(
        [Prompt("a", "sad piano"), Prompt("b", "a very long caption that nobody has in the list")]
    )
    length = int(alone["mask_BL"].sum())
    torch.testing.assert_close(
        padded["tokens_BLD"][0, :length], alone["tokens_BLD"][0], atol=1e-6, rtol=1e-5
    )
    latent = torch.randn(1, 32, 8)
    time = torch.tensor([0.5])
    torch.testing.assert_close(
        backbone.predict(latent, time, padded.rows([0])),
        backbone.predict(latent, time, alone),
        atol=1e-5,
        rtol=1e-4,
    )


def test_sources_of_others_do_not_change_a_prompt(backbone):
    one = Prompt("a", "sad piano", sources=(SourcePath(180.0),))
    others = [
        Prompt("b", "dog", sources=(SourcePath(0.0), SourcePath(90.0), SourcePath(45.0))),
        Prompt("c", "dog"),
    ]
    together = backbone.encode_prompts([one, *others])
    assert together["mask_BL"].sum(dim=1).tolist() == [4, 5, 2]  # length, words, sources
    latent = torch.randn(1, 32, 8)
    time = torch.tensor([0.5])
    with torch.no_grad():
        for row, prompt in enumerate([one, *others]):
            alone = backbone.predict(latent, time, backbone.encode_prompts([prompt]))
            among = backbone.predict(latent, time, together.rows([row]))
            torch.testing.assert_close(among, alone, atol=1e-5, rtol=1e-4)


def test_text_length_and_place_reach_the_prediction(backbone):
    base = Prompt("a", "sad piano", seconds=2.0)
    others = [
        Prompt("a", "happy piano", seconds=2.0),
        Prompt("a", "sad piano", seconds=4.0),
        Prompt("a", "sad piano", seconds=2.0, sources=(SourcePath(180.0),)),
    ]
    latent = torch.randn(1, 32, 8)
    time = torch.tensor([0.5])
    with torch.no_grad():
        first = backbone.predict(latent, time, backbone.encode_prompts([base]))
        for other in others:
            assert (
                backbone.predict(latent, time, backbone.encode_prompts([other])) - first
            ).abs().max() > 1e-4


def test_source_features_follow_the_azimuth_convention():
    right, front, left = (source_features(SourcePath(a)) for a in (0.0, 90.0, 180.0))
    assert (
        right[:2] == pytest.approx([1, 0])
        and front[:2] == pytest.approx([0, 1])
        and left[:2] == pytest.approx([-1, 0], abs=1e-9)
    )
    assert len(right) == 12


def test_any_number_of_frames_goes_through(backbone):
    conditioning = backbone.encode_prompts([Prompt("a", "sad")])
    for frames in (1, 7, 8):
        assert backbone.predict(
            torch.randn(1, 32, frames), torch.tensor([0.3]), conditioning
        ).shape == (1, 32, frames)


@pytest.mark.parametrize("frequency_hz", [220.0, 440.0, 1318.5])
def test_rebuilt_phase_keeps_a_tone_in_tune_and_in_level(frequency_hz):
    codec = SpectralCodec(width=8, encoder_depth=1, decoder_depth=1)
    wave = tone(frequency_hz)[None]
    made = codec.synthesize(*codec.features(wave))
    spectrum = torch.fft.rfft(
        made[0, 0, 2048:-2048] * torch.hann_window(made.shape[-1] - 4096)
    ).abs()
    peak_hz = spectrum.argmax().item() * 16_000 / (made.shape[-1] - 4096)
    assert abs(1200 * math.log2(peak_hz / frequency_hz)) < 20
    assert float(made.std()) == pytest.approx(float(wave.std()), rel=0.1)


@torch.no_grad()
def test_decoding_is_of_the_codecs_own_precision_under_autocast():
    codec = SpectralCodec(width=8, encoder_depth=1, decoder_depth=1)
    features = codec.features(tone(440.0)[None])
    with torch.autocast("cpu", torch.bfloat16):
        same = codec.synthesize(*features)
        decoded = codec.decode(torch.randn(1, 32, 8))
    assert (
        torch.equal(same, codec.synthesize(*features))
        and decoded.dtype == torch.float32
        and decoded.isfinite().all()
    )


def test_stereo_level_and_delay_survive_the_codec():
    codec = SpectralCodec(width=8, encoder_depth=1, decoder_depth=1)
    wave = tone(500.0, left=1.0, right=0.5)[None]
    made = codec.synthesize(*codec.features(wave))
    level_db = 20 * torch.log10(made[0, 0].std() / made[0, 1].std())
    assert float(level_db) == pytest.approx(6.02, abs=0.5)
    late = codec.synthesize(*codec.features(tone(500.0, delay_samples=6)[None]))[0, :, 2048:-2048]
    lag = max(range(-16, 17), key=lambda k: float((late[0] * torch.roll(late[1], -k)).sum()))
    assert lag in (5, 6, 7)  # the right ear is late: the source is on the left


def test_codec_is_differentiable_also_on_silence(backbone):
    for wave in (torch.zeros(1, 2, 8192), 0.1 * torch.randn(1, 2, 8192)):
        wave.requires_grad_()
        backbone.decode(backbone.encode(wave)).square().sum().backward()
        assert wave.grad.isfinite().all()


def test_codec_shapes_and_refusals(backbone):
    latents = backbone.encode(torch.randn(2, 2, 10_000))
    assert latents.shape == (2, *backbone.latent_shape(10_000 / 16_000)) == (2, 32, 20)
    assert backbone.decode(latents).shape == (2, 2, 20 * 512)
    with pytest.raises(ValueError, match="stereo"):
        backbone.encode(torch.randn(1, 1, 4096))


def test_the_shipped_weights_are_read_as_they_were_trained():
    """Only its numbers distinguish a network with another time, gate or length.

    Measured when they were shipped; other weights need new numbers here.
    """
    model = zoo.load("embedded/music")
    waves = torch.sin(torch.arange(2 * 32 * 8) * 0.37).reshape(2, 32, 8)
    prompts = [
        Prompt("a", "sad piano", seconds=0.256),
        Prompt(
            "b",
            "happy guitar",
            seconds=4.0,
            sources=(SourcePath(30.0, 150.0, 0.5, 2.0, None, 10.0, 2.0, -6.0),),
        ),
    ]
    with torch.no_grad():
        output = model.predict(waves, torch.tensor([0.3, 0.8]), model.encode_prompts(prompts))
        heard = model.decode(waves)
        latents = model.encode(
            torch.stack([tone(440.0, 0.256, left=0.5), tone(220.0, 0.256, right=0.2)])
        )
    found = {
        name: [[row.mean().item(), row.std().item(), row.flatten()[77].item()] for row in tensor]
        for name, tensor in (("output", output), ("latents", latents))
    }
    found["heard"] = [[side.square().mean().sqrt().item() for side in row] for row in heard]
    for name, rows in SHIPPED.items():
        assert found[name] == [
            pytest.approx(row, rel=0.01, abs=0 if name == "heard" else 5e-3) for row in rows
        ], name


def test_denoiser_refuses_widths_that_do_not_divide():
    with pytest.raises(ValueError, match="divisible by heads"):
        TinyAudio(**{**SMALL, "heads": 3})


def test_from_codec_takes_weights_and_names_what_does_not_fit(backbone, tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "codec.safetensors"
    save_file(backbone.codec.state_dict(), file)
    with pytest.raises(ValueError, match="do not fit"):
        from_codec(str(file), width=32, depth=1, heads=2, text_width=16)
    with pytest.raises(FileNotFoundError, match="configs/embedded/codec.yaml"):
        from_codec(str(tmp_path / "missing.safetensors"))
