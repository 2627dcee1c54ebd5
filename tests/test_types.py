"""The records that cross module boundaries."""

import base64
import dataclasses
import re

import numpy as np
import pytest
import soundfile
import torch
from toys import ToyBackbone, ToyReward

from datamodules.batches import AudioBatch, LatentBatch, PromptBatch
from zoo.types import (
    Conditioning,
    Prompt,
    Reward,
    RewardOutput,
    SourcePath,
    Trajectory,
    Waveform,
    is_scorer,
    lacking,
)


def conditioning(rows, length, offset=0.0):
    tokens = (
        torch.arange(rows * length * 2, dtype=torch.float32).reshape(rows, length, 2) + 1 + offset
    )
    return Conditioning(
        {
            "tokens_BLD": tokens,
            "mask_BL": torch.ones(rows, length, dtype=torch.bool),
            "seconds_B": torch.arange(rows) + offset,
        }
    )


def trajectory(rows, *, length=2, guided=True, mask=None, offset=0.0, steps=3):
    latents = (
        torch.arange(rows, dtype=torch.float32)[None, :, None, None].expand(steps + 1, rows, 2, 4)
        + offset
    )
    return Trajectory(
        prompts=tuple(Prompt(f"p{offset + i}", "text") for i in range(rows)),
        conditioning=conditioning(rows, length, offset),
        negative=conditioning(rows, 1, -offset) if guided else None,
        latents_SB=latents.clone(),
        times_S=torch.linspace(1, 0, steps + 1),
        log_prob_SB=torch.arange(rows, dtype=torch.float32).expand(steps, rows) + offset,
        std_S=torch.ones(steps),
        scored_mask=mask,
    )


def test_a_source_moves_or_jumps():
    assert SourcePath(0.0, 180.0, jump_s=2.0).jump_s == 2.0
    assert SourcePath(0.0, 180.0, onset_s=1.0, end_s=2.0).end_s == 2.0
    for other in ({"onset_s": 0.0}, {"end_s": 3.0}):
        with pytest.raises(ValueError, match="either jumps .* or moves"):
            SourcePath(0.0, 180.0, jump_s=2.0, **other)


