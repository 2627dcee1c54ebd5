"""A DDPO run of toys, for the tests of training."""

import lightning as L
import torch
from toys import Rounds, ToyBackbone, ToyReward

from lightning_modules.rl.ddpo import DDPO


def module(**changes) -> DDPO:
    settings = {
        "sample_steps": 5,
        "guidance_scale": 2.0,
        "sample_batch_size": 4,
        "train_batch_size": 4,
        "lora_rank": 2,
        "learning_rate": 1e-2,
        "clip_range": 0.1,
        "clip_reference_elements": None,
        "tracker_buffer_size": 8,
        "tracker_min_count": 4,
    }
    backbone, reward = (
        changes.pop("backbone", None) or ToyBackbone(),
        changes.pop("reward", None) or ToyReward(),
    )
    torch.manual_seed(0)  # the adapter's first factor
    return DDPO(backbone, reward, **{**settings, **changes})


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
        self.rounds, self.gradients = [], None

    def on_train_batch_end(self, trainer, *_) -> None:
        self.rounds.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_before_optimizer_step(self, trainer, ddpo, optimizer) -> None:
        if self.gradients is None:
            self.gradients = {name: p.grad.clone() for name, p in ddpo.trainable().items()}


def recorded(ddpo: DDPO, **changes) -> Recorder:
    recorder = Recorder()
    fitted(ddpo, callbacks=[recorder], **changes)
    return recorder
