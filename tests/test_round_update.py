"""A round from sampling to the optimiser: input of the reward, ranks, checks and counts."""

from dataclasses import replace

import pytest
import torch
from toy_ddpo import judged
from toys import ToyBackbone, ToyReward, prompt_round

from benchmarks.live_bytes import peak_live_bytes
from datamodules.batches import PromptBatch
from lightning_modules.rl import round_scores
from lightning_modules.rl.advantages import PromptTracker
from lightning_modules.rl.ppo_update import OptimiserStep, plan_updates
from lightning_modules.rl.rollouts import sample_and_score
from lightning_modules.rl.round_update import update_round
from lightning_modules.rl.settings import UpdateSettings
from zoo.backbones.lora import add_lora
from zoo.diffusion import Sampler
from zoo.types import RewardOutput

SETTINGS = UpdateSettings(clip_range=0.1, clip_reference_elements=None)


def planned(size: int, updates: int, kept=(True,) * 8, learns=(True,) * 8) -> list[OptimiserStep]:
    """Three steps of each of eight samples."""
    return plan_updates(torch.arange(3)[:, None].expand(3, 8), kept, learns, size, updates, 0)


def backbone_with_adapter() -> ToyBackbone:
    torch.manual_seed(0)
    backbone = ToyBackbone().requires_grad_(False)
    add_lora(backbone, 2, targets="all")
    return backbone


def scored(
    batch: PromptBatch, backbone=None, reward=None, size: int = 4, sampler=Sampler(4), **options
):
    backbone = ToyBackbone() if backbone is None else backbone
    device = torch.device("cpu")
    return sample_and_score(
        backbone,
        reward or ToyReward(),
        sampler,
        batch,
        seed=0,
        sample_batch_size=size,
        device=device,
        **options,
    )


class Updated:
    """``update_round`` of four steps without an optimiser: gradients, checks, metrics, rows."""

    def __init__(
        self, batch, trajectory, plans, advantage_B, sampler=Sampler(4), **changes
    ) -> None:
        backbone = backbone_with_adapter()
        self.checked = []
        self.gradients = []
        predict = backbone.predict
        self.rows = 0

        def counted(latent_BCT, time_B, conditioning):
            self.rows += len(latent_BCT)
            return predict(latent_BCT, time_B, conditioning)

        backbone.predict = counted
        trained = [
            parameter for parameter in backbone.denoiser.parameters() if parameter.requires_grad
        ]

        def step() -> float:
            self.gradients.append([parameter.grad.clone() for parameter in trained])
            for parameter in trained:
                parameter.grad = None
            return 1.0

        self.metrics = update_round(
            backbone,
            sampler,
            batch,
            trajectory,
            plans,
            advantage_B,
            replace(SETTINGS, **changes),
            advantage_clip=5.0,
            sampled_rows=4,
            backward=lambda loss: loss.backward(),
            step=step,
            check=lambda *found: self.checked.append(found),
            report=lambda *progress: None,
        )


@pytest.fixture(scope="module")
def sampled():
    batch = prompt_round(8)
    return batch, scored(batch, backbone_with_adapter()).trajectory


