"""Learning from clean audio: pre-training, fine-tuning, reward-weighted likelihood (BATON)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.batches import AudioBatch, LatentBatch
from lightning_modules.ema import EMA, AveragedWeights
from lightning_modules.latent_errors import (
    error_weights,
    latent_errors,
    pair_margins,
    weighted_mean,
)
from lightning_modules.schedules import adamw_with_cosine
from lightning_modules.training_settings import (
    MOVED_OPTIMIZER,
    ON_CARD,
    CosineSettings,
    card_settings,
)
from zoo.diffusion import noise_generator
from zoo.errors import UserError, did_you_mean
from zoo.hub.run_facts import RunFacts
from zoo.types import Backbone

TRAINABLE = ("denoiser", "text", "duration", "spatial")  # parts that learn by default


class Denoising(AveragedWeights):
    """Minimises the weighted denoising error of a backbone's network.

    Ho et al. 2020, eq. 14; v prediction: Salimans and Ho 2022.

    Times, noise and emptied captions depend on ``seed``, the step and the process only, so that a
    run resumed at the end of an epoch continues exactly. Validation uses averaged weights and fixed
    noise. It also measures every clip under the next clip's caption (``val/error_shuffled``): a
    model that listens has the lower error under the clip's own (``val/own_caption_better``).

    Args:
        backbone: is trained in place.
        optimizer: and its learning rate.
        condition_dropout: share of samples whose caption is emptied, so that guidance has an
            unconditional side.
        min_snr_gamma: weighs times as arXiv 2303.09556 does; None: the plain error. The weights of
            a batch (``weight_B``) multiply its errors in any case.
        ema_decay: of the averaged weights that are validated and exported.
        trainable: names of the backbone's parts that learn.
        seed: of times, noise and emptied captions.

    Raises:
        UserError: for unknown parts, and for audio at another rate than the backbone's.
    """

    MOVED_SETTINGS = MOVED_OPTIMIZER
    batch_types = (AudioBatch, LatentBatch)

    def __init__(
        self,
        backbone: Backbone,
        optimizer: CosineSettings = CosineSettings(total_steps=10_000, warmup_steps=200),
        condition_dropout: float = 0.1,
        min_snr_gamma: float | None = None,
        ema_decay: float = 0.999,
        trainable: Sequence[str] = TRAINABLE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        trainable = tuple(trainable)  # a plain value in the checkpoint
        self.save_hyperparameters(ignore=["backbone", "optimizer"])
        self.save_hyperparameters({"optimizer": asdict(optimizer)})
        self.optimizer = optimizer
        if not 0 <= condition_dropout < 1:
            raise UserError(
                f"invalid condition_dropout {condition_dropout}: expected a share >= 0 and < 1"
            )
        self.backbone = backbone
        backbone.requires_grad_(False)
        parts = dict(backbone.named_children())
        for name in trainable:
            if name not in parts:
                kind = type(backbone).__name__
                raise UserError(
                    f"trainable names {name!r}, which {kind} does not have;"
                    f" {did_you_mean(name, parts)}"
                )
            parts[name].requires_grad_(True)
        self.ema = EMA([p for p in backbone.parameters() if p.requires_grad], ema_decay)

    @classmethod
    def export_facts(cls, arguments: Mapping[str, Any]) -> RunFacts:
        """What a run with these ``arguments`` states about itself."""
        trainable = arguments.get("trainable", TRAINABLE)
        on_card = card_settings(arguments, *ON_CARD, "ema_decay")
        return RunFacts(cls.__name__, learned=tuple(trainable), settings=on_card)

    def _latents(self, batch: AudioBatch | LatentBatch) -> Tensor:
        if isinstance(batch, LatentBatch):
            return batch.latent_BCT.float()
        if batch.sample_rate_hz != self.backbone.sample_rate_hz:
            raise UserError(
                f"the data has {batch.sample_rate_hz} Hz, the backbone"
                f" {self.backbone.sample_rate_hz} Hz; set data.sample_rate_hz"
            )
        with torch.no_grad():
            return self.backbone.encode(batch.wave_BCN).float()

    def training_step(self, batch: AudioBatch | LatentBatch, batch_index: int) -> Tensor:
        clean = self._latents(batch)
        count = len(batch)
        generator = noise_generator(
            self.hparams.seed, self.global_step, f"denoising/{batch_index}", self.global_rank
        )
        # stratified times: one in each of B equal intervals, so that the loss is less noisy
        uniform = (
            torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
        ) / count
        time_B = self.backbone.path.sample_times(uniform.to(self.device))
        dropped = torch.rand(count, generator=generator) < self.hparams.condition_dropout
        prompts = [
            replace(p, text="", sources=()) if drop else p
            for p, drop in zip(batch.prompts, dropped, strict=True)
        ]
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        error_B = latent_errors(self.backbone, clean, prompts, time_B, noise)
        weight_B = error_weights(
            self.backbone.path, time_B, batch.weight_B, self.hparams.min_snr_gamma
        )
        loss = weighted_mean(error_B, weight_B)
        self.log("train/loss", loss, batch_size=count, prog_bar=True)
        return loss

    def validation_step(self, batch: AudioBatch | LatentBatch, batch_index: int) -> None:
        clean = self._latents(batch)
        count = len(batch)
        generator = torch.Generator().manual_seed(batch_index)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        place_B = torch.arange(count, device=self.device)
        time_B = self.backbone.path.sample_times((place_B + 0.5) / count)
        # every clip under its own caption, then under the next clip's
        rows = (place_B.repeat(2), torch.cat([place_B, place_B.roll(-1)]))
        with self.averaged():
            error_R = latent_errors(self.backbone, clean, batch.prompts, time_B, noise, rows)
        margin_B = pair_margins(error_R, place_B, place_B + count)
        self.log_dict(
            {
                "val/error": error_R[:count].mean(),
                "val/error_shuffled": error_R[count:].mean(),
                "val/own_caption_better": (margin_B > 0).float().mean(),
            },
            batch_size=count,
            sync_dist=True,
            prog_bar=True,
        )

    def configure_optimizers(self):
        found = adamw_with_cosine(self.ema.parameters, self.optimizer)
        self.follow(found["optimizer"])
        return found

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        self.clip_gradients(optimizer, self.optimizer.max_grad_norm, "norm")

    def export(self, out_dir: str | Path) -> None:
        """Writes the backbone with averaged weights to ``out_dir``/model, in half precision.

        A backbone from outside (no row of ``zoo.backbones.BACKBONES``) has no artefact form: its
        weights are written as ``backbone.safetensors``, and the run's config.yaml says how to build
        it (``zoo.open_model(out_dir)``).
        """
        from zoo.backbones import BACKBONES
        from zoo.hub.artifact import save_artifact, save_weights

        here = f"{type(self.backbone).__module__}:{type(self.backbone).__name__}"
        architecture = next((key for key, place in BACKBONES.items() if place == here), None)
        with self.averaged():
            if architecture is None or not hasattr(self.backbone, "arguments"):
                save_weights(self.backbone.state_dict(), Path(out_dir) / "backbone.safetensors")
                return
            save_artifact(
                Path(out_dir) / "model",
                kind="backbone",
                architecture=architecture,
                arguments=self.backbone.arguments,
                module=self.backbone,
                dtype=torch.float16,
            )
