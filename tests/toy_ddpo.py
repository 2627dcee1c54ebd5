"""A DDPO run of toys, for the tests of training."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from toys import Rounds, ToyBackbone, ToyReward

from lightning_modules.rl import round_scores
from lightning_modules.rl.advantages import PromptTracker
from lightning_modules.rl.ddpo import DDPO

NODES = {
    name: type(parameter.default)
    for name, parameter in inspect.signature(DDPO).parameters.items()
    if dataclasses.is_dataclass(parameter.default)
}
SMALL = {
    "sampler.steps": 5,
    "sampler.guidance_scale": 2.0,
    "sampler.batch_size": 4,
    "update.batch_size": 4,
    "update.clip_range": 0.1,
    "update.clip_reference_elements": None,
    "advantages.buffer_size": 8,
    "advantages.min_count": 4,
    "adapter.rank": 2,
    "optimizer.learning_rate": 1e-2,
}


def settings(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``DDPO`` from dotted settings (``update.clip_range``) and other arguments."""
    nodes: dict[str, dict[str, Any]] = {}
    found = {}
    for key, value in changes.items():
        node, _, name = key.partition(".")
        if name:
            nodes.setdefault(node, {})[name] = value
        else:
            found[key] = value
    return found | {node: NODES[node](**values) for node, values in nodes.items()}


def module(changes: Mapping[str, Any] | None = None, **more: Any) -> DDPO:
    """A small DDPO; ``changes`` and ``more`` are dotted settings, ``backbone``, ``reward`` ..."""
    given = settings({**SMALL, **(changes or {}), **more})
    backbone = given.pop("backbone", None) or ToyBackbone()
    reward = given.pop("reward", None) or ToyReward()
    torch.manual_seed(0)  # the adapter's first factor
    return DDPO(backbone, reward, **given)


@dataclasses.dataclass(frozen=True)
class Judged:
    """What DDPO makes of a round's rewards."""

    advantage_B: torch.Tensor
    kept_B: list[bool]
    metrics: dict[str, float]


def judged(batch, samples, reward, kind: str, tracker: PromptTracker | None = None) -> Judged:
    scores = round_scores.round_scores(batch, samples, reward, drop_bad=False)
    advantage_G = round_scores.round_advantages(scores, kind, tracker or PromptTracker())
    return Judged(*round_scores.of_process(batch, scores, advantage_G), scores.metrics("mood"))


def trainer(epochs: int = 1, **changes) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(
        **{
            "max_epochs": epochs,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            **quiet,
            **changes,
        }
    )


def fitted(ddpo: DDPO, size: int = 8, epochs: int = 1, val=None, **changes) -> L.Trainer:
    run = trainer(epochs, **changes)
    run.fit(ddpo, Rounds(size), val, ckpt_path=None)
    return run


def weights(ddpo: DDPO) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in ddpo.trainable().items()}


class Recorder(L.Callback):
    """What each round logged, and the gradients just before the first optimiser step."""

    def __init__(self) -> None:
        self.rounds = []
        self.gradients = None

    def on_train_batch_end(self, trainer, *_) -> None:
        self.rounds.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_before_optimizer_step(self, trainer, ddpo, optimizer) -> None:
        if self.gradients is None:
            self.gradients = {name: p.grad.clone() for name, p in ddpo.trainable().items()}


def recorded(ddpo: DDPO, **changes) -> Recorder:
    recorder = Recorder()
    fitted(ddpo, callbacks=[recorder], **changes)
    return recorder
