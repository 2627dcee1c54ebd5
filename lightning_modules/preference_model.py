"""Trains the head of ``PreferenceReward`` on people's labels, and says what it is worth.

The CLAP is frozen: its embeddings are computed once and kept on disk, so that training is a matter
of seconds and needs no audio again (``zoo/rewards/clap_features.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional

from datamodules.batches import PreferenceBatch, RatedClip, RatedClipSource
from lightning_modules.preference_losses import (
    absolute_loss,
    bradley_terry_loss_each,
    pairwise_loss_each,
    preference_probability,
)
from lightning_modules.preference_report import PreferenceReport, fitted_line, preference_report
from lightning_modules.random_state import random_state, set_random_state
from lightning_modules.training_settings import (
    card_settings,
    require_choice,
    require_not_negative,
    require_positive,
)
from zoo.errors import UserError
from zoo.hub.run_facts import RunFacts
from zoo.rewards.clap_features import ClapFeatures, clap_features
from zoo.rewards.preference import PreferenceReward

LOSSES = ("absolute", "pairwise", "bradley_terry")
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class HeadOptimizer:
    """How the head's weights follow their gradients.

    Args:
        name: "adam", whose ``weight_decay`` is an L2 term of the gradient (as BATON), or "adamw".
        learning_rate: constant.
        weight_decay: of all weights of the head.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        require_choice(self, "name", OPTIMIZERS)
        require_not_negative(self, "learning_rate", "weight_decay")

    def built(self, parameters: Any) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.name](
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class CosinePretraining:
    """Before the labels: the head learns to say what the CLAP's cosine says.

    Half of its examples are training clips with their captions, half with those of others; the
    pseudo-label is the sigmoid of the standardised cosine.

    Args:
        steps: optimiser steps; 0 leaves it out.
        batch_size: examples per step.
        learning_rate: of Adam.
    """

    steps: int = 0
    batch_size: int = 256
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require_not_negative(self, "steps", "learning_rate")
        require_positive(self, "batch_size")


@dataclass(frozen=True)
class FeatureSettings:
    """Where embeddings are kept, and what becomes of files that cannot be read.

    Args:
        cache_dir: a folder for the embeddings of one CLAP; None computes them in every run.
        unreadable: "raise" stops the run and names the files; "skip" leaves them out and names
            them.
    """

    cache_dir: str | None = None
    unreadable: Literal["raise", "skip"] = "raise"


class Preference(L.LightningModule):
    """Trains ``reward.head`` on ``PreferenceBatch``; its CLAP stays as it is.

    On one process. A resumed run ends with the weights of one that was never stopped.

    Args:
        reward: its head is trained in place.
        loss: "absolute": binary cross-entropy of each clip. "pairwise": BATON's, of the better and
            the worse clip of a pair. "bradley_terry": of their difference alone; its scores order
            clips but are no probabilities. The last two need data with ``batches: pairs``.
        optimizer: and its learning rate.
        pretraining: on the cosine, before the labels.
        features: the cache of embeddings.
        keep_best: after fitting the head is that of the epoch with the lowest ``val/loss`` (the
            first of equals), else that of the last one.

    Raises:
        UserError: for an unknown loss.
    """

    batch_types = (PreferenceBatch,)

    def __init__(
        self,
        reward: PreferenceReward,
        loss: str = "absolute",
        optimizer: HeadOptimizer = HeadOptimizer(),
        pretraining: CosinePretraining = CosinePretraining(),
        features: FeatureSettings = FeatureSettings(),
        keep_best: bool = True,
    ) -> None:
        super().__init__()
        self.loss = loss
        require_choice(self, "loss", LOSSES)
        self.save_hyperparameters(
            {
                "loss": loss,
                "optimizer": asdict(optimizer),
                "pretraining": asdict(pretraining),
                "keep_best": keep_best,
            }
        )
        self._reward = (reward,)  # in a tuple: checkpoints hold the head and not the CLAP
        self.head = reward.head.requires_grad_(True)
        self.optimizer = optimizer
        self.pretraining = pretraining
        self.feature_settings = features
        self.keep_best = keep_best
        self.report: PreferenceReport | None = None
        self._split = "val"  # that ``report`` is of
        self._embeddings: ClapFeatures | None = None
        # slope and offset of the cosine's line, and the mean label of training
        self._from_train: tuple[float, float, float] | None = None
        self._best: dict[str, Any] | None = None  # loss, epoch and head of the best epoch so far
        self._saved_random_state: dict[str, Any] | None = None

    @property
    def reward(self) -> PreferenceReward:
        return self._reward[0]

    @classmethod
    def export_facts(cls, arguments: Mapping[str, Any]) -> RunFacts:
        """What a run with these ``arguments`` states about itself."""
        keys = ("loss", "optimizer.name", "optimizer.learning_rate", "optimizer.weight_decay")
        return RunFacts(
            cls.__name__,
            learned=("head",),
            checkpoint="learned",
            settings=card_settings(arguments, *keys, "pretraining.steps"),
        )

    def check_first_round(self, data: RatedClipSource) -> None:
        """Raises ``UserError`` where the loss compares clips and the data does not, or reversed."""
        needs_pairs = self.loss != "absolute"
        if needs_pairs != data.has_pairs:
            batches = "pairs" if needs_pairs else "clips"
            raise UserError(
                f"module.loss={self.loss} learns from {batches}; set data.batches={batches}"
            )

    def setup(self, stage: str) -> None:
        """Embeds all clips and captions of the data, or reads them from the cache.

        Raises ``UserError`` for several processes, files that cannot be read, a clip that is in two
        splits under different names, and a CLAP of another size than the head.
        """
        if self.trainer.world_size > 1:
            raise UserError(
                "a head trains on one process, in seconds; set trainer.devices=1"
                " trainer.num_nodes=1"
            )
        if self._embeddings is None:
            self._embed(self.trainer.datamodule)

    def _embed(self, data: RatedClipSource) -> None:
        clips = [clip for own in data.splits.values() for clip in own]
        if self.head.rows and all(clip.listener is None for clip in clips):
            raise UserError(
                f"module.reward.listeners names {len(self.head.rows)}, and no label is of a single"
                " listener; set data.source.listeners=true, or leave the names out"
            )
        # the module itself is moved there after ``setup``
        clap = self.reward.clap.to(self.trainer.strategy.root_device)
        texts = list(dict.fromkeys(clip.prompt for clip in clips))
        self._refuse_texts(texts)
        with Progress(transient=True) as shown:
            task = shown.add_task("embedding clips", total=None)
            found = clap_features(
                clap,
                [clip.audio for clip in clips],
                texts,
                self.feature_settings.cache_dir,
                lambda done, total: shown.update(task, completed=done, total=total),
            )
        clap.to("cpu")
        if found.refused:
            first = "; ".join(list(found.refused.values())[:5])
            said = f"{len(found.refused)} of {len(clips)} clips cannot be read: {first}"
            if self.feature_settings.unreadable == "raise":
                raise UserError(
                    f"{said}. Replace them, or leave them out with module.features.unreadable=skip"
                )
            rank_zero_warn(f"left out, {said}")
            data.drop_clips(found.refused)
        _refuse_copies(data, found)
        width = len(next(iter(found.audio.values())))
        if width != self.head.embedding:
            raise UserError(
                f"the CLAP {self.reward.clap.name} gives embeddings of {width} numbers; set"
                f" module.reward.embedding={width}"
            )
        self._embeddings = found

    def _refuse_texts(self, texts: Sequence[str]) -> None:
        from zoo.types import Prompt

        refused = self.reward.too_long([Prompt(text, text) for text in texts])
        if refused:
            why = next(iter(refused.values()))
            raise UserError(
                f"{len(refused)} of {len(texts)} prompts are refused; {why}; shorten these or"
                " leave their clips out"
            )

    def embeddings_of(self, clips: Sequence[RatedClip]) -> tuple[Tensor, Tensor]:
        """(audio (B, E), text (B, E)) of clips that were in the data at ``setup``."""
        found = self._embeddings
        audio_BE = torch.stack([found.audio[clip.audio] for clip in clips])
        text_BE = torch.stack([found.text[clip.prompt] for clip in clips])
        return audio_BE.to(self.device), text_BE.to(self.device)

    def _logits(self, clips: Sequence[RatedClip]) -> Tensor:
        return self.head(*self.embeddings_of(clips), [clip.listener for clip in clips])

    def _labels(self, clips: Sequence[RatedClip]) -> Tensor:
        return torch.tensor([clip.label for clip in clips], device=self.device)

    def batch_loss(self, batch: PreferenceBatch) -> Tensor:
        """The mean loss of a batch, by ``loss``."""
        logit_B = self._logits(batch.clips)
        label_B = self._labels(batch.clips)
        if self.loss == "absolute":
            return absolute_loss(logit_B, label_B)
        better_P, worse_P = torch.tensor(batch.pairs, device=self.device).T
        if self.loss == "pairwise":
            each = pairwise_loss_each(
                logit_B[better_P], logit_B[worse_P], label_B[better_P], label_B[worse_P]
            )
        else:
            preferred_P = preference_probability(label_B[better_P], label_B[worse_P])
            each = bradley_terry_loss_each(logit_B[better_P], logit_B[worse_P], preferred_P)
        return each.mean()

    def on_fit_start(self) -> None:
        self.head.train()

    def on_train_start(self) -> None:
        if self._saved_random_state is not None:
            set_random_state(self._saved_random_state)
        elif self.global_step == 0:
            self.pretrain(self.trainer.datamodule.splits["train"])
        self._saved_random_state = None

    def pretrain(self, clips: Sequence[RatedClip]) -> None:
        """Trains the head on the cosine of ``clips`` (see ``CosinePretraining``)."""
        settings = self.pretraining
        audio_NE, text_NE = self.embeddings_of(clips)
        optimizer = torch.optim.Adam(self.head.parameters(), lr=settings.learning_rate)
        own_N = (audio_NE * text_NE).sum(dim=1)
        others_N = (audio_NE * text_NE.roll(1, dims=0)).sum(dim=1)
        both = torch.cat([own_N, others_N])
        centre = both.mean()
        scale = both.std(correction=0).clamp_min(1e-6)
        self.head.train()
        with torch.enable_grad():
            for _ in range(settings.steps):
                row_B = torch.randint(len(clips), (settings.batch_size,))
                other_B = torch.randint(len(clips), (settings.batch_size,))
                text_B = torch.where(torch.rand(settings.batch_size) < 0.5, row_B, other_B)
                audio_BE = audio_NE[row_B]
                text_BE = text_NE[text_B]
                target_B = (((audio_BE * text_BE).sum(dim=1) - centre) / scale).sigmoid()
                loss = functional.binary_cross_entropy_with_logits(
                    self.head(audio_BE, text_BE), target_B
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def on_train_epoch_start(self) -> None:
        self.head.train()

    def training_step(self, batch: PreferenceBatch, batch_index: int) -> Tensor:
        loss = self.batch_loss(batch)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step}; lower"
                " module.optimizer.learning_rate"
            )
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: PreferenceBatch, batch_index: int) -> None:
        loss = float(self.batch_loss(batch))
        values = {"val/loss": loss, **self._quick(batch.clips)}
        self.log_dict(values, batch_size=len(batch), prog_bar=True)
        if self.trainer.sanity_checking or not self.keep_best:
            return
        if self._best is None or loss < self._best["loss"]:
            head = {
                name: value.detach().cpu().clone() for name, value in self.head.state_dict().items()
            }
            self._best = {"loss": loss, "epoch": self.current_epoch, "head": head}

    def _quick(self, clips: Sequence[RatedClip]) -> dict[str, float]:
        """The head's own figures of an epoch, without intervals of the slow kind."""
        found = preference_report(self.judges(clips), clips, draws=2).judges["head"]
        return {
            f"val/{name}": found[name].value
            for name in ("accuracy", "auc", "ranking", "best_of_n_gain")
            if name in found
        }

    @torch.no_grad()
    def judges(self, clips: Sequence[RatedClip]) -> dict[str, Tensor]:
        """Probabilities (N,) of the head, of the cosine and of the majority.

        The last two know the labels of the training clips only.
        """
        was_training = self.head.training
        self.head.eval()
        head_N = self._logits(clips).sigmoid()
        self.head.train(was_training)
        if self._from_train is None:
            train = self.trainer.datamodule.splits["train"]
            label_M = self._labels(train)
            line = fitted_line(self._cosines(train).cpu(), label_M.cpu())
            self._from_train = (*line, float(label_M.mean()))
        slope, offset, mean_label = self._from_train
        majority_N = torch.full_like(head_N, mean_label)
        cosine_N = (self._cosines(clips).double() * slope + offset).sigmoid()
        return {"head": head_N, "cosine": cosine_N, "majority": majority_N}

    def _cosines(self, clips: Sequence[RatedClip]) -> Tensor:
        audio_NE, text_NE = self.embeddings_of(clips)
        return (audio_NE * text_NE).sum(dim=1)

    def on_fit_end(self) -> None:
        if self._best is not None:
            self.head.load_state_dict(self._best["head"])
        self.head.eval()
        clips = self.trainer.datamodule.splits["val"]
        self._finish("val", clips)

    def test_step(self, batch: PreferenceBatch, batch_index: int) -> None:
        self._finish("test", batch.clips)
        self.log_dict(
            {f"test/{name}": value for name, value in self.report.metrics().items()},
            batch_size=len(batch),
        )

    def _finish(self, split: str, clips: Sequence[RatedClip]) -> None:
        self.report = preference_report(self.judges(clips), clips)
        self._split = split

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["preference"] = {"best": self._best, "random_state": random_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("preference", {})
        self._best = state.get("best")
        self._saved_random_state = state.get("random_state")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer.built(self.head.parameters())

    def export(self, out_dir: str | Path) -> None:
        """Writes the reward, CLAP included, to ``out_dir``/model for ``zoo.load``.

        Prints the report, which its config.json holds too.
        """
        from zoo.hub.artifact import identity_of, save_artifact

        facts = {}
        if self.report is not None:
            facts["evaluation"] = {"split": self._split, **asdict(self.report)}
            print(f"{self._split}: {self.report.table()}", flush=True)
        kind, architecture, arguments = identity_of(self.reward)
        save_artifact(
            Path(out_dir) / "model",
            kind=kind,
            architecture=architecture,
            arguments=arguments,
            module=self.reward.cpu().eval(),
            **facts,
        )


def _refuse_copies(data: RatedClipSource, found: ClapFeatures) -> None:
    """Raises ``UserError`` for equal files in two splits, whatever their names."""
    home: dict[str, tuple[str, Path]] = {}
    for split, clips in data.splits.items():
        for clip in clips:
            other, path = home.setdefault(found.content[clip.audio], (split, clip.audio))
            if other != split:
                raise UserError(
                    f"{clip.audio} in the split {split} is a copy of {path} in {other}; a clip"
                    " belongs to one split"
                )
