"""What an update is made of, by itself: which steps and samples, in which micro-batches, with which
weights; its metrics.
"""

from dataclasses import replace

import pytest
import torch
from toys import ToyBackbone, prompt_round

from datamodules.batches import PromptBatch
from lightning_modules.rl.ppo_update import (
    MicroBatch,
    UpdateRecord,
    backward_steps,
    check_ratio,
    draw_steps,
    plan_round,
    plan_updates,
    ratio_tolerance,
    scored_elements,
    trainable_steps,
    update_metrics,
    worst_ratio,
)
from zoo.backbones.lora import add_lora, reference
from zoo.diffusion import Sampler, noise_generator, rollout, step_log_prob

NOISY = torch.tensor([0.9, 0.5, 0.0, 0.2, 0.1])


def test_steps_are_chosen_in_the_order_of_the_sampler():
    assert trainable_steps(NOISY, None, False) == [0, 1, 3, 4]  # all that add noise
    assert trainable_steps(NOISY, None, True) == [0, 1, 3]
    assert trainable_steps(NOISY, (0, 2), True) == [
        0,
        1,
    ]  # the sampler's last step is left out, not the window's
    assert trainable_steps(NOISY, (3, 5), False) == [3, 4]
    assert trainable_steps(NOISY, (3, 5), True) == [3]


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((2, 2), "0 <= lo < hi <= 5"),
        ((-1, 2), "0 <= lo < hi <= 5"),
        ((3, 6), r"\(3, 6\) must lie inside the 5 sampling steps"),
        ((1, 4), r"steps \[2\] add no noise"),
        ((4, 5), "none is left to train"),
    ],
)
def test_windows_that_cannot_be_meant(window, message):
    with pytest.raises(ValueError, match=message):
        trainable_steps(NOISY, window, True)


def test_a_subset_of_steps_is_drawn_for_each_sample_whatever_the_batch_it_is_in():
    steps, batch = [2, 4, 5, 7, 8, 9], prompt_round(6)
    drawn_KB = draw_steps(steps, 0.5, "sample", batch, 1, 0, 0)
    assert drawn_KB.shape == (3, 6) and all(
        len(set(column)) == 3 and set(column) <= {*steps} for column in drawn_KB.T.tolist()
    )
    assert len({tuple(column) for column in drawn_KB.T.tolist()}) > 1
    last = PromptBatch(batch.prompts[4:], batch.sample_index[4:], 0)
    assert torch.equal(draw_steps(steps, 0.5, "sample", last, 1, 0, 0), drawn_KB[:, 4:])
    assert not torch.equal(
        draw_steps(steps, 0.5, "sample", batch, 1, 1, 0), drawn_KB
    )  # of another round
    one_KB = draw_steps(steps, 0.5, "batch", batch, 1, 0, 0)
    assert torch.equal(one_KB, one_KB[:, :1].expand(3, 6)) and len(set(one_KB[:, 0].tolist())) == 3
    assert sorted(draw_steps(steps, 1.0, "batch", batch, 1, 0, 0)[:, 0].tolist()) == steps
    assert draw_steps(steps, 0.01, "sample", batch, 1, 0, 0).shape == (1, 6)  # at least one


def test_each_sample_takes_its_steps_in_an_order_of_its_own():
    drawn_KB = draw_steps([*range(6)], 1.0, "sample", prompt_round(8), 1, 0, 0)
    assert all(sorted(column) == [*range(6)] for column in drawn_KB.T.tolist())
    assert len({tuple(column) for column in drawn_KB.T.tolist()}) > 4  # times of a batch are mixed


def test_every_sample_is_in_one_micro_batch_and_dropped_ones_only_fill():
    steps_KB = torch.arange(2)[:, None] + 10 * torch.arange(8)
    whole = plan_updates(steps_KB, [True] * 8, 2, 2, 0, 0)
    assert [len(update) for update in whole] == [2, 2]
    assert sorted(row for update in whole for micro in update for row in micro.rows) == [*range(8)]
    assert [row for update in whole for micro in update for row in micro.rows] != [
        *range(8)
    ]  # in random order
    kept = [row not in (1, 6) for row in range(8)]
    updates = plan_updates(steps_KB, kept, 4, 2, 0, 0)
    counted = []
    for micro in (micro for update in updates for micro in update):
        assert len(micro.rows) == 4 and all(
            kept[row] for row in micro.rows
        )  # one shape, and none that was dropped
        assert micro.steps_KN.tolist() == steps_KB[:, list(micro.rows)].tolist()
        counted += [
            row for row, weight in zip(micro.rows, micro.weight_N.tolist(), strict=True) if weight
        ]
        assert micro.terms == 2 * int(micro.weight_N.sum())
    assert sorted(counted) == [0, 2, 3, 4, 5, 7]
    assert plan_updates(steps_KB, [False] * 8, 4, 2, 0, 0) == [[], []]


