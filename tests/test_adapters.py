"""Adapters on disk: stacked with strengths, merged, and refused on another base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys import ToyBackbone, prompts

from zoo.backbones.lora import add_lora, reference
from zoo.hub.adapter_files import base_hashes, base_sha256, read_adapter
from zoo.hub.adapters import load_adapter, merge_adapters, save_adapter, stack_adapters
from zoo.hub.artifact import refuse_live_adapter
from zoo.hub.weights import save_weights


def output(backbone):
    conditioning = backbone.encode_prompts(prompts(3))
    with torch.no_grad():
        return backbone.predict(
            torch.linspace(-1, 1, 48).reshape(3, 2, 8), torch.full((3,), 0.4), conditioning
        )


def trained(seed: int, **changes) -> ToyBackbone:
    backbone = ToyBackbone()
    add_lora(backbone, **{"rank": 2, "alpha": 4, **changes})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in backbone.denoiser.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return backbone


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    return [
        save_adapter(trained(1), place / "one"),
        save_adapter(trained(2, rank=3, targets="all"), place / "two"),
    ]


def weights(backbone) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}


def merged(*adapters) -> dict[str, torch.Tensor]:
    backbone = ToyBackbone()
    stack_adapters(backbone, adapters)
    merge_adapters(backbone)
    return weights(backbone)


def test_the_folder_says_which_base_and_equal_weights_give_equal_bytes(folders, tmp_path):
    config = json.loads((folders[0] / "config.json").read_text())
    assert config["kind"] == "adapter" and config["base"]["sha256"] == base_hashes(
        ToyBackbone().denoiser
    )
    assert (
        set(config["base"]["sha256"]) == {"float32", "bfloat16", "float16"}
        and config["format"] == 1
    )
    assert set(config["sha256"]) == {"adapter_config.json", "adapter_model.safetensors"}
    again = save_adapter(trained(1), tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (folders[0] / name).read_bytes(), name
    assert sorted(path.name for path in again.iterdir()) == sorted(
        ["config.json", *config["sha256"]]
    )


def test_the_hash_is_of_the_base_with_and_without_adapters():
    plain = ToyBackbone()
    adapted = trained(1)
    assert base_sha256(plain.denoiser, "float32") == base_sha256(adapted.denoiser, "float32")
    with torch.no_grad():
        plain.denoiser.out.bias.view(-1)[0] += 1e-6
    assert base_sha256(plain.denoiser, "float32") != base_sha256(adapted.denoiser, "float32")


def test_two_adapters_with_strengths_are_the_sum_of_their_changes(folders):
    base = weights(ToyBackbone())
    one, two = (merged((folder, 1.0)) for folder in folders)
    both = merged((folders[0], 0.5), (folders[1], -2.0))
    for name, value in base.items():
        wanted = value + 0.5 * (one[name] - value) - 2 * (two[name] - value)
        torch.testing.assert_close(both[name], wanted, rtol=0, atol=2e-6)
    assert any(not torch.equal(both[name], value) for name, value in base.items())


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.5, -2.0), (0.0, 1.0)])
def test_stacked_and_merged_say_the_same(folders, strengths):
    live, plain = ToyBackbone(), ToyBackbone()
    stack_adapters(live, list(zip(folders, strengths, strict=True)))
    stack_adapters(plain, list(zip(folders, strengths, strict=True)))
    merge_adapters(plain)
    assert (
        type(plain.denoiser) is type(ToyBackbone().denoiser)
        and weights(plain).keys() == weights(ToyBackbone()).keys()
    )
    torch.testing.assert_close(output(plain), output(live), rtol=0, atol=2e-6)
    assert not any(p.requires_grad for b in (live, plain) for p in b.denoiser.parameters())
    refuse_live_adapter(plain.denoiser.state_dict(), "x")


def test_strength_zero_is_the_base_bitwise(folders):
    base = output(ToyBackbone())
    backbone = ToyBackbone()
    stack_adapters(backbone, [(folder, 0.0) for folder in folders])
    assert torch.equal(output(backbone), base)
    merge_adapters(backbone)
    assert torch.equal(output(backbone), base)


def test_switched_off_all_adapters_are_off(folders):
    backbone = ToyBackbone()
    stack_adapters(backbone, [(folder, 1.0) for folder in folders])
    with reference(backbone):
        assert torch.equal(output(backbone), output(ToyBackbone()))


def test_stacking_leaves_the_random_state(folders):
    expected = torch.rand(3)
    torch.manual_seed(0)
    stack_adapters(ToyBackbone(), [(folders[0], 1.0), (folders[1], 1.0)])
    assert torch.equal(torch.rand(3), expected)


def test_another_base_is_refused_with_both_hashes_and_left_as_it_was(folders):
    backbone = ToyBackbone()
    with torch.no_grad():
        backbone.denoiser.out.bias.view(-1)[0] += 0.5
    before = output(backbone)
    found = base_sha256(backbone.denoiser, "float32")
    recorded = base_sha256(ToyBackbone().denoiser, "float32")
    for load in (
        lambda: load_adapter(backbone, folders[0]),
        lambda: stack_adapters(backbone, [(folders[0], 1.0)], "mine"),
    ):
        with pytest.raises(
            ValueError, match=f"trained on another base: .*{recorded}.*{found}"
        ) as caught:
            load()
    assert "but mine has" in str(caught.value) and torch.equal(output(backbone), before)
    stack_adapters(backbone, [(folders[0], 1.0)], check_bases=False)
    assert not torch.equal(output(backbone), before)
    live = trained(3)
    with torch.no_grad():
        live.denoiser.base_model.model.out.bias.view(-1)[0] += 0.5
    with pytest.raises(ValueError, match="trained on another base"):
        load_adapter(live, folders[0])


def test_a_base_loaded_in_lower_precision_is_the_same_base(folders):
    for dtype in (torch.bfloat16, torch.float16):
        load_adapter(ToyBackbone(dtype=dtype), folders[0])


def test_trained_in_half_precision_fits_the_full_base(tmp_path):
    half = ToyBackbone(dtype=torch.bfloat16)
    add_lora(half, 2)
    folder = save_adapter(half, tmp_path / "half")
    load_adapter(ToyBackbone(), folder)
    other = ToyBackbone()
    with torch.no_grad():
        other.denoiser.out.bias.view(-1)[0] += 0.5
    with pytest.raises(ValueError, match=r"\(as bfloat16\)"):
        load_adapter(other, folder)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "1", True, None])
def test_bad_strengths(folders, strength):
    with pytest.raises(ValueError, match="must be a finite number"):
        stack_adapters(ToyBackbone(), [(folders[0], strength)])


def test_invalid_stacks_are_refused(folders):
    with pytest.raises(ValueError, match="no adapter is given"):
        stack_adapters(ToyBackbone(), [])
    with pytest.raises(ValueError, match="already has an adapter"):
        stack_adapters(trained(1), [(folders[0], 1.0)])
    with pytest.raises(ValueError, match="has no adapter"):
        merge_adapters(ToyBackbone())


def test_a_stack_has_no_folder(folders, tmp_path):
    backbone = ToyBackbone()
    stack_adapters(backbone, [(folder, 1.0) for folder in folders])
    with pytest.raises(ValueError, match="^2 adapters.*merge"):
        save_adapter(backbone, tmp_path / "both")
    assert list(tmp_path.iterdir()) == []


def test_a_live_adapter_is_never_saved_with_its_base():
    backbone = trained(1)
    for state in (backbone.denoiser.state_dict(), backbone.state_dict()):
        with pytest.raises(
            ValueError, match="artefact x: the model has a live adapter .* merge it first .*--merge"
        ):
            refuse_live_adapter(state, "artefact x")


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    (tmp_path / "copy").mkdir()
    for path in folders[0].iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"megatron_config": {"a": 1}, "megatron_core": "os"},
            "megatron_c.* is not plain LoRA",
        ),
        ({"megatron_core": "antigravity"}, "megatron_core='antigravity' is not plain LoRA"),
        ({"use_dora": True}, "use_dora=True is not plain LoRA"),
        ({"bias": "all"}, "bias='all' is not plain LoRA"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern=.* is not plain LoRA"),
        ({"use_drora": True}, "use_drora=True is not plain LoRA.*did you mean 'use_dora'"),
        ({"init_lora_weights": "pissa"}, "'pissa' changes the base model"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' cannot be loaded"),
        ({"target_modules": ".*"}, "target_modules must be a list of layer names, got '.*'"),
        ({"target_modules": []}, "target_modules must be a list of layer names"),
        ({"r": "2"}, "r must be a whole number of at least 1, got '2'"),
        ({"r": True}, "r must be a whole number"),
        ({"lora_alpha": "os"}, "lora_alpha must be a number"),
        ({"lora_dropout": 1.0}, r"lora_dropout must be a number in \[0, 1\)"),
    ],
)
def test_an_adapter_config_may_only_be_plain_lora(copy, changes, message):
    (copy / "config.json").unlink()  # as from anybody's peft
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load_adapter(ToyBackbone(), copy)


def test_what_was_changed_after_it_was_written_is_refused(copy, folders):
    path = copy / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors.*config\.json"):
        read_adapter(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(ValueError, match="written by a newer version"):
        read_adapter(copy)
    (copy / "config.json").write_text(json.dumps(config | {"kind": "backbone", "arguments": {}}))
    with pytest.raises(ValueError, match="holds a backbone, not an adapter"):
        read_adapter(copy)
    (copy / "config.json").unlink()
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        read_adapter(copy)


def test_tensors_of_another_shape_or_name_are_refused(copy):
    (copy / "config.json").unlink()
    config, state, _ = read_adapter(copy)
    first = sorted(state)[0]
    others = {name: value for name, value in state.items() if name != first}
    for changed in (state | {first: torch.zeros(7, 7)}, others, state | {"x": state[first]}):
        save_weights(changed, copy / "adapter_model.safetensors")
        backbone = ToyBackbone()
        with pytest.raises(ValueError, match="another denoiser or rank"):
            load_adapter(backbone, copy)
        assert "lora" not in str(backbone.denoiser)


def test_a_full_disk_or_a_bad_weight_keeps_the_older_adapter(folders, copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    bad = trained(5)
    with torch.no_grad():
        next(p for n, p in bad.denoiser.named_parameters() if "lora_A" in n).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        save_adapter(bad, copy)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo.hub.weights.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(trained(5), copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before and len(
        list(copy.parent.iterdir())
    ) == 1
