import pytest
import torch
from torch import nn
from toys import ToyBackbone, prompts

from lightning_modules.ema import EMA
from lightning_modules.random_state import random_state, set_random_state
from zoo.backbones.lora import add_lora, attention_linears, reference
from zoo.hub.adapters import load_adapter, save_adapter


def output(backbone):
    conditioning = backbone.encode_prompts(prompts(3))
    with torch.no_grad():
        return backbone.predict(torch.ones(3, 2, 8), torch.full((3,), 0.4), conditioning)


def trained(**changes):
    backbone = ToyBackbone()
    add_lora(backbone, **{"rank": 2, "alpha": 4, **changes})
    with torch.no_grad():
        for name, parameter in backbone.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    return backbone


@pytest.mark.parametrize(
    ("targets", "layers"),
    [("cross", 4), ("all", 8), (["to_q"], 2), (["cross.to_q", "into"], 2)],
)
def test_targets(targets, layers):
    backbone = ToyBackbone()
    add_lora(backbone, 2, targets=targets)
    learning = [name for name, p in backbone.denoiser.named_parameters() if p.requires_grad]
    assert len(learning) == 2 * layers and all("lora_" in name for name in learning)
    if targets == "cross":
        assert all(".cross." in name for name in learning)


def test_a_target_is_a_whole_name_or_the_end_of_one_after_a_dot():
    backbone = ToyBackbone()
    backbone.denoiser.not_into = nn.Linear(2, 2)
    add_lora(backbone, 2, targets=["into"])
    assert not any(
        "not_into" in name for name, p in backbone.denoiser.named_parameters() if p.requires_grad
    )


def test_alpha_over_rank_scales_the_adapter():
    base = ToyBackbone()
    one = trained(alpha=2)
    two = trained(alpha=4)
    usual = trained(alpha=None)
    for name, parameter in [*two.denoiser.named_parameters(), *usual.denoiser.named_parameters()]:
        parameter.data.copy_(dict(one.denoiser.named_parameters())[name])
    weights = [b.denoiser.base_model.model.cross.to_q for b in (one, two, usual)]
    changes = [layer.get_delta_weight("default") for layer in weights]
    torch.testing.assert_close(changes[1], 2 * changes[0])
    torch.testing.assert_close(changes[2], changes[0])  # alpha is the rank unless it is said
    assert changes[0].abs().max() > 0 and torch.equal(
        weights[0].base_layer.weight, base.denoiser.cross.to_q.weight
    )


def test_diffusers_attention_is_found_by_the_same_names():
    from diffusers.models.attention_processor import Attention

    size = {"heads": 2, "dim_head": 4}
    block = nn.ModuleDict(
        {"attn1": Attention(8, **size), "attn2": Attention(8, cross_attention_dim=6, **size)}
    )
    assert attention_linears(block, cross_only=True) == [
        "attn2.to_q",
        "attn2.to_k",
        "attn2.to_v",
        "attn2.to_out.0",
    ]
    assert len(attention_linears(block)) == 8


def test_errors_say_what_to_do():
    no_attention = ToyBackbone()
    no_attention.denoiser = nn.Sequential(nn.Linear(2, 2))
    for targets, message in (
        ("cross", "no cross-attention layer"),
        ("all", "no attention layer"),
        ("every", "expected 'cross', 'all' or a list"),
        (["1"], "no linear layer '1'"),
        ([], "targets is an empty list"),
    ):
        with pytest.raises(ValueError, match=message):
            add_lora(no_attention, 2, targets=targets)
    with pytest.raises(ValueError, match="at least 1"):
        add_lora(ToyBackbone(), 0)
    for alpha in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            add_lora(ToyBackbone(), 2, alpha)
    with pytest.raises(ValueError, match=r"dropout.*\[0, 1\)"):
        add_lora(ToyBackbone(), 2, dropout=1.0)
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        add_lora(ToyBackbone(), 2, init="gausian")
    with pytest.raises(ValueError, match="already has an adapter"):
        add_lora(trained(), 2)
    with pytest.raises(ValueError, match="has no adapter"):
        save_adapter(ToyBackbone(), "nowhere")