def test_each_inner_epoch_draws_its_order_and_its_steps_anew():
    settings = {
        "inner_epochs": 2,
        "seed": 3,
        "train_step_share": 0.5,
        "train_step_draw": "sample",
        "train_batch_size": 8,
        "updates_per_round": 1,
    }
    [[first], [second]] = plan_round([*range(10)], prompt_round(8), [True] * 8, settings)
    assert first.rows != second.rows
    by_row = [
        dict(zip(micro.rows, micro.steps_KN.T.tolist(), strict=True)) for micro in (first, second)
    ]
    assert any(by_row[0][row] != by_row[1][row] for row in range(8))
    [[again], _] = plan_round([*range(10)], prompt_round(8), [True] * 8, settings)
    assert again.rows == first.rows and torch.equal(again.steps_KN, first.steps_KN)


@pytest.fixture(scope="module")
def toy_round():
    """(backbone with an adapter that has learned something, sampler, trajectory of four samples)"""
    backbone = ToyBackbone().requires_grad_(False)
    add_lora(backbone, 2, targets="all")
    with torch.no_grad():
        for name, parameter in backbone.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    prompts, sampler = prompt_round(4).prompts, Sampler(4)
    generators = [noise_generator(0, 0, "p", i) for i in range(4)]
    trajectory = rollout(
        backbone.predict,
        backbone.path,
        sampler,
        prompts,
        backbone.encode_prompts(prompts),
        None,
        backbone.latent_shape(prompts[0].seconds),
        generators,
    )
    return backbone, sampler, replace(trajectory, log_prob_SB=trajectory.log_prob_SB - 0.01)


def gradient_of(toy_round, micro: MicroBatch) -> tuple[UpdateRecord, list[torch.Tensor]]:
    backbone, sampler, trajectory = toy_round
    trained = [parameter for parameter in backbone.denoiser.parameters() if parameter.requires_grad]
    backbone.denoiser.zero_grad(set_to_none=True)
    record = backward_steps(
        backbone,
        sampler,
        trajectory,
        micro,
        trajectory.log_prob_SB,
        torch.tensor([1.0, -2.0, 0.5, 3.0]),
        4,
        lambda loss: loss.backward(),
        clip_range=0.1,
        advantage_clip=5.0,
        kl_weight=0.7,
    )
    return record, [parameter.grad.clone() for parameter in trained]


