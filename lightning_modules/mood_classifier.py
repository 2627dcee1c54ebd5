"""Trains the mood classifier of ``EmotionReward``, hardened against generated audio.

A classifier that has only heard clean recordings is easy to fool: it is confident about decoded
noise. Training batches are therefore degraded (noise, low-pass, gain, time shift) and, if a
backbone is given, sent through its codec with noise on the latents, which resembles generations.

Shapes: ``BN`` mono clips, ``BCN`` clips as they come, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.batches import AudioBatch
from lightning_modules.degradations import add_noise, codec_round_trip, crop, low_pass
from lightning_modules.random_state import random_state, set_random_state
from lightning_modules.training_settings import (
    MOVED_DEGRADATIONS,
    ON_CARD,
    Degradations,
    card_settings,
    require_choice,
    require_not_negative,
    require_range,
    require_share,
)
from zoo.errors import UserError, did_you_mean
from zoo.hub.run_facts import RunFacts
from zoo.rewards.mood import EmotionReward
from zoo.statistics.intervals import wilson_interval
from zoo.types import Backbone

LOSSES = ("cross_entropy", "softmax_of_sigmoids")
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def emotion_loss(logits_BK: Tensor, target_B: Tensor, loss: str) -> Tensor:
    """Mean loss in nats.

    ``cross_entropy``: of the logits. ``softmax_of_sigmoids``: cross-entropy of sigmoid outputs as
    if they were logits, as in the released EMOPIA training; with 4 classes it is at least
    ln(1 + 3/e) = 0.744.
    """
    return functional.cross_entropy(
        logits_BK if loss == "cross_entropy" else logits_BK.sigmoid(), target_B
    )


@dataclass(frozen=True)
class ClassificationReport:
    """Test accuracy both ways, each with a 95 % Wilson interval over clips.

    ``chunk_share``: mean over clips of the share of right chunks (the figure of the EMOPIA paper).
    ``clip_vote``: share of clips whose mean probability is highest at the right class. ``recall``:
    clip vote per class.
    """

    clips: int
    chunk_share: float
    chunk_share_interval: tuple[float, float]
    clip_vote: float
    clip_vote_interval: tuple[float, float]
    recall: dict[str, float]


def classification_report(
    chunk_share_B: Tensor, right_B: Tensor, target_B: Tensor, class_names: Sequence[str]
) -> ClassificationReport:
    """From one row per clip: share of right chunks, whether the vote was right, true class."""
    count = len(target_B)
    share = float(chunk_share_B.double().mean())
    right = int(right_B.sum())
    recall = {
        name: float(right_B[target_B == index].double().mean())
        for index, name in enumerate(class_names)
        if (target_B == index).any()
    }
    return ClassificationReport(
        count,
        share,
        wilson_interval(share * count, count),
        right / count,
        wilson_interval(right, count),
        recall,
    )


@dataclass(frozen=True)
class ClassifierOptimizer:
    """How the classifier's weights follow their gradients.

    Args:
        name: "adamw", or "adam", whose ``weight_decay`` is an L2 term of the gradient, as EMOPIA's.
        learning_rate: constant, unless one of the next two is given.
        total_steps: the rate falls along a cosine over so many optimiser steps.
        restart_epochs: the rate falls to zero along a cosine over so many epochs, again and again
            (Loshchilov and Hutter 2017, arXiv 1608.03983).
        weight_decay: of all weights.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    total_steps: int | None = None
    restart_epochs: int | None = None
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        require_choice(self, "name", OPTIMIZERS)
        require_not_negative(self, "learning_rate", "weight_decay")
        if self.total_steps is not None and self.restart_epochs is not None:
            raise UserError(
                "total_steps and restart_epochs are two schedules; leave one of them null"
            )


@dataclass(frozen=True)
class EmotionDegradations(Degradations):
    """What training does to recordings. A chunk also starts anywhere in its clip.

    Args:
        gain_db: the level of a chunk changes by at most this, up or down.
        low_pass_share: share of a batch that gets a low-pass filter.
        low_pass_hz: range of its cutoff, drawn on a log scale.
    """

    noise_share: float = 0.3
    codec_share: float = 0.5
    gain_db: float = 6.0
    low_pass_share: float = 0.3
    low_pass_hz: tuple[float, float] = (1500.0, 7500.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "low_pass_share")
        require_range(self, "low_pass_hz")