def test_dropped_samples_do_not_weaken_what_is_learned_from_the_others(sampled):
    batch, trajectory = sampled
    steps_KB = torch.arange(3)[:, None].expand(3, 8)
    advantage_B = torch.linspace(-1, 2, 8)
    kept = [row not in (0, 3, 6) for row in range(8)]
    with_dropped = Updated(batch, trajectory, planned(4, 1, kept), advantage_B)
    rows = [row for row in range(8) if kept[row]]
    alone = PromptBatch(
        tuple(batch.prompts[row] for row in rows), tuple(batch.sample_index[row] for row in rows), 0
    )
    plans = plan_updates(steps_KB[:, rows], [True] * 5, [True] * 5, 1, 1, 0)
    without = Updated(alone, trajectory.rows(rows), plans, advantage_B[rows])
    assert max(gradient.abs().max() for gradient in without.gradients[0]) > 0
    for got, wanted in zip(with_dropped.gradients[0], without.gradients[0], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


def test_the_worst_ratio_of_all_micro_batches_is_checked_before_each_step(sampled):
    batch, trajectory = sampled
    plans = planned(2, 2)
    for update, place in ((0, 0), (0, 1), (1, 0)):
        old_SB = trajectory.log_prob_SB.clone()
        row = plans[update].micro[place].rows[0]
        old_SB[1, row] -= 0.2
        found = Updated(
            batch, replace(trajectory, log_prob_SB=old_SB), plans, torch.ones(8)
        ).checked
        assert len(found) == 2 and found[update][0] == pytest.approx(
            torch.tensor(0.2).expm1().item(), rel=1e-3
        )
        assert (
            found[update][1].startswith(f"step 1 of prompt {batch.prompts[row].id!r}")
            and found[1 - update][0] < 1e-5
        )


def test_an_update_is_the_same_without_its_samples_of_advantage_0(sampled):
    batch, trajectory = sampled
    advantage_B = torch.tensor([0.0, 1.0, 0.0, 0.0, -2.0, 0.0, 0.5, 0.0])
    whole, few = (
        Updated(batch, trajectory, planned(4, 1, learns=learns), advantage_B)
        for learns in ([True] * 8, (advantage_B != 0).tolist())
    )
    scale = max(gradient.abs().max().item() for gradient in whole.gradients[0])
    for got, wanted in zip(few.gradients[0], whole.gradients[0], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6 * scale)
    assert few.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-6)
    assert whole.checked[0][3] and not few.checked[0][3]  # the shapes of the sampled batches


def test_an_update_of_nothing_but_advantage_0_has_gradients_of_0(sampled):
    batch, trajectory = sampled
    found = Updated(batch, trajectory, planned(4, 2, learns=[False] * 8), torch.zeros(8))
    assert len(found.gradients) == 2 and found.metrics["loss"] == 0
    for gradients in found.gradients:
        assert len(gradients) == 16 and not any(gradient.any() for gradient in gradients)
    assert all(deviation < 1e-5 for deviation, *_ in found.checked)


def test_the_rescaled_range_is_what_is_clipped_at(sampled):
    """All ratios are 1.05; beyond a range of 0.1 * 1 / 16 rising further has no effect."""
    batch, trajectory = sampled
    moved = replace(trajectory, log_prob_SB=trajectory.log_prob_SB - 0.05)
    plans = planned(4, 1)
    wide, narrow = (
        Updated(batch, moved, plans, torch.ones(8), clip_reference_elements=elements)
        for elements in (16, 1)
    )
    assert (
        any(gradient.any() for gradient in wide.gradients[0]) and wide.metrics["clip_fraction"] == 0
    )
    assert not any(gradient.any() for gradient in narrow.gradients[0])
    assert narrow.metrics["clip_fraction"] == 1 and narrow.metrics["clip_range"] == pytest.approx(
        0.1 / 16
    )


def test_log_probabilities_of_all_updates_are_scored_again(sampled):
    batch, trajectory = sampled
    moved = replace(trajectory, log_prob_SB=trajectory.log_prob_SB - 0.05)
    plans = planned(2, 2)
    found = Updated(batch, moved, plans, torch.ones(8), recompute_old_log_prob=True).metrics
    assert found["ratio/min"] == found["ratio/max"] == 1
    assert found["old_log_prob_gap"] == pytest.approx(torch.tensor(0.05).expm1().item(), rel=1e-3)


DETACHED = Sampler(4, 3.0, detach_unconditional=True)


