"""Parity with LAION-AI/CLAP on golden numbers, through the importer and the reward."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.importers.laion_clap import ImportedClap, converted
from zoo.importers.pretrained_clap import load_clap_state
from zoo.rewards.clap import ClapReward
from zoo.rewards.transformers_clap import TransformersClapTowers

pytestmark = pytest.mark.parity
MODELS = [
    pytest.param("tiny", id="laion_clap_tiny"),
    pytest.param("base", id="laion_clap_base", marks=pytest.mark.slow),
]


class Golden:
    """One model's audio and text numbers, and its weights under the original names."""

    def __init__(self, root: Path, model: str) -> None:
        spec = importlib.util.spec_from_file_location("seeded_weights", root / "seeded_weights.py")
        seeded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(seeded)
        folder = root / "laion_clap"
        self.audio_facts = json.loads((folder / f"audio_{model}.json").read_text())
        self.text_facts = json.loads((folder / f"text_{model}.json").read_text())
        self.audio, self.text = (
            np.load(folder / facts["file"]) for facts in (self.audio_facts, self.text_facts)
        )
        waves = np.load(folder / self.audio_facts["waveforms"])
        self.rate_hz = json.loads((folder / "waveforms.json").read_text())["sample_rate"]
        self.waves = {
            name: torch.from_numpy(waves[name].astype(np.float32) / 128)[None, None]
            for name in waves.files
        }
        self.state: dict[str, Tensor] = {}
        for facts, keep in (
            (self.audio_facts, ("audio_", "logit_")),
            (self.text_facts, ("text_",)),
        ):
            manifest = json.loads((folder / facts["weights"]["manifest"]).read_text())["tensors"]
            kept = {name: entry for name, entry in manifest.items() if name.startswith(keep)}
            arrays = seeded.seeded_state(kept, facts["weights"]["seed"])
            promised = facts["weights"]["state_sha256"]
            for prefix, checksum in (
                promised if isinstance(promised, dict) else {"text": promised}
            ).items():
                part = {
                    name: value
                    for name, value in arrays.items()
                    if name.startswith(f"{prefix}.") or prefix == "text"
                }
                assert seeded.state_sha256(part) == checksum, (
                    f"the weights of {prefix} are not the golden ones"
                )
            self.state |= {
                name: torch.from_numpy(np.array(value)) for name, value in arrays.items()
            }


@pytest.fixture(scope="module", params=MODELS)
def case(request, golden_dir: Path) -> tuple[Golden, ImportedClap, ClapReward]:
    golden = Golden(golden_dir, request.param)
    found = converted(golden.state)
    assert found.config["text_config"].items() <= golden.text_facts["text_config"].items()
    reward = ClapReward(golden.audio_facts["model"], "transformers", {"config": found.config})
    load_clap_state(reward.towers.clap, found.state, "the golden weights")
    return golden, found, reward.requires_grad_(False)


def assert_close(got: Tensor, expected: Any, tolerance: float, what: str) -> None:
    expected = torch.as_tensor(expected)
    assert got.shape == expected.shape, (
        f"{what}: {tuple(got.shape)}, expected {tuple(expected.shape)}"
    )
    worst = (got.double() - expected.double()).abs().max().item()
    assert worst <= tolerance, f"{what}: off by {worst:.2e}, allowed {tolerance:.0e}"


