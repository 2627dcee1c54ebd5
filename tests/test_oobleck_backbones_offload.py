"""Stable Audio and TangoFlux offload their text encoder and decoder as a run requests."""

import pytest
import torch
import toy_stable_audio
import toy_tangoflux

from lightning_modules.offload import part_modules, present, put_text_encoders_away
from zoo.types import Prompt

PROMPTS = (Prompt("a", "a dog barks", "rain", 0.2), Prompt("b", "sad piano and rain", "", 0.2))


@pytest.mark.parametrize("toy", [toy_stable_audio, toy_tangoflux])
@pytest.mark.parametrize("drop", [False, True])
def test_encoded_texts_are_enough(toy, drop):
    backbone = toy.small_model(frame_window="heard")
    wanted = [
        backbone.encode_prompts(side) for side in (PROMPTS, [p.as_negative() for p in PROMPTS])
    ]
    backbone = toy.small_model(frame_window="heard")
    (text,) = part_modules(backbone, "text")
    asked = []
    text.encoder.register_forward_hook(lambda *_: asked.append(1))
    put_text_encoders_away(backbone, PROMPTS, drop=drop)
    assert asked and (backbone.text is None) == drop
    asked.clear()
    again = [
        backbone.encode_prompts(side) for side in (PROMPTS, [p.as_negative() for p in PROMPTS])
    ]
    for one, other in zip(wanted, again, strict=True):
        torch.testing.assert_close(dict(other.streams), dict(one.streams), atol=1e-6, rtol=1e-5)
    assert not asked
    with present(backbone, "decoder", "cpu"):
        assert backbone.decode(torch.zeros(1, *backbone.latent_shape(0.2))).shape == (
            1,
            2,
            25 * 128,
        )
