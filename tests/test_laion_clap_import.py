"""LAION-CLAP's files in transformers' ClapModel: every tensor is used, known or an error."""

import numpy as np
import pytest
import torch
from toy_clap import AUDIO, CONFIG, TEXT, laion_state, random_clap, tokenizer_file
from transformers.audio_utils import mel_filter_bank

from zoo.importers.laion_clap import converted, read_laion_clap
from zoo.importers.pretrained_clap import load_clap_state, with_files
from zoo.rewards.clap import ClapReward
from zoo.rewards.transformers_clap import TransformersClapTowers
from zoo.types import Prompt

MEL = "audio_branch.logmel_extractor.melW"


@pytest.fixture(scope="module")
def model():
    return random_clap()


def mel_bank(lowest_hz: float) -> torch.Tensor:
    bank = mel_filter_bank(513, 64, lowest_hz, 14_000, 48_000, norm="slaney", mel_scale="slaney")
    return torch.as_tensor(bank, dtype=torch.float32)


def test_sizes_are_read_from_the_tensors(model):
    found = converted(laion_state(model.state_dict()))
    assert found.config["projection_dim"] == CONFIG["projection_dim"]
    assert {key: found.config["text_config"][key] for key in TEXT} == TEXT
    assert {key: found.config["audio_config"][key] for key in AUDIO} == AUDIO


def test_every_weight_arrives_where_it_was(model):
    state = model.state_dict()
    found = converted(laion_state(state))
    left = state.keys() - found.state.keys()
    assert left == {"text_model.embeddings.token_type_ids"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state.items())
    assert len(found.unused) == 8 and all(
        "transform" in name or "audio_branch" in name for name in found.unused
    )


def test_a_file_as_its_authors_wrote_it_scores_as_the_model_does(model, tmp_path):
    """With the training prefix, numpy numbers in the optimiser's part, and computed tables."""
    tensors = laion_state(model.state_dict()) | {MEL: mel_bank(50)}
    state = {f"module.{name}": tensor for name, tensor in tensors.items()}
    path = tmp_path / "630k-small.pt"
    torch.save(
        {"epoch": 15, "name": "x", "state_dict": state, "optimizer": {"lr": np.float64(1e-4)}}, path
    )
    tokenizer = str(tokenizer_file(tmp_path))
    reward = ClapReward(
        "630k-small",
        "transformers",
        with_files({"pretrained": str(path), "tokenizer": tokenizer}),
    )
    wave = 0.1 * torch.randn(1, 1, 480_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = reward(wave, 48_000, [Prompt("p", "rain then wind")])
        audio = model.get_audio_features(input_features=reward.towers.mel(wave[:, 0])).pooler_output
        text = model.get_text_features(input_ids=torch.tensor([[0, 7, 11, 12, 2]])).pooler_output
    assert torch.allclose(output.score_B, (audio * text).sum(dim=1), atol=1e-6) and list(
        output.parts
    ) == ["clap/630k-small"]


def test_the_class_head_and_the_tables_change_nothing(model):
    state = laion_state(model.state_dict())
    changed = {
        name: tensor + 1 if name in converted(state).unused else tensor
        for name, tensor in state.items()
    }
    found = converted(changed)
    assert all(
        torch.equal(found.state[name], tensor) for name, tensor in converted(state).state.items()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"audio_branch.layers.0.blocks.0.attn.gate.weight": torch.zeros(2)},
            "1 tensors have no place: audio_branch.*attn.gate",
        ),
        (
            {"text_branch.encoder.layer.0.crossattention.weight": torch.zeros(2)},
            "no place: text_branch.*crossattention",
        ),
        ({"visual.conv1.weight": torch.zeros(2)}, "no place: visual.conv1.weight"),
        ({"audio_branch.patch_embed.mel_conv2d.weight": torch.zeros(2)}, "feature fusion"),
        ({MEL: mel_bank(0)}, "mel filter bank"),
        ({MEL: torch.zeros(1025, 64)}, "n_fft 2048"),
        ({"audio_branch.layers.0.blocks.0.attn.qkv.bias": torch.zeros(13)}, "query, key and value"),
        ({"audio_branch.layers.0.blocks.0.attn.qkv.bias": torch.zeros(())}, "query, key and value"),
        (
            {"audio_branch.patch_embed.proj.weight": torch.zeros(0)},
            "patch_embed.proj.weight .* is empty",
        ),
        ({"text_branch.embeddings.token_type_embeddings.weight": torch.zeros(0, 64)}, "is empty"),
        ({"audio_branch.norm.weight": None}, "it has no audio_model.audio_encoder.norm.weight"),
    ],
)
def test_foreign_tensors_are_named(model, change, message):
    state = laion_state(model.state_dict()) | change
    with pytest.raises(ValueError, match=message):
        converted({name: tensor for name, tensor in state.items() if tensor is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_model.pooler.dense.bias": None}, "1 missing: text_model.pooler.dense.bias"),
        (
            {"text_model.encoder.layer.1.output.dense.bias": torch.zeros(64)},
            "1 left over: text_model.encoder.layer.1",
        ),
        (
            {"audio_projection.linear2.bias": torch.zeros(9)},
            "1 of another shape: audio_projection.linear2.bias",
        ),
        (
            {"audio_projection.linear2.bias": torch.full((8,), torch.nan)},
            "NaN or infinity: audio_projection.linear2.bias",
        ),
        (
            {"text_model.embeddings.position_ids": torch.zeros(1, 130, dtype=torch.long)},
            "not as computed here: text_model",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded(model, change, message):
    towers = TransformersClapTowers(config=CONFIG)
    before = {name: tensor.clone() for name, tensor in towers.clap.state_dict().items()}
    state = dict(model.state_dict()) | change
    with pytest.raises(ValueError, match=message):
        load_clap_state(
            towers.clap, {name: tensor for name, tensor in state.items() if tensor is not None}, "x"
        )
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in towers.clap.state_dict().items()
    )


def test_impossible_sizes_are_an_error_that_names_the_file(model, tmp_path):
    words = {
        "text_branch.embeddings.word_embeddings.weight": torch.zeros(1, 64)
    }  # without a padding token
    torch.save(laion_state(model.state_dict()) | words, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: ClapModel cannot be built"):
        TransformersClapTowers(
            **with_files({"pretrained": str(tmp_path / "a.pt"), "tokenizer": "none"})
        )


def test_a_file_that_is_not_a_clap_is_named(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: not a LAION-CLAP checkpoint"):
        read_laion_clap(tmp_path / "a.pt")
    torch.save({"state_dict": [1, 2]}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="state_dict is a list"):
        read_laion_clap(tmp_path / "b.pt")
    torch.save({"weight": 3}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="weight is not a tensor"):
        read_laion_clap(tmp_path / "c.pt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        read_laion_clap(tmp_path / "nothing.pt")
