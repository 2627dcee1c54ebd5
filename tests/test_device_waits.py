"""How often training and sampling make the processor wait for the device."""

from dataclasses import fields, replace

import pytest
import torch
from toy_device import NAME, moved, pretended_device, waits
from toys import prompt_round, shaken, small_audio

from lightning_modules.rl.ppo_update import MicroBatch, backward_steps, on_cpu
from zoo.backbones.lora import AdapterSwitch, add_lora
from zoo.diffusion import Sampler, noise_generator, replay_schedule, rollout


def there(record):
    """A dataclass with all its tensors on the pretended device."""
    changes = {
        field.name: value.to(NAME)
        for field in fields(record)
        if hasattr(value := getattr(record, field.name), "to")
    }
    return replace(record, **changes)


def guided_round(detach: bool, is_masked: bool):
    """(backbone with an adapter, schedule, trajectory of four samples)"""
    backbone = small_audio().requires_grad_(False)
    add_lora(backbone, 2, targets="all")
    shaken(backbone)
    sampler = Sampler(3, 2.0, 0.7, detach_unconditional=detach)
    prompts = prompt_round(4).prompts
    with torch.no_grad():
        sides = [backbone.encode_prompts(side) for side in sampler.sides(prompts)]
    shape = backbone.latent_shape(prompts[0].seconds)
    mask = (torch.arange(shape[-1]) < 9).expand(4, 1, -1) if is_masked else None
    generators = [noise_generator(0, 0, prompt.id, i) for i, prompt in enumerate(prompts)]
    trajectory = rollout(
        backbone.predict,
        backbone.path,
        sampler,
        prompts,
        *sides,
        shape,
        generators,
        scored_mask=mask,
    )
    return backbone, replay_schedule(backbone.path, sampler, trajectory), trajectory


@pytest.mark.long
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize(("detach", "is_masked"), [(True, False), (False, True)])
def test_a_micro_batch_waits_twice_whatever_its_steps(kl_coef, detach, is_masked):
    """Its rows and steps go there, what it saw comes back."""
    backbone, schedule, trajectory = guided_round(detach, is_masked)
    micro = MicroBatch((2, 0), torch.tensor([[0, 1], [1, 0]]))
    with pretended_device():
        moved(backbone)
        trajectory, schedule = there(trajectory), there(schedule)
        advantage_B = torch.ones(4).to(NAME)
        with waits() as counts:
            record = backward_steps(
                backbone,
                schedule,
                trajectory,
                micro,
                trajectory.log_prob_SB,
                advantage_B,
                4,
                lambda loss: loss.backward(),
                clip_range=0.1,
                advantage_clip=5.0,
                kl_coef=kl_coef,
                adapter_off=AdapterSwitch.of(backbone) if kl_coef else None,
            )
            assert record.loss_K.device.type == NAME and record.ratio_KN.shape == (2, 2)
            on_cpu([record])
    assert sum(counts.values()) == 2, counts
    learned = [p for p in backbone.denoiser.parameters() if p.requires_grad]
    assert learned and all(p.grad is not None for p in learned)


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x[torch.tensor([0, 1])], "index between devices"),
        (lambda x: x.cpu(), "_to_copy between devices"),
        (lambda x: torch.ones(3).to(x.device), "_to_copy between devices"),
        (lambda x: x.new_zeros(3).copy_(torch.ones(3)), "copy_ between devices"),
        (lambda x: x[x.long()] * 2.0 + torch.tensor(1.0), None),
    ],
)
def test_waits_are_counted(wait, name):
    with pretended_device():
        x = torch.ones(3).to(NAME)
        with waits() as counts:
            wait(x)
    assert counts == ({} if name is None else {name: 1})