def test_rows_that_only_fill_count_neither_in_the_loss_nor_in_the_divergence(toy_round):
    steps_KN = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 0]])
    plain = MicroBatch((2, 0), steps_KN[:, :2], torch.ones(2))
    filled = MicroBatch((2, 0, 2, 3), steps_KN, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    (record, wanted), (with_fill, got) = (
        gradient_of(toy_round, micro) for micro in (plain, filled)
    )
    assert max(gradient.abs().max() for gradient in wanted) > 0 and record.kl_to_base > 0
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert with_fill.loss == pytest.approx(record.loss, rel=1e-5)
    assert with_fill.kl_to_base == pytest.approx(record.kl_to_base, rel=1e-5)
    metrics = [update_metrics([one], 0.1) for one in (record, with_fill)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


def test_the_divergence_is_of_what_is_heard(toy_round):
    """Each sample has a mask of its own; by hand from the means with the adapter and without."""
    backbone, sampler, trajectory = toy_round
    heard = torch.tensor([8, 3, 5, 2])
    mask = (torch.arange(8) < heard[:, None])[:, None]
    masked, rows = replace(trajectory, scored_mask=mask), (3, 1)
    micro = MicroBatch(rows, torch.tensor([[1, 0], [2, 2]]), torch.ones(2))
    record, _ = gradient_of((backbone, sampler, masked), micro)
    wanted = 0.0
    for step_N in micro.steps_KN:
        with torch.no_grad():
            args = (backbone.predict, backbone.path, sampler, trajectory, step_N, rows)
            _, mean, std = step_log_prob(*args)
            with reference(backbone):
                _, base, _ = step_log_prob(*args)
        for i, row in enumerate(rows):
            apart = (mean - base)[i, :, : heard[row]]
            wanted += float((apart**2).mean() / (2 * std[i] ** 2))
    assert record.kl_to_base == pytest.approx(wanted, rel=1e-4) and wanted > 0


def test_metrics_are_over_the_pairs_that_counted():
    one = UpdateRecord(torch.tensor([[1.0, 1.2], [0.9, 7.0]]), torch.tensor([1.0, 0.0]), 3.0, 0.5)
    two = UpdateRecord(torch.tensor([[1.3, 1.0]]), torch.ones(2), 1.0, 0.1)
    found = update_metrics([one, two], 0.15)
    assert (found["ratio/mean"], found["ratio/min"], found["ratio/max"]) == pytest.approx(
        (4.2 / 4, 0.9, 1.3)
    )
    assert (found["loss"], found["kl_to_base"], found["clip_fraction"]) == pytest.approx(
        (1.0, 0.15, 0.25)
    )
    log = torch.tensor([1.0, 0.9, 1.3, 1.0]).log()
    assert found["approx_kl"] == pytest.approx(0.5 * log.square().mean().item())


def test_the_worst_ratio_is_named_and_no_number_is_the_worst():
    prompts = prompt_round(4).prompts
    micro = MicroBatch((3, 1), torch.tensor([[4, 5], [6, 7]]), torch.ones(2))

    def worst(ratios, weights=(1.0, 1.0)):
        weight_N = torch.tensor(weights)
        return worst_ratio(
            UpdateRecord(torch.tensor(ratios), weight_N, 0.0, 0.0),
            replace(micro, weight_N=weight_N),
            prompts,
        )

    off, where = worst([[1.0, 1.01], [0.97, 1.0]])
    assert off == pytest.approx(0.03) and where.startswith(f"step 6 of prompt {prompts[3].id!r}")
    off, where = worst([[1.0, 1.01], [1.5, float("nan")]])
    assert off == float("inf") and where.startswith(f"step 7 of prompt {prompts[1].id!r}")
    assert worst([[1.0, 9.0], [1.02, float("nan")]], (1.0, 0.0))[0] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("dtype", "same_shapes", "convolutions_tf32", "products", "tolerance"),
    [
        (torch.float32, True, True, "highest", 1e-6),  # the same kernels run twice
        (torch.float32, False, False, "highest", 1e-5),
        (torch.float32, False, True, "highest", 0.01),
        (torch.float32, True, False, "high", 0.01),
        (torch.bfloat16, True, False, "highest", 0.01),
        (torch.bfloat16, False, False, "highest", 0.01),
    ],
)
def test_the_ratio_may_be_off_by_what_rounding_explains(
    monkeypatch, dtype, same_shapes, convolutions_tf32, products, tolerance
):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: products)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", convolutions_tf32)
    network = torch.nn.Linear(2, 2, dtype=dtype)
    found, why = ratio_tolerance(network, "cuda", same_shapes, clip_range=0.02)
    assert found == tolerance and "recompute_old_log_prob=true" in why
    assert ("sample_batch_size" in why) == (tolerance == 1e-5)
    check_ratio(tolerance, "here", found, why)
    for off in (1.01 * tolerance, float("nan")):
        with pytest.raises(ValueError, match=f"within {tolerance:.3g}, .* at here; {why[:9]}"):
            check_ratio(off, "here", found, why)


def test_tf32_is_a_matter_of_graphics_processors(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert ratio_tolerance(torch.nn.Linear(2, 2), "cpu", True, 0.02)[0] == 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert ratio_tolerance(torch.nn.Linear(2, 2), "cpu", True, 0.02)[0] == 0.01


def test_scored_elements_are_those_of_the_sample_with_the_fewest(toy_round):
    trajectory = toy_round[2]
    shape = trajectory.latents_SB.shape[2:]
    assert scored_elements(trajectory) == shape.numel()
    mask = torch.zeros(4, *[1] * (len(shape) - 1), shape[-1], dtype=torch.bool)
    for row, frames in enumerate((3, 2, 4, 3)):
        mask[row, ..., :frames] = True
    assert scored_elements(replace(trajectory, scored_mask=mask)) == 2 * shape[:-1].numel()
