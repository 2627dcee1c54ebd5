"""The contract of every reward of the table (``zoo/types.py``, ``Reward``)."""

import importlib
import json
import math

import pytest
import torch
from toy_clap import SHORT, tokenizer_file

from zoo.importers.pretrained_clap import with_files
from zoo.rewards import REWARDS
from zoo.types import Prompt, Reward, RewardOutput

SMALL_EMOTION = {"channels": [4, 4, 4, 4, 4, 4, 4], "n_mels": 32, "chunk_s": 0.5}
SMALL_CLAP = {
    "checkpoint": "untrained",
    "towers": "tiny",
    "arguments": {
        "window_s": 1.024,
        "n_mels": 32,
        "channels": [4, 4, 4, 8],
        "width": 16,
        "depth": 1,
        "text_depth": 1,
    },
}
TWO = {
    "mood": {"architecture": "emotion", "arguments": SMALL_EMOTION},
    "clap": {"reward": {"architecture": "clap", "arguments": SMALL_CLAP}, "weight": 2.0},
}
IN_ONE_UNIT = {
    name: {"reward": value.get("reward", value), "mean": -0.1, "std": 0.2}
    for name, value in TWO.items()
}
MOODS = [{"mood": "happy"}, {"mood": "sad"}, {"mood": "tender"}]
# the smallest arguments of each reward that need no weights of others, and prompts that it
# understands; REWARD/VARIANT where a reward has several kinds of networks
CASES = {
    "clap": (SMALL_CLAP, [{}, {}, {}]),
    "clap/transformers": (
        {"checkpoint": "random", "towers": "transformers", "arguments": SHORT},
        [{}, {}, {}],
    ),
    "emotion": (SMALL_EMOTION, MOODS),
    "ensemble": ({"members": TWO, "penalties": {"guards": {"architecture": "guards"}}}, MOODS),
    "ensemble/calibrated": ({"members": IN_ONE_UNIT, "spread_weight": 0.3}, MOODS),
    "ensemble/worst": ({"members": IN_ONE_UNIT, "aggregation": "worst"}, MOODS),
    "preference": (
        {
            "clap": {"architecture": "clap", "arguments": SMALL_CLAP},
            "embedding": 128,
            "hidden": 16,
        },
        [{}, {}, {}],
    ),
    "guards": ({"flatness": 0.4, "diversity": 2.0}, [{}, {}, {}]),
}
TESTED = {name.partition("/")[0] for name in CASES}
# one that is small by default and reads no labels needs no row
CASES |= {name: ({}, [{}, {}, {}]) for name in REWARDS.keys() - TESTED}


def test_cases_are_of_rewards_of_the_table():
    assert {name.partition("/")[0] for name in CASES} == set(REWARDS)


@pytest.fixture(params=sorted(CASES))
def case(request, tmp_path):
    arguments, labels = CASES[request.param]
    assert json.loads(json.dumps(arguments)) == arguments  # config.json holds them
    if arguments.get("towers") == "transformers":
        files = {**SHORT, "tokenizer": str(tokenizer_file(tmp_path))}
        arguments = arguments | {"arguments": with_files(files)}
    module, _, name = REWARDS[request.param.partition("/")[0]].partition(":")
    reward = getattr(importlib.import_module(module), name)(**arguments)
    prompts = [
        Prompt(id=f"p{i}", text="a piano solo", labels=label) for i, label in enumerate(labels)
    ]
    return reward, prompts


def waves(count: int, channels: int = 2, samples: int = 16_000) -> torch.Tensor:
    return torch.randn(count, channels, samples, generator=torch.Generator().manual_seed(1)) * 0.1


def test_one_finite_float32_score_per_sample(case):
    reward, prompts = case
    assert isinstance(reward, Reward)
    output = reward(waves(3), 16_000, prompts)
    assert (
        isinstance(output, RewardOutput)
        and output.score_B.shape == (3,)
        and output.score_B.dtype == torch.float32
    )
    assert torch.isfinite(output.score_B).all()
    for name, part in output.parts.items():
        assert part.shape == (3,) and torch.isfinite(part).all() and not part.requires_grad, name


def test_deterministic_also_inside_a_training_module(case):
    reward, prompts = case
    first = reward(waves(3), 16_000, prompts).score_B
    torch.nn.ModuleList([reward]).train()
    torch.manual_seed(123)
    assert torch.equal(first, reward(waves(3), 16_000, prompts).score_B)


def test_rows_do_not_depend_on_one_another(case):
    reward, prompts = case
    together = reward(waves(3), 16_000, prompts).score_B
    order = [2, 0, 1]
    apart = reward(waves(3)[order], 16_000, [prompts[i] for i in order]).score_B
    assert torch.allclose(together[order], apart, atol=1e-5)


@pytest.mark.parametrize(("channels", "rate_hz"), [(1, 16_000), (2, 44_100), (1, 8_000)])
def test_takes_mono_and_stereo_at_any_rate(case, channels, rate_hz):
    reward, prompts = case
    assert torch.isfinite(reward(waves(3, channels, rate_hz), rate_hz, prompts).score_B).all()


def test_silence_and_full_scale_are_finite(case):
    reward, prompts = case
    for wave in (torch.zeros(3, 2, 16_000), torch.ones(3, 2, 16_000), waves(3).sign()):
        assert torch.isfinite(reward(wave, 16_000, prompts).score_B).all()


def test_scores_keep_to_the_bounds_that_are_stated(case):
    reward, prompts = case
    least, greatest = getattr(reward, "bounds", (-math.inf, math.inf))
    for wave in (torch.zeros(3, 2, 16_000), waves(3), waves(3).sign()):
        score_B = reward(wave, 16_000, prompts).score_B
        assert ((score_B >= least - 1e-5) & (score_B <= greatest + 1e-5)).all()


def test_gradients_flow_if_and_only_if_it_says_so(case):
    reward, prompts = case
    wave = waves(3).requires_grad_()
    score = reward(wave, 16_000, prompts).score_B
    if reward.differentiable:
        score.sum().backward()
        assert torch.isfinite(wave.grad).all() and wave.grad.abs().sum() > 0
    else:
        assert not score.requires_grad


def test_refuses_a_missing_rate_and_unequal_counts(case):
    reward, prompts = case
    for rate in (None, 0, -1):
        with pytest.raises(ValueError, match="sample rate"):
            reward(waves(3), rate, prompts)
    with pytest.raises(ValueError, match="prompts"):
        reward(waves(3), 16_000, prompts[:2])
