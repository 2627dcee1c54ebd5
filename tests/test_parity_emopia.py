"""Parity with SeungHeonDoh/EMOPIA_cls on golden numbers, through the importer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.importers.emopia import CHUNK_S, PREFIX, RATE_HZ, TASKS, load_emopia
from zoo.rewards.mood import EmotionReward
from zoo.rewards.mood_tasks import QUADRANTS
from zoo.rewards.short_chunk import ShortChunkResNet
from zoo.types import Prompt

pytestmark = pytest.mark.parity
SCORES, LOGITS, DB, MEL = 1e-4, 1e-3, 1e-2, 1e-3  # allowed; the last as a share of its maximum


def seeds_of(golden_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "seeded_weights", golden_dir / "seeded_weights.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def computed(manifest: dict[str, Any]) -> dict[str, Tensor]:
    """The window and filters of the original, by our own formulas."""
    settings = manifest["hyperparameters"]
    count = manifest["hyperparameters"]["n_fft"]
    window = 0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(count, dtype=torch.float64) / count)

    def mel(hz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hz / 700)

    low, high = (
        mel(torch.tensor(float(settings[edge]), dtype=torch.float64)) for edge in ("f_min", "f_max")
    )
    edges = 700 * (
        10 ** (torch.linspace(low, high, settings["n_mels"] + 2, dtype=torch.float64) / 2595) - 1
    )
    hz = torch.linspace(
        0, settings["sample_rate"] / 2, count // 2 + 1, dtype=torch.float64
    ).unsqueeze(1)
    rise = (hz - edges[:-2]) / edges.diff()[:-1]
    fall = (edges[2:] - hz) / edges.diff()[1:]
    found = {
        "spec.spectrogram.window": window,
        "spec.mel_scale.fb": torch.minimum(rise, fall).clamp(min=0),
    }
    assert {name: list(value.shape) for name, value in found.items()} == {
        name: entry["shape"] for name, entry in manifest["computed"].items()
    }
    return {name: value.float() for name, value in found.items()}


class Case:
    """One task: facts, arrays by key, and the original's weights as its authors wrote them."""

    def __init__(self, folder: Path, task: str, file: Path) -> None:
        self.facts: dict[str, Any] = json.loads(
            (folder / "emopia" / f"audio_{task}.json").read_text()
        )
        self.arrays = np.load(folder / "emopia" / self.facts["file"])
        weights = self.facts["weights"]
        seeds = seeds_of(folder)
        manifest = json.loads((folder / "emopia" / weights["manifest"]).read_text())
        assert manifest["file_prefix"] == PREFIX and manifest["input_seconds"] == CHUNK_S
        assert manifest["hyperparameters"]["sample_rate"] == RATE_HZ
        state = seeds.seeded_state(manifest["tensors"], weights["seed"])
        assert seeds.state_sha256(state) == weights["state_sha256"], (
            "the generator of the weights differs"
        )
        self.state = {name: torch.from_numpy(value) for name, value in state.items()} | computed(
            manifest
        )
        self.parameters = manifest["n_params"]
        content = {"epoch": 3, "hyper_parameters": dict(manifest["hyperparameters"])}
        torch.save(
            {**content, "state_dict": {PREFIX + name: value for name, value in self.state.items()}},
            file,
        )
        stored = np.load(folder / "emopia" / self.facts["waveforms"])
        self.chunks, self.clip = (
            torch.from_numpy(stored[name].astype(np.float32) / 128) for name in ("chunks", "clip")
        )

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])


def assert_close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    worst = (got.double() - expected.double()).abs().max().item()
    assert got.shape == expected.shape and worst <= tolerance, (
        f"{what}: off by {worst:.2e}, allowed {tolerance:.0e}"
    )


def block_7(network: ShortChunkResNet, chunks_BN: Tensor) -> tuple[Tensor, Tensor]:
    """(output of the last residual block, logits)."""
    kept = []
    hook = network.layer7.register_forward_hook(lambda *call: kept.append(call[2]))
    logits = network(chunks_BN)
    hook.remove()
    return kept[0], logits