def test_prompts_are_frozen_hashable_and_have_a_length():
    prompt = Prompt("a", "sad piano", "noise", 2.0, (SourcePath(90.0),), {"mood": "sad"})
    assert hash(prompt) == hash(dataclasses.replace(prompt, labels={"mood": "happy"}))
    assert prompt != dataclasses.replace(prompt, labels={"mood": "happy"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompt.text = "other"
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="prompt 'a'.*seconds"):
            Prompt("a", "x", seconds=seconds)


def test_the_negative_side_keeps_the_length_and_sees_the_pair():
    prompt = Prompt("a", "sad piano", "noise", 2.0, (SourcePath(90.0),), {"mood": "sad"})
    negative = prompt.as_negative()
    assert (negative.id, negative.text, negative.seconds, negative.sources) == (
        "a",
        "noise",
        2.0,
        (),
    )
    assert negative.negative == "sad piano"


def test_without_its_negative_a_prompt_is_otherwise_the_same():
    prompt = Prompt("a", "sad piano", "noise", 2.0, (SourcePath(90.0),), {"mood": "sad"})
    plain = prompt.without_negative()
    assert plain == dataclasses.replace(prompt, negative="") and plain.labels == prompt.labels
    assert plain.without_negative() is plain


@pytest.mark.parametrize(
    ("seconds", "rate_hz", "samples"),
    [
        (4.096, 16_000, 65_536),
        (1 / 3, 16_000, 5_334),
        (0.1, 44_100, 4_410),
        (10, 44_100, 441_000),
        (1e-6, 16_000, 1),
    ],
)
def test_a_clip_has_the_fewest_samples_that_cover_its_seconds(seconds, rate_hz, samples):
    assert Prompt("a", "x", seconds=seconds).samples(rate_hz) == samples


def test_a_wave_saves_itself_and_plays_in_a_notebook(tmp_path):
    wave = Waveform(torch.rand(2, 800) - 0.5, 8000)
    wave.save(tmp_path / "a.flac")
    wave.save(str(tmp_path / "deep" / "b.wav"))
    for name in ("a.flac", "deep/b.wav"):
        again, rate_hz = soundfile.read(tmp_path / name, dtype="float32")
        assert rate_hz == 8000 and np.allclose(again.T, wave.samples_CN.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="cannot write .mp4"):
        wave.save(tmp_path / "a.mp4")
    (data,) = re.fullmatch(
        r'<audio controls src="data:audio/flac;base64,([^"]+)"></audio>', wave._repr_html_()
    ).groups()
    assert base64.b64decode(data) == (tmp_path / "a.flac").read_bytes()


def test_conditioning_needs_one_row_per_sample():
    with pytest.raises(ValueError, match=r"got rows \{'a': 2, 'b': 3\}"):
        Conditioning({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_rows_are_picked_by_list_range_slice_and_tensor():
    whole = conditioning(4, 3)
    for index in ([2, 0], range(2, -1, -2), torch.tensor([2, 0])):
        part = whole.rows(index)
        assert len(part) == 2
        for name in whole.streams:
            assert torch.equal(part[name], whole[name][[2, 0]])
    assert torch.equal(whole.rows(slice(1, 3))["seconds_B"], torch.tensor([1.0, 2.0]))
    assert len(whole.rows(torch.tensor([True, False, False, True]))) == 2


def test_moving_changes_the_type_of_floating_streams_only():
    moved = conditioning(2, 3).to(dtype=torch.float16)
    assert [moved[name].dtype for name in ("tokens_BLD", "mask_BL", "seconds_B")] == [
        torch.float16,
        torch.bool,
        torch.float16,
    ]
    assert conditioning(2, 3).to("meta")["mask_BL"].device.type == "meta"


def test_detach_cuts_the_graph():
    learned = Conditioning({"tokens_BLD": torch.ones(1, 1, 1, requires_grad=True) * 2})
    assert learned["tokens_BLD"].requires_grad and not learned.detach()["tokens_BLD"].requires_grad


def test_cat_pads_to_the_longest_and_masks_the_padding():
    short = conditioning(1, 2)
    long = conditioning(2, 4, offset=10.0)
    both = Conditioning.cat([short, long])
    assert len(both) == 3 and both["tokens_BLD"].shape == (3, 4, 2)
    assert (
        torch.equal(both["tokens_BLD"][0, :2], short["tokens_BLD"][0])
        and not both["tokens_BLD"][0, 2:].any()
    )
    assert both["mask_BL"].tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
    assert torch.equal(both["tokens_BLD"][1:], long["tokens_BLD"])
    assert both["seconds_B"].tolist() == [0.0, 10.0, 11.0]


def test_cat_refuses_other_streams():
    other = Conditioning({"tokens_BLD": torch.zeros(1, 2, 2)})
    with pytest.raises(
        ValueError,
        match=r"different streams: \['mask_BL', 'seconds_B', 'tokens_BLD'\] and \['tokens_BLD'\]",
    ):
        Conditioning.cat([conditioning(1, 2), other])


@pytest.mark.parametrize("guided", [True, False])
def test_rows_of_a_trajectory_stay_together(guided):
    part = trajectory(3, guided=guided).rows([2, 0])
    assert [prompt.id for prompt in part.prompts] == ["p2.0", "p0.0"] and len(part) == 2
    assert part.conditioning["seconds_B"].tolist() == [2.0, 0.0]
    assert part.clean.shape == (2, 2, 4) and part.clean[:, 0, 0].tolist() == [2.0, 0.0]
    assert part.log_prob_SB.tolist() == [[2.0, 0.0]] * 3
    assert (part.negative is not None) == guided
    if guided:
        assert part.negative["seconds_B"].tolist() == [2.0, 0.0]


def test_masks_go_with_their_rows_unless_they_are_shared():
    shared = torch.tensor([1, 1, 1, 0], dtype=torch.bool).reshape(1, 1, 4)
    own = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)[:, None]
    assert trajectory(3, mask=shared).rows([2, 0]).scored_mask is shared
    assert torch.equal(trajectory(3, mask=own).rows([2, 0]).scored_mask, own[[2, 0]])


def test_batches_move_with_their_weights():
    prompts = (Prompt("a", "x"), Prompt("b", "y"))
    audio = AudioBatch(torch.zeros(2, 2, 8), 16_000, prompts, torch.ones(2))
    latent = LatentBatch(torch.zeros(2, 4, 8), prompts, torch.ones(2))
    assert len(audio) == len(latent) == 2
    moved, latents = audio.to("meta"), latent.to("meta")
    assert (
        moved.wave_BCN.is_meta
        and moved.weight_B.is_meta
        and moved.sample_rate_hz == 16_000
        and moved.prompts == prompts
    )
    assert latents.latent_BCT.is_meta and latents.weight_B.is_meta and latents.prompts == prompts
    assert AudioBatch(torch.zeros(2, 2, 8), 16_000, prompts).to("meta").weight_B is None
    assert LatentBatch(torch.zeros(2, 4, 8), prompts).to("meta").weight_B is None
    rounds = PromptBatch(prompts, (0, 0), 3)
    assert rounds.to("meta") is rounds and len(rounds) == 2


def test_small_records():
    assert Waveform(torch.zeros(2, 4), 16_000).sample_rate_hz == 16_000
    assert RewardOutput(torch.zeros(2)).parts == {}


def test_no_rows_are_an_empty_conditioning() -> None:
    conditioning = Conditioning({"tokens_BLD": torch.zeros(2, 3, 4)})
    assert len(conditioning.rows([])) == 0


def test_a_metric_is_a_scorer_and_a_reward_is_differentiable_or_not() -> None:
    def loudness(wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(wave_BCN.square().mean(dim=(1, 2)))

    assert is_scorer(loudness) and lacking(loudness, Reward) == ["differentiable"]
    assert is_scorer(ToyReward()) and not lacking(ToyReward(), Reward)
    assert lacking("words", Reward) == ["__call__", "differentiable"]
    for other in (ToyBackbone(), ToyReward, "words", None):
        assert not is_scorer(other)