def test_the_first_optimiser_step_takes_the_unconditional_outputs_of_the_rollout():
    batch = prompt_round(8, round_index=1)
    advantage_B = torch.linspace(-1, 2, 8)
    trajectory = scored(batch, backbone_with_adapter(), sampler=DETACHED).trajectory
    arguments = (planned(4, 2), advantage_B, DETACHED)
    reused = Updated(batch, trajectory, *arguments)
    fresh = Updated(batch, replace(trajectory, unconditional_SB=None), *arguments)
    assert fresh.rows == 2 * 3 * 8  # both sides of three steps of each sample
    assert reused.rows == fresh.rows - 3 * 4  # but for one side of the first optimiser step
    for one, other in zip(reused.gradients, fresh.gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert reused.metrics == fresh.metrics and fresh.metrics["loss"] != 0
    spoiled = replace(trajectory, unconditional_SB=trajectory.unconditional_SB + 0.1)
    assert Updated(batch, spoiled, *arguments).checked[0][0] > 1e-3  # the numbers are read


def test_the_first_round_and_recomputed_rounds_compute_every_side():
    advantage_B = torch.linspace(-1, 2, 8)
    for round_index, is_recomputed in ((0, False), (1, True)):
        batch = prompt_round(8, round_index)
        trajectory = scored(batch, backbone_with_adapter(), sampler=DETACHED).trajectory
        spoiled = replace(trajectory, unconditional_SB=trajectory.unconditional_SB * torch.nan)
        arguments = (planned(4, 2), advantage_B, DETACHED)
        found = Updated(batch, spoiled, *arguments, recompute_old_log_prob=is_recomputed)
        assert all(deviation < 1e-6 for deviation, *_ in found.checked)
        assert found.rows == 2 * 3 * 8 * (1 + is_recomputed)


@pytest.mark.parametrize("sampler", [Sampler(4, 3.0), Sampler(4, detach_unconditional=True)])
def test_outputs_of_a_trainable_or_absent_side_are_not_kept(sampler):
    assert scored(prompt_round(8), sampler=sampler).trajectory.unconditional_SB is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("sampler", "keep", "copies"),
    [(Sampler(4), "trajectory", 1), (DETACHED, "trajectory", 2), (DETACHED, "wave", 0)],
)
def test_a_round_is_stored_once_and_an_evaluation_not_at_all(sampler, keep, copies):
    """60 more steps add latents, detached outputs and a few numbers per step to the peak."""
    peaks = []
    for steps in (20, 80):
        with peak_live_bytes() as live:
            scored(prompt_round(16), sampler=replace(sampler, steps=steps), keep=keep)
        peaks.append(live())
    latents = 60 * 16 * (2 * 8) * 4
    assert copies <= (peaks[1] - peaks[0]) / latents < copies + 0.2


def test_training_and_evaluation_sample_the_same():
    batch = prompt_round(8)
    backbone = backbone_with_adapter()
    waves = scored(batch, backbone, keep="wave", sampler=DETACHED).wave_BCN
    trajectory = scored(batch, backbone, sampler=DETACHED).trajectory
    assert torch.equal(waves, backbone.decode(trajectory.clean))


class Heard(ToyBackbone):
    """A different part of each prompt's clip counts."""

    def scored_mask(self, prompts):
        heard_B = torch.tensor([4 + int(prompt.id[1:]) for prompt in prompts])
        return torch.arange(8) < heard_B[:, None, None]


def test_masks_and_negatives_stay_with_their_samples_whatever_the_batch_size():
    plain = prompt_round(8)
    prompts = tuple(
        replace(p, negative=("noise", "rain", "a dog")[i % 3]) for i, p in enumerate(plain.prompts)
    )
    batch = replace(plain, prompts=prompts)
    made = []
    for size in (8, 2):
        samples = sample_and_score(
            Heard(),
            ToyReward(),
            Sampler(4, 3.0),
            batch,
            seed=0,
            sample_batch_size=size,
            device=torch.device("cpu"),
        )
        made.append(samples.trajectory)
    assert torch.equal(made[0].scored_mask, made[1].scored_mask)
    assert made[0].scored_mask.sum(dim=(1, 2)).tolist() == [4, 5, 6, 7] * 2
    torch.testing.assert_close(made[0].latents_SB, made[1].latents_SB, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[0].log_prob_SB, made[1].log_prob_SB, rtol=1e-4, atol=1e-5)


class Long(ToyBackbone):
    """Decodes three samples too many, like codecs of whole frames."""

    def decode(self, latent_BCT):
        return torch.nn.functional.pad(super().decode(latent_BCT), (0, 3), value=9.0)


def test_the_reward_gets_the_requested_seconds():
    lengths = []

    def listen(wave_BCN, sample_rate_hz, prompts):
        lengths.append((tuple(wave_BCN.shape), sample_rate_hz))
        return RewardOutput(wave_BCN.mean(dim=(1, 2)))

    listen.differentiable = False
    assert scored(prompt_round(8), Long(), listen, keep="wave").wave_BCN.shape == (8, 1, 8)
    assert lengths == [((4, 1, 8), 8)] * 2


def test_parts_that_only_some_samples_have_are_left_out():
    def moody(wave_BCN, sample_rate_hz, prompts):
        named = {
            "always": wave_BCN.mean(dim=(1, 2)),
            **({"p0": torch.ones(len(prompts))} if prompts[0].id == "p0" else {}),
        }
        return RewardOutput(wave_BCN.mean(dim=(1, 2)), named)

    moody.differentiable = False
    assert set(scored(prompt_round(8), reward=moody, size=2).parts) == {"always"}


