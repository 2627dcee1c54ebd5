"""Parts of an update: steps, samples, micro-batches, weights and metrics."""

from dataclasses import replace

import pytest
import torch
from toys import ToyBackbone, prompt_round

from datamodules.batches import PromptBatch
from lightning_modules.rl.ppo_update import (
    MicroBatch,
    OptimiserStep,
    UpdateRecord,
    backward_steps,
    draw_steps,
    plan_round,
    plan_updates,
    scored_elements,
    trainable_steps,
    update_metrics,
)
from lightning_modules.rl.ratio import check_ratio, ratio_tolerance, worst_ratio
from lightning_modules.rl.settings import UpdateSettings
from zoo.backbones.lora import AdapterSwitch, add_lora, reference
from zoo.diffusion import Sampler, noise_generator, replay_schedule, rollout, step_log_prob

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
        ((3, 6), r"update.window \(3, 6\)"),
        ((1, 4), r"steps \[2\] add no noise"),
        ((4, 5), "none is left to train"),
    ],
)
def test_invalid_windows_are_refused(window, message):
    with pytest.raises(ValueError, match=message):
        trainable_steps(NOISY, window, True)


def test_a_subset_of_steps_is_drawn_per_sample_in_any_batch():
    steps = [2, 4, 5, 7, 8, 9]
    batch = prompt_round(6)
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


def test_each_sample_has_its_own_order_of_steps():
    drawn_KB = draw_steps([*range(6)], 1.0, "sample", prompt_round(8), 1, 0, 0)
    assert all(sorted(column) == [*range(6)] for column in drawn_KB.T.tolist())
    assert len({tuple(column) for column in drawn_KB.T.tolist()}) > 4  # times of a batch are mixed


def test_every_kept_sample_that_learns_is_in_one_micro_batch():
    steps_KB = torch.arange(2)[:, None] + 10 * torch.arange(8)
    everyone = [True] * 8
    whole = plan_updates(steps_KB, everyone, everyone, 2, 2, 0, 0)
    assert [len(update.micro) for update in whole] == [2, 2]
    order = [row for update in whole for micro in update.micro for row in micro.rows]
    assert sorted(order) == [*range(8)] and order != [*range(8)]  # in random order
    kept = [row not in (1, 6) for row in range(8)]
    learns = [row not in (1, 4) for row in range(8)]
    updates = plan_updates(steps_KB, kept, learns, 2, 2, 0, 0)
    computed = []
    for update, half in zip(updates, (order[:4], order[4:]), strict=True):
        rows = [row for micro in update.micro for row in micro.rows]
        assert rows == [row for row in half if kept[row] and learns[row]]  # of the same samples
        assert update.terms == 2 * sum(kept[row] for row in half)  # the mean is over all kept ones
        for micro in update.micro:
            assert len(micro.rows) <= 2
            assert micro.steps_KN.tolist() == steps_KB[:, list(micro.rows)].tolist()
        assert all(len(micro.rows) == 2 for micro in update.micro[:-1])
        computed += rows
    assert sorted(computed) == [0, 2, 3, 5, 7]
    nothing = plan_updates(steps_KB, [False] * 8, everyone, 4, 2, 0, 0)
    assert nothing == [OptimiserStep((), 0)] * 2


def test_filled_micro_batches_have_one_shape_and_the_same_samples():
    steps_KB = torch.arange(2)[:, None] + 10 * torch.arange(8)
    kept = [row != 3 for row in range(8)]
    for learns in ([row not in (1, 4) for row in range(8)], [False] * 8):
        arguments = (steps_KB, kept, learns, 2, 2, 0, 0)
        pairs = zip(
            plan_updates(*arguments), plan_updates(*arguments, keep_shapes=True), strict=True
        )
        for plain, filled in pairs:
            assert plain.terms == filled.terms
            for small, micro in zip(plain.micro, filled.micro, strict=True):
                assert len(micro.rows) == 2 and micro.count == len(small.rows)
                assert micro.rows[: micro.count] == small.rows and small.fill == 0
                assert set(micro.rows) == set(small.rows)
                steps = steps_KB[: len(micro.steps_KN), list(micro.rows)]
                assert torch.equal(micro.steps_KN, steps)


