"""Iterated methods: clips of the model made, scored and paired; interruption; CRPO end to end."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_reward_weighted import copy_of, moving, played, whole_state
from toy_backbones import build
from toy_pairs import FULL, LORA, dpo, ranked_clips
from toy_tangoflux import small_model
from toy_weighted import fitted
from toys import small_audio

import lightning_modules.own_rounds as own_rounds
from lightning_modules.denoising import Denoising
from lightning_modules.own_rounds import OwnRounds, best_and_worst
from lightning_modules.rl.settings import SamplerSettings
from lightning_modules.training_settings import AdapterSettings, ScheduleSettings
from zoo.errors import UserError
from zoo.generations import read_samples
from zoo.hub.adapters import load_adapter
from zoo.types import Prompt, RewardOutput

SHORT = SamplerSettings(steps=2, guidance_scale=1.0, eta=0.0, batch_size=4)
TEXTS = ("a dog", "rain falls", "a sad piano", "glass")


def prompts(count: int = 4, seconds: float = 0.5) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"p{i}", f"{TEXTS[i % 4]} {i // 4 or ''}".strip(), seconds=seconds)
        for i in range(count)
    )


class Loudness(torch.nn.Module):
    """Scores the level; counts the clips, and what it says of the one number ``broken`` is NaN."""

    name = "loudness"

    def __init__(self, broken: int | None = None, flat: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.arguments = {}
        self.broken = broken
        self.flat = flat
        self.scored = 0

    def forward(self, wave_BCN, sample_rate_hz, prompts):
        score_B = wave_BCN.square().mean(dim=(1, 2)).sqrt()
        for row, prompt in enumerate(prompts):
            if self.scored == self.broken:
                score_B[row] = math.nan
            if prompt.id in self.flat:
                score_B[row] = 0.5
            self.scored += 1
        return RewardOutput(score_B)


def rounds(folder, reward=None, **more) -> OwnRounds:
    settings = {"clips": 3, "sampler": SHORT} | more
    own = settings.pop("prompts", prompts())
    return OwnRounds(reward or Loudness(), own, str(folder / "clips"), **settings)


@pytest.fixture
def two_at_a_time(monkeypatch):
    monkeypatch.setattr(own_rounds, "_PROMPTS_AT_A_TIME", 2)


def test_the_best_and_the_worst():
    assert best_and_worst([0.2, 0.9, 0.1, 0.9]) == (1, 2)
    assert best_and_worst([0.5, 0.5, 0.5]) is None
    assert best_and_worst([0.5]) is None


def test_clips_are_made_scored_and_paired(tmp_path, two_at_a_time):
    reward = Loudness(flat=("p1",))
    source = rounds(tmp_path, reward)
    backbone = small_audio().eval()
    source.prepare(0, backbone, True)
    found = source.pairs(0)
    assert reward.scored == 12 and found.left_out == {"prompts whose clips have equal scores": 1}
    assert [pair.prompt.id for pair in found.train] == ["p0", "p2", "p3"]
    folders = sorted((tmp_path / "clips" / "iteration_000").iterdir())
    every = [sample.score for folder in folders for sample in read_samples(folder)]
    assert found.measures["score"] == pytest.approx(sum(every) / 12)
    assert found.measures["best_above_mean"] > 0
    for pair in found.train:
        scores = {s.path: s.score for s in read_samples(pair.chosen.parent)}
        own = [v for path, v in scores.items() if path.name[0] == pair.chosen.name[0]]
        assert len(own) == 3
        assert scores[pair.chosen] == max(own) and scores[pair.rejected] == min(own)
    folders = sorted(path.name for path in (tmp_path / "clips" / "iteration_000").iterdir())
    assert folders == ["000000", "000002"]


def test_iterations_have_other_noise_and_other_prompts(tmp_path):
    source = rounds(tmp_path, prompts=prompts(9), prompts_per_iteration=3)
    drawn = [source.prompts_of(iteration) for iteration in (0, 1, 1)]
    assert [len(own) for own in drawn] == [3, 3, 3]
    assert drawn[0] != drawn[1] == drawn[2]
    fixed = rounds(tmp_path)
    backbone = small_audio().eval()
    waves = []
    for iteration in (0, 1):
        fixed.prepare(iteration, backbone, True)
        folder = tmp_path / "clips" / f"iteration_{iteration:03d}" / "000000"
        waves.append((sorted(folder.glob("*.flac"))[0]).read_bytes())
    assert waves[0] != waves[1]


def test_an_interrupted_iteration_goes_on_where_it_was(tmp_path, two_at_a_time, monkeypatch):
    """Stopped while the second folder is written: the first is kept, nothing is scored twice."""
    backbone = small_audio().eval()
    whole = rounds(tmp_path / "whole")
    whole.prepare(0, backbone, True)
    reward = Loudness()
    source = rounds(tmp_path, reward)
    kept = own_rounds.write_index
    calls = []

    def stopped(folder, samples):
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(folder, samples)

    monkeypatch.setattr(own_rounds, "write_index", stopped)
    with pytest.raises(KeyboardInterrupt):
        source.prepare(0, backbone, True)
    place = tmp_path / "clips" / "iteration_000"
    assert [path.name for path in place.iterdir()] == ["000000"]
    assert reward.scored == 12
    first = {path.name: path.stat().st_mtime_ns for path in (place / "000000").iterdir()}
    again = Loudness()
    source = rounds(tmp_path, again)
    source.prepare(0, backbone, True)
    assert again.scored == 6, "the two prompts that were left"
    assert first == {path.name: path.stat().st_mtime_ns for path in (place / "000000").iterdir()}
    last = Loudness()
    rounds(tmp_path, last).prepare(0, backbone, True)
    assert last.scored == 0
    both = (one.pairs(0).train for one in (source, whole))
    for a, b in zip(*both, strict=True):
        assert a.chosen.read_bytes() == b.chosen.read_bytes()


def test_a_score_that_is_not_finite_is_refused_by_name(tmp_path, two_at_a_time):
    backbone = small_audio().eval()
    with pytest.raises(UserError, match=r"loudness gives nan .*'a sad piano'"):
        rounds(tmp_path, Loudness(broken=7)).prepare(0, backbone, True)
    place = tmp_path / "clips" / "iteration_000"
    assert [path.name for path in place.iterdir()] == ["000000"], "whole or absent"


def test_clips_of_another_model_or_reward_are_not_used(tmp_path):
    backbone = small_audio().eval()
    rounds(tmp_path).prepare(0, backbone, True)
    for other in (
        rounds(tmp_path, sampler=SamplerSettings(steps=3, guidance_scale=1.0, eta=0.0)),
        rounds(tmp_path, clips=2),
        rounds(tmp_path, seed=1),
        rounds(tmp_path, prompts=prompts(5)[1:]),
    ):
        with pytest.raises(UserError, match="name another folder"):
            other.prepare(0, backbone, True)
    larger = SamplerSettings(steps=2, guidance_scale=1.0, eta=0.0, batch_size=2)
    rounds(tmp_path, sampler=larger).prepare(0, backbone, True)
    with torch.no_grad():
        next(backbone.denoiser.parameters()).add_(1)
    with pytest.raises(UserError, match="model"):
        rounds(tmp_path).prepare(0, backbone, True)
    rounds(tmp_path).prepare(0, backbone, False)  # the model moves on within an iteration
    with pytest.raises(UserError, match="moved on"):
        rounds(tmp_path).prepare(1, backbone, False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"clips": 1}, "clips 1"),
        ({"epochs": 0}, "epochs 0"),
        ({"prompts_per_iteration": 5}, "prompts_per_iteration 5"),
        ({"prompts_per_iteration": 0}, "prompts_per_iteration 0"),
        ({"prompts": ()}, "prompts"),
        ({"prompts": (*prompts(2), prompts(1)[0])}, "same id"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, named):
    with pytest.raises(UserError, match=named):
        rounds(tmp_path, **settings)
    with pytest.raises(UserError, match=r"data\.seconds is 0\.5"):
        ranked_clips(tmp_path, None, rounds(tmp_path, prompts=prompts(2, seconds=0.3)))


# Training on them


def crpo_run(folder, base, key, adapter, epochs, checkpoint=None, seconds=0.5, **more):
    backbone = copy_of(key, base) if key else base
    reward = Loudness()
    source = rounds(folder, reward, epochs=2, prompts=prompts(seconds=seconds))
    data = ranked_clips(folder, None, source, seconds=seconds)
    module = dpo(backbone, adapter=adapter, winner_weight=1.0, **more)
    seen = []
    renew = module.reference.renew

    def renewed():
        seen.append(module.current_epoch)
        renew()

    module.reference.renew = renewed
    fitted(module, data, folder, max_epochs=epochs, checkpoint=checkpoint)
    return module, reward, seen


@pytest.mark.long
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
def test_crpo_in_iterations_and_resumed_anywhere(tmp_path, adapter):
    """Two iterations of two epochs; killed in an iteration, and at its start."""
    base = moving(build("tiny_audio"))

    def run(name, epochs, checkpoint=None):
        torch.manual_seed(7)  # the adapter's first factor
        return crpo_run(tmp_path / name, base, "tiny_audio", adapter, epochs, checkpoint)

    once, reward, renewed = run("once", 4)
    assert reward.scored == 2 * 12 and renewed == [2]
    for first in (1, 2, 3):
        name = f"after{first}"
        run(name, first)
        last = str(tmp_path / name / "checkpoints" / "last.ckpt")
        again, reward, renewed = run(name, 4, last)
        assert reward.scored == (12 if first < 3 else 0), "nothing is scored twice"
        assert renewed == ([2] if first < 3 else [])
        for key, value in whole_state(once).items():
            assert torch.equal(value, again.state_dict()[key]), (first, key)
        for a, b in zip(once.reference._values, again.reference._values, strict=True):
            assert torch.equal(a, b)
    made = [read_samples(f) for f in sorted((tmp_path / "once/clips").glob("*/000000"))]
    assert len(made) == 2 and made[0][0].path.read_bytes() != made[1][0].path.read_bytes()
    source = json.loads((tmp_path / "once/clips/iteration_001/000000/source.json").read_text())
    assert source["reward"].startswith("loudness") and source["clips"] == 3


@pytest.mark.long
def test_crpo_on_tangoflux_end_to_end(tmp_path):
    """The real classes at toy size: made, scored, paired, trained twice, exported, and played."""
    lora = AdapterSettings(rank=2, targets="all")
    base = small_model(frame_window="heard")
    for parameter in base.denoiser.parameters():  # velocities that are heard
        torch.nn.init.normal_(parameter, std=0.1)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    module, reward, renewed = crpo_run(tmp_path, base, None, lora, 4, seconds=0.2)
    assert reward.scored == 24 and renewed == [2]
    assert module.trainer.global_step == 8
    module.export(tmp_path / "out")
    again = small_model(frame_window="heard")
    again.load_state_dict(state)
    unchanged = played(again)
    load_adapter(again, tmp_path / "out" / "adapter")
    wanted = played(module.backbone.eval())
    assert torch.equal(played(again), wanted) and not torch.equal(wanted, unchanged)


@pytest.mark.long
def test_expert_iteration_learns_the_best_of_each_prompt(tmp_path):
    backbone = moving(build("tiny_audio"))
    reward = Loudness()
    data = ranked_clips(tmp_path, None, rounds(tmp_path, reward), batches="winners")
    optimizer = ScheduleSettings(
        learning_rate=1e-3, schedule="constant", total_steps=None, warmup_steps=0
    )
    module = Denoising(backbone, optimizer, condition_dropout=0.0, ema_decay=None, adapter=FULL)
    before = {name: value.clone() for name, value in backbone.denoiser.named_parameters()}
    made = fitted(module, data, tmp_path, max_epochs=2)
    assert reward.scored == 24 and made.global_step == 4
    after = dict(backbone.denoiser.named_parameters())
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert data.starts_iteration(1) and not data.starts_iteration(0)
    assert len(data._train) == 4


def test_all_clips_equal_stops_the_run(tmp_path):
    backbone = moving(build("tiny_audio"))
    reward = Loudness(flat=tuple(f"p{i}" for i in range(4)))
    data = ranked_clips(tmp_path, None, rounds(tmp_path, reward))
    with pytest.raises(UserError, match="4 prompts whose clips have equal scores"):
        fitted(dpo(backbone), data, tmp_path, max_epochs=1)
