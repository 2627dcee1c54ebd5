"""BATON's reward head (arXiv 2402.00744): its ``.pth`` checkpoint as a ``PreferenceReward``.

The checkpoint holds ``epoch``, ``rewardmodel_state_dict``, ``optimizer_state_dict`` and ``loss``.
The head was trained on LAION's 630k-audioset-best, whose audio BATON gave at 16 kHz as if it were
48 kHz: here the same weights hear clips at their true rate.

    reward = load_baton_head("2label.pth", zoo.load("clap-630k-audioset-best"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.importers.pickles import load_pickle_weights
from zoo.rewards.preference import PreferenceReward

KEY = "rewardmodel_state_dict"
_SHAPES = {"fc1.weight": 2, "fc1.bias": 1, "fc2.weight": 2, "fc2.bias": 1}


def load_baton_head(path: str | Path, clap: Any) -> PreferenceReward:
    """A reward with the head of a checkpoint, frozen, on the CPU.

    Args:
        path: the checkpoint; nothing in it is run.
        clap: the CLAP that the head was trained on, as ``PreferenceReward`` takes it.

    Raises:
        FileNotFoundError: without the file.
        UserError: for a file that names code or is damaged, and for tensors that are missing,
            unknown, of another shape or not finite.
    """
    content = load_pickle_weights(path)
    state = content.get(KEY)
    if not isinstance(state, dict):
        raise UserError(
            f"{path} is not a checkpoint of BATON's reward head: {KEY} is missing (it has"
            f" {', '.join(map(str, content)) or 'nothing'})"
        )
    if set(state) != set(_SHAPES):
        wrong = sorted(set(map(str, state)) ^ set(_SHAPES))
        raise UserError(f"{path}: expected the tensors {', '.join(_SHAPES)}; differing: {wrong}")
    for name, dimensions in _SHAPES.items():
        value = state[name]
        if not isinstance(value, Tensor) or value.ndim != dimensions:
            raise UserError(f"{path}: {name} is not a tensor of {dimensions} dimensions")
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} holds numbers that are not finite; fetch it again")
    hidden, inputs = state["fc1.weight"].shape
    shapes = {"fc1.bias": (hidden,), "fc2.weight": (1, hidden), "fc2.bias": (1,)}
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, expected {shape}"
            )
    if inputs % 2:
        raise UserError(f"{path}: fc1.weight takes {inputs} numbers, expected two embeddings")
    reward = PreferenceReward(clap, embedding=inputs // 2, hidden=hidden, features="concat")
    reward.head.load_state_dict(state, strict=True)
    return reward.eval().requires_grad_(False)