def test_if_no_sample_learns_one_step_of_one_kept_sample_is_computed():
    steps_KB = torch.arange(2)[:, None] + 10 * torch.arange(4)
    nobody = [False] * 4
    kept = [row != 2 for row in range(4)]
    for update in plan_updates(steps_KB, kept, nobody, 2, 2, 0, 0):
        [micro] = update.micro
        [row] = micro.rows
        assert kept[row] and micro.steps_KN.tolist() == [[10 * row]]
    updates = plan_updates(steps_KB, kept, nobody, 2, 2, 0, 0)
    assert sum(update.terms for update in updates) == 2 * 3


ROUND = UpdateSettings(batch_size=8, inner_epochs=2, timestep_fraction=0.5)


def test_each_inner_epoch_draws_its_order_and_its_steps_anew():
    arguments = ([*range(10)], prompt_round(8), [True] * 8, ROUND, torch.ones(8), 3)
    first, second = (plan.micro[0] for plan in plan_round(*arguments))
    assert first.rows != second.rows
    by_row = [
        dict(zip(micro.rows, micro.steps_KN.T.tolist(), strict=True)) for micro in (first, second)
    ]
    assert any(by_row[0][row] != by_row[1][row] for row in range(8))
    again = plan_round(*arguments)[0].micro[0]
    assert again.rows == first.rows and torch.equal(again.steps_KN, first.steps_KN)


def test_a_sample_of_advantage_0_is_computed_only_for_the_divergence():
    advantage_B = torch.tensor([0.0, 1.0, -0.0, 1e-30, 0.0, -2.0, 0.0, 0.5])
    arguments = ([*range(10)], prompt_round(8), [True] * 8)
    everyone = plan_round(*arguments, replace(ROUND, kl_coef=0.1), advantage_B, 3)
    few = plan_round(*arguments, ROUND, advantage_B, 3)
    for all_rows, some in zip(everyone, few, strict=True):
        assert sorted(all_rows.micro[0].rows) == [*range(8)]
        wanted = [row for row in all_rows.micro[0].rows if row in (1, 3, 5, 7)]
        assert [*some.micro[0].rows] == wanted and some.terms == all_rows.terms == 5 * 8


@pytest.fixture(scope="module")
def toy_round():
    """(backbone with an adapter that has learned something, sampler, trajectory of four samples)"""
    backbone = ToyBackbone().requires_grad_(False)
    add_lora(backbone, 2, targets="all")
    with torch.no_grad():
        for name, parameter in backbone.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    prompts = prompt_round(4).prompts
    sampler = Sampler(4)
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


def gradient_of(
    toy_round, *micro: MicroBatch, advantages=(1.0, -2.0, 0.5, 3.0), kl_coef: float = 0.7
) -> tuple[UpdateRecord, list[torch.Tensor]]:
    """The last record, and the summed gradients of all micro-batches."""
    backbone, sampler, trajectory = toy_round
    trained = [parameter for parameter in backbone.denoiser.parameters() if parameter.requires_grad]
    backbone.denoiser.zero_grad(set_to_none=True)
    for one in micro:
        record = backward_steps(
            backbone,
            replay_schedule(backbone.path, sampler, trajectory),
            trajectory,
            one,
            trajectory.log_prob_SB,
            torch.tensor(advantages),
            4,
            lambda loss: loss.backward(),
            clip_range=0.1,
            advantage_clip=5.0,
            kl_coef=kl_coef,
            adapter_off=AdapterSwitch.of(backbone),
        )
    return record, [parameter.grad.clone() for parameter in trained]


def test_rows_of_advantage_0_have_no_gradient(toy_round):
    steps_KN = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 1]])
    options = {"advantages": (1.0, 0.0, -3.0, 0.0), "kl_coef": 0.0}
    whole = MicroBatch((2, 3, 0, 1), steps_KN)
    some = MicroBatch((2, 0), steps_KN[:, [0, 2]])
    (record, wanted), (few, got) = (
        gradient_of(toy_round, micro, **options) for micro in (whole, some)
    )
    scale = max(gradient.abs().max().item() for gradient in wanted)
    assert scale > 1e-3
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * scale)
    assert few.loss_K.tolist() == pytest.approx(record.loss_K.tolist(), rel=1e-5)
    assert record.loss_K.all()
    _, silent = gradient_of(toy_round, MicroBatch((1,), steps_KN[:1, 1:2]), **options)
    assert all(gradient is not None and not gradient.any() for gradient in silent)