SCORES = [1.0, 10.0, 0.0, 5.0, 3.0, 10.0, 4.0, 6.0]  # of four prompts, twice each


def judged_scores(advantage, reward=None, tracker=None):
    batch = prompt_round(8)
    samples = replace(scored(batch), score_B=torch.tensor(SCORES))
    return judged(batch, samples, reward or ToyReward(), advantage, tracker)


@pytest.mark.parametrize("advantage", ["batch", "group", "group_global"])
def test_advantages_by_hand(advantage):
    score_RP = torch.tensor(SCORES).double().reshape(2, 4)  # (repeat, prompt)
    mean_P, whole = score_RP.mean(dim=0), score_RP.std(correction=0)
    wanted_RP = {
        "batch": (score_RP - score_RP.mean()) / whole,
        "group": (score_RP - mean_P) / (score_RP.std(dim=0, correction=0) + 1e-6),
        "group_global": (score_RP - mean_P) / whole,
    }[advantage]
    found = judged_scores(advantage).advantage_B
    torch.testing.assert_close(found.double(), wanted_RP.flatten(), rtol=1e-4, atol=1e-5)


class Reversed(ToyReward):
    def combine(self, output, prompts):
        return replace(output, score_B=100 - output.score_B)


def test_a_round_is_combined_in_the_order_of_prompts_and_samples():
    seen = []

    class Order(ToyReward):
        def combine(self, output, prompts):
            seen.append([prompt.id for prompt in prompts])
            return output

    judged_scores("batch", Order())
    assert seen == [["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]]


def test_running_statistics_are_of_what_is_learned_from():
    tracker = PromptTracker(4, 2)
    found = judged_scores("prompt", Reversed(), tracker)
    assert {name: stats.mean for name, stats in tracker.stats().items()} == pytest.approx(
        {"p0": 98.0, "p1": 90.0, "p2": 98.0, "p3": 94.5}
    )
    signs = found.advantage_B.sign().tolist()
    assert signs == [1, 0, 1, 1, -1, 0, -1, -1]
    assert found.metrics["reward/mean"] == sum(SCORES) / 8


@pytest.mark.parametrize("advantage", ["prompt", "batch", "group", "group_global"])
def test_advantages_do_not_depend_on_how_samples_are_spread_over_processes(monkeypatch, advantage):
    batch = prompt_round(8)

    def spread_over(*ranks: list[int]) -> list[dict]:
        """Three rounds of one tracker per process; (prompt, sample) -> advantage of each round."""
        trackers = [PromptTracker(3, 2) for _ in ranks]
        found = []
        parts = [
            PromptBatch(
                tuple(batch.prompts[i] for i in rows), tuple(batch.sample_index[i] for i in rows), 0
            )
            for rows in ranks
        ]
        samples = [scored(part) for part in parts]
        for shift in (0.0, 0.5, -1.0):
            gathered = []
            given = [replace(one, score_B=one.score_B * (1 + shift)) for one in samples]
            for part, one, tracker in zip(
                parts, given, trackers, strict=True
            ):  # first what each brings, then all of it
                monkeypatch.setattr(
                    round_scores, "gather", lambda own: gathered.append(own) or [own]
                )
                judged(part, one, ToyReward(), "batch", tracker)
            monkeypatch.setattr(round_scores, "gather", lambda own: gathered)
            rounds = {}
            for part, one, tracker in zip(parts, given, trackers, strict=True):
                values = judged(part, one, ToyReward(), advantage, tracker).advantage_B.tolist()
                rounds |= dict(
                    zip(
                        [(p.id, i) for p, i in zip(part.prompts, part.sample_index)],
                        values,
                        strict=True,
                    )
                )
            found.append(rounds)
        return found

    whole = spread_over([*range(8)])
    for spread in (([4, 5, 6, 7], [0, 1, 2, 3]), ([0, 4, 2, 6], [7, 1, 5, 3])):
        for got, wanted in zip(spread_over(*spread), whole, strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(ValueError, match="two processes hold the same"):
        spread_over([0, 1, 4, 5], [1, 2, 5, 6])