class Emotion(L.LightningModule):
    """Trains ``reward.classifier`` on ``AudioBatch`` whose prompts carry the mood in their labels.

    A resumed run ends with the weights of one that was never stopped, on one device.

    Args:
        reward: is trained in place.
        loss: see ``emotion_loss``. There is no label smoothing, because the reward needs calibrated
            probabilities.
        optimizer: and its learning rate.
        keep_best: after fitting the weights are those of the epoch with the highest
            ``val/accuracy`` (the first of equals).
        degradations: of the training clips.
        codec: a backbone, whose codec some clips go through. It is neither trained nor saved.

    Raises:
        UserError: for an unknown loss, and for one that does not suit the reward's activation.
    """

    MOVED_SETTINGS = {
        "optimizer": "optimizer.name",
        "learning_rate": "optimizer.learning_rate",
        "weight_decay": "optimizer.weight_decay",
        "total_steps": "optimizer.total_steps",
        "restart_epochs": "optimizer.restart_epochs",
        **MOVED_DEGRADATIONS,
        "gain_db": "degradations.gain_db",
        "low_pass_share": "degradations.low_pass_share",
        "low_pass_hz": "degradations.low_pass_hz",
    }
    batch_types = (AudioBatch,)

    def __init__(
        self,
        reward: EmotionReward,
        loss: str = "cross_entropy",
        optimizer: ClassifierOptimizer = ClassifierOptimizer(),
        keep_best: bool = False,
        degradations: EmotionDegradations = EmotionDegradations(),
        codec: Backbone | None = None,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise UserError(f"invalid loss {loss!r}; {did_you_mean(loss, LOSSES)}")
        activation = "sigmoid" if loss == "softmax_of_sigmoids" else "softmax"
        if reward.activation != activation:
            raise UserError(
                f"loss {loss!r} trains {activation} outputs; give the reward"
                f" activation={activation!r}"
            )
        self.save_hyperparameters(
            {
                "loss": loss,
                "optimizer": asdict(optimizer),
                "keep_best": keep_best,
                "degradations": asdict(degradations),
            }
        )
        self.optimizer = optimizer
        self.degradations = degradations
        self.reward = reward
        self._codec = (codec,)  # in a tuple: not a submodule, so neither trained nor saved
        self.report: ClassificationReport | None = None
        self._split = "val"  # that ``report`` is of
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._best: dict[str, Any] | None = (
            None  # accuracy, epoch, report and classifier of the best epoch so far
        )
        self._saved_random_state: dict[str, Any] | None = None

    @classmethod
    def export_facts(cls, arguments: Mapping[str, Any]) -> RunFacts:
        """What a run with these ``arguments`` states about itself."""
        return RunFacts(cls.__name__, settings=card_settings(arguments, *ON_CARD))

    def setup(self, stage: str) -> None:
        if isinstance(self._codec[0], torch.nn.Module):
            self._codec[0].to(self.device).eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        self.reward.set_train_mode()

    def on_train_start(self) -> None:
        if self._saved_random_state is not None and self.trainer.world_size == 1:
            set_random_state(self._saved_random_state)
        self._saved_random_state = None

    def on_train_epoch_start(self) -> None:
        self.on_fit_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["emotion"] = {"best": self._best, "random_state": random_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("emotion", {})
        self._best = state.get("best")
        self._saved_random_state = state.get("random_state")

    def on_fit_end(self) -> None:
        self.reward.eval()
        if self._best is not None:
            self.reward.classifier.load_state_dict(self._best["classifier"])
            self.report = ClassificationReport(**self._best["report"])
            self._split = "val"

    def training_step(self, batch: AudioBatch, batch_index: int) -> Tensor:
        target_B = self.reward.wanted_classes(batch.prompts).to(batch.wave_BCN.device)
        logits_BK = self.reward.classifier(self._training_chunks(batch))
        loss = emotion_loss(logits_BK, target_B, self.hparams.loss)
        accuracy = (logits_BK.argmax(dim=1) == target_B).float().mean()
        self.log_dict(
            {"train/loss": loss, "train/accuracy": accuracy}, batch_size=len(batch), prog_bar=True
        )
        return loss

    def _training_chunks(self, batch: AudioBatch) -> Tensor:
        """(B, chunk): one degraded chunk of every clip."""
        h = self.degradations
        device = batch.wave_BCN.device

        def drawn(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(len(batch), device=device)

        mono_BN = self.reward.prepare(batch.wave_BCN, batch.sample_rate_hz)
        codec = self._codec[0]
        through_codec = round(h.codec_share * len(batch))
        if codec is not None and through_codec:
            rows = torch.randperm(len(batch), device=device)[:through_codec]
            scale = h.codec_latent_noise * torch.rand(through_codec, device=device)
            tripped = codec_round_trip(codec, batch.wave_BCN[rows], batch.sample_rate_hz, scale)
            tripped = self.reward.prepare(tripped, codec.sample_rate_hz)
            length = min(tripped.shape[1], mono_BN.shape[1])
            mono_BN = mono_BN[:, :length].clone()
            mono_BN[rows] = tripped[:, :length]
        noisy = add_noise(mono_BN, torch.randn_like(mono_BN), drawn(*h.snr_db))
        mono_BN = torch.where((drawn(0, 1) < h.noise_share).unsqueeze(1), noisy, mono_BN)
        low, high = (torch.tensor(float(edge)).log().item() for edge in h.low_pass_hz)
        dull = low_pass(mono_BN, drawn(low, high).exp(), self.reward.sample_rate_hz)
        mono_BN = torch.where((drawn(0, 1) < h.low_pass_share).unsqueeze(1), dull, mono_BN)
        chunk = self.reward.chunk_samples
        start_B = (
            torch.rand(len(batch), device=device) * (max(0, mono_BN.shape[1] - chunk) + 1)
        ).long()
        return crop(mono_BN, start_B, chunk) * 10 ** (drawn(-h.gain_db, h.gain_db) / 20).unsqueeze(
            1
        )

    def _evaluate(self, batch: AudioBatch, name: str) -> None:
        target_B = self.reward.wanted_classes(batch.prompts).to(batch.wave_BCN.device)
        logits = self.reward.chunk_logits(batch.wave_BCN, batch.sample_rate_hz)
        loss = emotion_loss(
            logits.flatten(0, 1), target_B.repeat_interleave(logits.shape[1]), self.hparams.loss
        )
        self.log(
            f"{name}/loss", loss, batch_size=len(batch), prog_bar=name == "val", sync_dist=True
        )
        vote = self.reward.probabilities(logits).mean(dim=1).argmax(dim=1)
        share_B = (logits.argmax(dim=2) == target_B.unsqueeze(1)).float().mean(dim=1)
        self._rows.append((share_B, vote == target_B, target_B))

    def _finish(self, name: str) -> None:
        rows = [torch.cat(column) for column in zip(*self._rows)]
        self._rows = []
        share_B, right_B, target_B = (self.all_gather(column).flatten().cpu() for column in rows)
        self.report = classification_report(share_B, right_B, target_B, self.reward.class_names)
        self._split = name
        values = {
            f"{name}/accuracy": self.report.clip_vote,
            f"{name}/accuracy_low": self.report.clip_vote_interval[0],
            f"{name}/accuracy_high": self.report.clip_vote_interval[1],
            f"{name}/accuracy_chunks": self.report.chunk_share,
            f"{name}/accuracy_chunks_low": self.report.chunk_share_interval[0],
            f"{name}/accuracy_chunks_high": self.report.chunk_share_interval[1],
            **{f"{name}/recall_{mood}": value for mood, value in self.report.recall.items()},
        }
        self.log_dict(
            values, sync_dist=True
        )  # the same on every process; a stopping rule reads them on every process

    def validation_step(self, batch: AudioBatch, batch_index: int) -> None:
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self._finish("val")
        accuracy = self.report.clip_vote
        if self.hparams.keep_best and not self.trainer.sanity_checking:
            if self._best is None or accuracy > self._best["accuracy"]:
                classifier = {
                    name: value.detach().cpu().clone()
                    for name, value in self.reward.classifier.state_dict().items()
                }
                facts = {
                    "accuracy": accuracy,
                    "epoch": self.current_epoch,
                    "report": asdict(self.report),
                }
                self._best = {**facts, "classifier": classifier}

    def test_step(self, batch: AudioBatch, batch_index: int) -> None:
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def configure_optimizers(self):
        h = self.optimizer
        schedules = torch.optim.lr_scheduler
        parameters = self.reward.classifier.parameters()
        optimizer = OPTIMIZERS[h.name](parameters, lr=h.learning_rate, weight_decay=h.weight_decay)
        if h.restart_epochs is not None:
            schedule = schedules.CosineAnnealingWarmRestarts(optimizer, h.restart_epochs)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "epoch"},
            }
        if h.total_steps is None:
            return optimizer
        schedule = schedules.CosineAnnealingLR(
            optimizer, h.total_steps, eta_min=0.01 * h.learning_rate
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, out_dir: str | Path) -> None:
        """Writes the reward to ``out_dir``/model for ``zoo.load``, in half precision."""
        from zoo.hub.artifact import save_artifact

        facts = (
            {}
            if self.report is None
            else {"evaluation": {"split": self._split, **asdict(self.report)}}
        )
        save_artifact(
            Path(out_dir) / "model",
            kind="reward",
            architecture="emotion",
            arguments=self.reward.arguments,
            module=self.reward,
            dtype=torch.float16,
            **facts,
        )