@pytest.mark.parametrize("init", ["default", "gaussian"])
def test_a_new_adapter_changes_nothing_and_is_float32_on_a_half_precision_base(init):
    backbone = ToyBackbone(dtype=torch.bfloat16)
    wanted = output(backbone)
    add_lora(backbone, 2, init=init)
    assert torch.equal(output(backbone), wanted)
    assert {p.dtype for p in backbone.denoiser.parameters() if p.requires_grad} == {torch.float32}


def test_reference_is_the_base_bitwise_and_leaves_everything_as_it_was():
    base = output(ToyBackbone())
    backbone = trained()
    adapted = output(backbone)
    with reference(backbone):
        assert torch.equal(output(backbone), base)
    assert torch.equal(output(backbone), adapted) and not torch.equal(adapted, base)
    backbone.requires_grad_(False)
    with reference(backbone):
        pass
    assert not any(p.requires_grad for p in backbone.denoiser.parameters())


def test_save_load_and_strength(tmp_path):
    backbone = trained()
    adapted = output(backbone)
    base = output(ToyBackbone())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").touch()
    folder = save_adapter(backbone, tmp_path / "adapter")
    assert (
        (folder / "adapter_config.json").is_file()
        and not (folder / "old").exists()
        and len(list(tmp_path.iterdir())) == 1
    )
    for strength, wanted in ((1.0, adapted), (0.0, base)):
        other = ToyBackbone()
        load_adapter(other, folder, strength)
        torch.testing.assert_close(output(other), wanted, rtol=0, atol=0)
        assert not any(p.requires_grad for p in other.denoiser.parameters())
    again = ToyBackbone()
    add_lora(again, 2, 4)
    load_adapter(again, folder)
    assert torch.equal(output(again), adapted)
    half = ToyBackbone()
    load_adapter(half, folder, 0.5)
    assert 0 < (output(half) - base).abs().max() < (adapted - base).abs().max()


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json, adapter_model\.safetensors"):
        load_adapter(ToyBackbone(), tmp_path)
    folder = save_adapter(trained(), tmp_path / "adapter")
    other = ToyBackbone()
    add_lora(other, 3)
    with pytest.raises(ValueError, match="another denoiser or rank"):
        load_adapter(other, folder)
    no_attention = ToyBackbone()
    no_attention.denoiser = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="another denoiser.*Sequential"):
        load_adapter(no_attention, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_adapter(ToyBackbone(), folder)


def test_ema_follows_the_formula_swaps_back_and_resumes():
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = EMA([weight], 0.5)
    with torch.no_grad():
        weight.fill_(3.0)
    ema.update()  # decay min(0.5, 2 / 11)
    assert ema.average[0].item() == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
    with pytest.raises(RuntimeError), ema.swapped():
        assert weight.item() == pytest.approx(29 / 11)
        raise RuntimeError
    assert weight.item() == 3
    other = EMA([nn.Parameter(torch.zeros(1))], 0.5)
    state = ema.state_dict()
    other.load_state_dict(state)
    assert other.updates == 1 and torch.equal(other.average[0], ema.average[0])
    for one in (ema, other):
        one.update()  # what was saved stays what it was
    assert state["average"][0].item() == pytest.approx(29 / 11) != ema.average[0].item()
    with pytest.raises(ValueError, match="other parameters"):
        EMA([nn.Parameter(torch.zeros(2))], 0.5).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match=r"ema_decay 1\.0"):
        EMA([weight], 1.0)


def test_averages_of_half_precision_weights_are_more_precise():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    ema = EMA([weight], 0.9999)
    wanted = 1.0
    with torch.no_grad():
        weight.fill_(1.0078125)  # the next number of this type
    for update in range(1, 6):
        ema.update()
        wanted += (1.0078125 - wanted) * (1 - min(0.9999, (1 + update) / (10 + update)))
    assert ema.average[0].dtype == torch.float32 and ema.average[0].item() == pytest.approx(
        wanted, rel=1e-6
    )
    other = EMA([nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))], 0.9999)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.average[0], ema.average[0])
    with ema.swapped():
        assert weight.dtype == torch.bfloat16
    assert weight.item() == 1.0078125


def test_random_state_comes_back_and_loads_as_plain_weights(tmp_path):
    import random

    import numpy

    draw = lambda: (random.random(), numpy.random.rand(), torch.rand(1).item())  # noqa: NPY002
    torch.save(random_state(), tmp_path / "state.pt")
    first = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first
