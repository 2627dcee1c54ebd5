"""The codec of mel spectrograms: lengths, and how many clips it handles at once."""

import pytest
import torch
from toy_tango import SMALL

from zoo.backbones.mel_codec import MelCodec


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return MelCodec(SMALL["vae"], SMALL["vocoder"]).eval().requires_grad_(False)


def test_a_length_of_whole_latent_frames_has_no_extra_frame(codec):
    per_second = codec.sample_rate_hz / codec.samples_per_latent
    seconds = [frames / per_second for frames in range(1, 400)] + [
        0.04 * frames for frames in range(1, 400)
    ]
    wanted = [*range(1, 400)] + [round(0.04 * frames * per_second) for frames in range(1, 400)]
    assert [codec.latent_shape(length)[1] for length in seconds] == wanted  # 0.04 * 35 is above 1.4
    assert codec.latent_shape(0.04 + 1e-3)[1] == wanted[399] + 1


def test_the_frame_beyond_the_end_is_cut_and_no_other(codec, monkeypatch):
    """A click at the centre of frame 5 is in frame 5 of the autoencoder's input."""
    given = []
    posterior = codec.posterior
    monkeypatch.setattr(codec, "posterior", lambda mel: given.append(mel) or posterior(mel))
    wave = torch.zeros(1, 1, 8 * codec.samples_per_latent)
    wave[..., 5 * codec.hop] = 1.0
    codec.encode(wave)
    assert given[0].shape[2] == 8 * codec.shrinkage
    assert int(given[0][0, 0].mean(dim=-1).argmax()) == 5


def test_clips_are_coded_four_at_once_and_none_depends_on_the_others(codec):
    seen = []
    hooks = [
        part.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
        for part in (codec.vae.encoder, codec.vae.decoder, codec.vocoder.conv_pre)
    ]
    wave = 0.1 * torch.randn(6, 1, 4 * codec.samples_per_latent)
    latents = codec.encode(wave)
    heard = codec.decode(latents)
    assert sorted(seen) == [2, 2, 2, 4, 4, 4]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(codec.encode(wave[5:]), latents[5:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codec.decode(latents[5:]), heard[5:], rtol=1e-3, atol=1e-4)