def test_rows_that_only_fill_count_nowhere(toy_round):
    steps_KN = torch.tensor([[0, 1, 0, 0], [1, 2, 1, 1]])
    plain = MicroBatch((2, 0), steps_KN[:, :2])
    filled = MicroBatch((2, 0, 2, 2), steps_KN, fill=2)
    (record, wanted), (with_fill, got) = (
        gradient_of(toy_round, micro) for micro in (plain, filled)
    )
    assert max(gradient.abs().max() for gradient in wanted) > 0 and record.kl_to_base_K.all()
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for kind in ("ratio_KN", "loss_K", "kl_to_base_K"):
        torch.testing.assert_close(getattr(with_fill, kind), getattr(record, kind))


def test_the_gradient_does_not_depend_on_the_micro_batches(toy_round):
    steps_KN = torch.tensor([[0, 1, 2], [1, 2, 0]])
    parts = [MicroBatch((2, 0), steps_KN[:, :2]), MicroBatch((3,), steps_KN[:, 2:])]
    (_, wanted), (_, got) = (
        gradient_of(toy_round, *micro) for micro in ([MicroBatch((2, 0, 3), steps_KN)], parts)
    )
    assert max(gradient.abs().max() for gradient in wanted) > 0
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_divergence_is_of_what_is_heard(toy_round):
    """Each sample has its own mask; by hand from the means with and without the adapter."""
    backbone, sampler, trajectory = toy_round
    heard = torch.tensor([8, 3, 5, 2])
    mask = (torch.arange(8) < heard[:, None])[:, None]
    masked = replace(trajectory, scored_mask=mask)
    rows = (3, 1)
    micro = MicroBatch(rows, torch.tensor([[1, 0], [2, 2]]))
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
    assert record.kl_to_base_K.sum().item() == pytest.approx(wanted, rel=1e-4) and wanted > 0


def test_ratios_are_of_computed_pairs_and_losses_over_all_that_count():
    one = UpdateRecord(
        torch.tensor([[1.0, 1.2], [0.9, 1.0]]), torch.tensor([1.0, 2.0]), torch.tensor([0.2, 0.3])
    )
    two = UpdateRecord(torch.tensor([[1.3]]), torch.tensor([1.0]), torch.tensor([0.1]))
    found = update_metrics([one, two], 0.15, terms=8)
    assert (found["ratio/mean"], found["ratio/min"], found["ratio/max"]) == pytest.approx(
        (5.4 / 5, 0.9, 1.3)
    )
    assert (found["loss"], found["kl_to_base"], found["clip_fraction"]) == pytest.approx(
        (0.5, 0.075, 0.4)
    )
    log = torch.tensor([1.0, 1.2, 0.9, 1.0, 1.3]).log()
    assert found["approx_kl"] == pytest.approx(0.5 * log.square().mean().item())


def test_the_worst_ratio_is_named_and_no_number_is_the_worst():
    prompts = prompt_round(4).prompts
    micro = MicroBatch((3, 1), torch.tensor([[4, 5], [6, 7]]))

    def worst(ratios):
        return worst_ratio(
            UpdateRecord(torch.tensor(ratios), torch.zeros(2), torch.zeros(2)), micro, prompts
        )

    off, where = worst([[1.0, 1.01], [0.97, 1.0]])
    assert off == pytest.approx(0.03) and where.startswith(f"step 6 of prompt {prompts[3].id!r}")
    off, where = worst([[1.0, 1.01], [1.5, float("nan")]])
    assert off == float("inf") and where.startswith(f"step 7 of prompt {prompts[1].id!r}")


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
    assert ("sampler.batch_size" in why) == (tolerance == 1e-5)
    check_ratio(tolerance, "here", found, why)
    for off in (1.01 * tolerance, float("nan")):
        with pytest.raises(ValueError, match=f"within {tolerance:.3g}, .* at here; {why[:9]}"):
            check_ratio(off, "here", found, why)


def test_tf32_matters_only_on_gpus(monkeypatch):
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