@pytest.mark.long
def test_audio(case) -> None:
    """Embedding, tower, projection and class scores per clip, and the steps of the front end."""
    golden, found, reward = case
    clap = reward.towers.clap
    seen = {}
    clap.audio_model.register_forward_hook(
        lambda module, given, output: seen.update(
            tower=output.pooler_output, map=output.last_hidden_state
        )
    )
    clap.audio_projection.register_forward_hook(
        lambda module, given, output: seen.update(projection=output)
    )
    clap.audio_model.audio_encoder.patch_embed.register_forward_pre_hook(
        lambda module, given: seen.update(image=given[0])
    )
    embeddings = []
    for name, wave in golden.waves.items():
        embeddings.append(reward.embed_audio(wave, golden.rate_hz)[0])
        assert_close(embeddings[-1], golden.audio[f"{name}.embedding"], 1e-5, f"{name}.embedding")
        assert_close(seen["tower"][0], golden.audio[f"{name}.tower"], 1e-4, f"{name}.tower")
        assert_close(
            seen["projection"][0], golden.audio[f"{name}.projection"], 1e-4, f"{name}.projection"
        )
        head = (found.unused[f"audio_branch.tscam_conv.{part}"] for part in ("weight", "bias"))
        classes = F.conv2d(seen["map"], *head, padding=(0, 1)).flatten(2).mean(dim=2).sigmoid()[0]
        expected = golden.audio[f"{name}.clipwise"]
        assert_close(classes[: len(expected)], expected, 1e-4, f"{name}.clipwise")
        if f"{name}.image_slice" in golden.audio.files:
            assert_close(
                seen["image"][0, 0, ::8, ::8],
                golden.audio[f"{name}.image_slice"],
                2e-2,
                f"{name}.image_slice",
            )
    cosines = torch.stack(embeddings) @ torch.stack(embeddings).T
    assert_close(cosines, golden.audio["cosines"], 2e-5, "cosines")


@pytest.mark.long
def test_front_end(case) -> None:
    golden, _, reward = case
    for name, wave in golden.waves.items():
        window = reward.cut(wave, golden.rate_hz)[0]
        if f"{name}.n_repeats" in golden.audio.files:
            copies = int(golden.audio[f"{name}.n_repeats"])
            tail = int(golden.audio[f"{name}.n_zero_tail"])
            assert torch.equal(window[0], F.pad(wave[0, 0].repeat(copies), (0, tail)))
        if f"{name}.logmel" in golden.audio.files:
            assert_close(
                reward.towers.mel(window)[0, 0, ::10],
                golden.audio[f"{name}.logmel"],
                2e-2,
                f"{name}.logmel",
            )


@pytest.mark.long
def test_16_bits_and_padding(case) -> None:
    golden, found, reward = case
    arguments = {"config": found.config}
    rounded = ClapReward("x", "transformers", arguments, int16=True)
    zero = ClapReward("x", "transformers", arguments, padding="zero")
    rounded.towers = zero.towers = reward.towers
    for name, wave in golden.waves.items():
        embedding = rounded.embed_audio(wave, golden.rate_hz)[0]
        assert_close(
            embedding, golden.audio[f"{name}.embedding_int16"], 1e-5, f"{name}.embedding_int16"
        )
        if f"{name}.embedding_zero_pad" in golden.audio.files:
            padded = zero.embed_audio(wave, golden.rate_hz)[0]
            assert_close(
                padded,
                golden.audio[f"{name}.embedding_zero_pad"],
                1e-5,
                f"{name}.embedding_zero_pad",
            )
            assert (padded - torch.as_tensor(golden.audio[f"{name}.embedding"])).abs().max() > 1e-4


@pytest.mark.long
def test_text_and_similarity(case) -> None:
    golden, _, reward = case
    towers: TransformersClapTowers = reward.towers
    seen: dict[str, Any] = {}
    towers.clap.text_model.register_forward_hook(
        lambda module, given, output: seen.update(
            first=output.last_hidden_state[:, 0], pooled=output.pooler_output
        )
    )
    towers.clap.text_projection.register_forward_hook(
        lambda module, given, output: seen.update(projection=output)
    )
    embedding = towers.embed_tokens(
        *(torch.from_numpy(golden.text[key]) for key in ("input_ids", "attention_mask"))
    )
    assert_close(embedding, golden.text["embedding"], 1e-5, "embedding")
    assert_close(
        seen["first"], golden.text["last_hidden_first_token"], 1e-4, "last_hidden_first_token"
    )
    assert_close(seen["pooled"], golden.text["pooler_output"], 1e-4, "pooler_output")
    assert_close(seen["projection"], golden.text["projection"], 1e-4, "projection")
    audio = torch.stack(
        [torch.as_tensor(golden.audio[f"{name}.embedding"]) for name in golden.waves]
    )
    assert_close(audio @ embedding.T, golden.text["similarity"], 2e-5, "similarity")