def judged(reward: EmotionReward, wave_N: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """(logits (chunks, K), parts as a row of K mean scores) of one clip under a chunk rule."""
    reward.chunk_rule = rule
    prompts = [Prompt("clip", "x", labels={"mood": reward.class_names[0]})]
    parts = reward(wave_N.view(1, 1, -1), RATE_HZ, prompts).parts
    return reward.chunk_logits(wave_N.view(1, 1, -1), RATE_HZ)[0], torch.cat(
        [parts[f"p_{name}"] for name in reward.class_names]
    )


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_emopia_classifier(golden_dir: Path, tmp_path: Path, task: str) -> None:
    case = Case(golden_dir, task, tmp_path / "best.ckpt")
    reward = load_emopia(tmp_path / "best.ckpt", task)
    network = reward.classifier
    assert sum(parameter.numel() for parameter in network.parameters()) == case.parameters
    assert network.state_dict().keys() == case.state.keys()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in case.state.items())
    expected_names = (
        case.facts["labels"]
        if task != "ar_va"
        else [QUADRANTS[name] for name in case.facts["labels"]]
    )
    assert list(reward.class_names) == expected_names

    block, logits = block_7(network, case.chunks)
    stored = case["chunks.layer7"]
    scale = max(1.0, stored.abs().max().item())
    assert_close(
        block[:, :: block.shape[1] // stored.shape[1]], stored, LOGITS * scale, "last block"
    )
    assert_close(logits, case["chunks.logits"], LOGITS, "logits")
    assert_close(reward.probabilities(logits), case["chunks.scores"], SCORES, "scores")

    for rule, count, key, mean in (
        ("upstream", "reference_chunks", "chunk", "mean_scores"),
        ("full", "full_chunks", "all_full_chunk", "mean_scores_all_full"),
    ):
        logits, scores = judged(reward, case.clip, rule)
        assert len(logits) == case.facts[count]
        assert_close(logits, case[f"clip.{key}_logits"], LOGITS, f"{rule} logits")
        assert_close(
            reward.probabilities(logits), case[f"clip.{key}_scores"], SCORES, f"{rule} scores"
        )
        assert_close(scores, case[f"clip.{mean}"], SCORES, f"{rule} mean")
        if rule == "upstream":
            assert scores.argmax() == case["clip.label_index"]


def test_emopia_front_end(golden_dir: Path, tmp_path: Path) -> None:
    case = Case(golden_dir, "ar_va", tmp_path / "best.ckpt")
    network = load_emopia(tmp_path / "best.ckpt", "ar_va").classifier
    db_BMF = network.log_mel(case.chunks)[:, 0]
    frames = 1 + case.chunks.shape[1] // (network.spec.n_fft // 2)
    assert db_BMF.shape[2] == frames
    db, mel = case["chunks.db"], case["chunks.mel"]
    assert_close(db_BMF[:, :, :: -(-frames // db.shape[2])], db, DB, "dB")
    power = 10 ** (db_BMF.double()[:, :, :: -(-frames // mel.shape[2])] / 10)
    worst = (power - mel).abs().max() / mel.max()
    assert power.shape == mel.shape and worst <= MEL, (
        f"mel: off by {worst:.2e} of its maximum, allowed {MEL}"
    )


@pytest.mark.long
def test_emopia_numbers_can_tell_the_settings_apart(golden_dir: Path, tmp_path: Path) -> None:
    """Other levels, chunk rules or activations give other numbers than the stored ones."""
    case = Case(golden_dir, "arousal", tmp_path / "best.ckpt")
    reward = load_emopia(tmp_path / "best.ckpt", "arousal")
    logits, _ = judged(reward, case.clip, "full")
    assert (logits[:-1] - case["clip.chunk_logits"]).abs().max() <= LOGITS
    assert (logits[-1] - logits[0]).abs().max() > 10 * LOGITS
    assert (judged(reward, case.clip * 0.5, "full")[0] - logits).abs().max() > 10 * LOGITS
    assert (logits.softmax(dim=1) - case["clip.all_full_chunk_scores"]).abs().max() > 10 * SCORES
