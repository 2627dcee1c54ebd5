"""Generation and training make samples the same way."""

from __future__ import annotations

import pytest
import torch
from toys import SMALL, ToyReward

import zoo
from datamodules.batches import PromptBatch
from lightning_modules.rl.rollouts import sample_and_score
from zoo.backbones.tiny import TinyAudio
from zoo.diffusion import Sampler, noise_generator
from zoo.rendering import encode_all, encode_sides, render
from zoo.types import Prompt

PROMPTS = [
    Prompt(name, f"A {name} harp", "hiss", seconds=0.3, labels={"mood": name})
    for name in ("sad", "happy")
]


@pytest.fixture(scope="module")
def backbone() -> TinyAudio:
    torch.manual_seed(3)
    model = TinyAudio(**SMALL).eval()
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_round_and_generate_make_the_same_waves(backbone, scale):
    sampler = Sampler(2, scale)
    batch = PromptBatch(tuple(PROMPTS), (0, 0), 0)
    made = sample_and_score(
        backbone,
        ToyReward(),
        sampler,
        batch,
        seed=7,
        sample_batch_size=2,
        device=torch.device("cpu"),
        keep="wave",
    ).wave_BCN
    waves = zoo.generate(backbone, PROMPTS, seeds=7, steps=2, guidance_scale=scale)
    assert len(waves) == 2 and not torch.equal(made[0], made[1])
    for own, wave in zip(made, waves, strict=True):
        assert torch.equal(own.clamp(-1, 1), wave.samples_CN)
        assert wave.samples_CN.shape == (backbone.channels, PROMPTS[0].samples(wave.sample_rate_hz))


def test_equal_prompts_are_encoded_once_and_keep_their_places(backbone):
    asked = []

    class Counting:
        def encode_prompts(self, prompts):
            asked.append([prompt.id for prompt in prompts])
            return backbone.encode_prompts(prompts)

    order = [PROMPTS[i] for i in (0, 1, 0, 0)]
    found = encode_all(Counting(), order, batch_size=1)
    assert asked == [["sad"], ["happy"]] and len(found) == 4
    alone = backbone.encode_prompts(PROMPTS[1:])
    for name, stream in alone.streams.items():
        assert torch.equal(
            found[name][1][: stream.shape[1] if stream.ndim > 1 else None], stream[0]
        )
        assert torch.equal(found[name][2], found[name][0])


def test_one_batch_has_one_length(backbone):
    prompts = [PROMPTS[0], Prompt("long", "A long harp", seconds=0.5)]
    encoded = encode_sides(backbone, Sampler(2), prompts, 2)
    noise = [noise_generator(0, 0, prompt.id, 0) for prompt in prompts]
    with pytest.raises(ValueError, match=r"0\.3, 0\.5.*seconds"):
        render(backbone, Sampler(2), prompts, encoded, noise, device="cpu")
