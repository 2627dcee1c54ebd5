"""Training of the spectral codec (``zoo/backbones/spectral_codec.py``) on stereo audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from datamodules.batches import AudioBatch
from lightning_modules.schedules import scheduled_optimizer, steps_of_run
from lightning_modules.training_settings import (
    MOVED_OPTIMIZER,
    ON_CARD,
    ScheduleSettings,
    card_settings,
)
from zoo.backbones.spectral_codec import SpectralCodec
from zoo.diffusion import noise_generator
from zoo.errors import UserError
from zoo.hub.run_facts import RunFacts


def codec_losses(
    codec: SpectralCodec, wave_B2N: Tensor, noise_B: Tensor | None = None
) -> dict[str, Tensor]:
    """The terms of the loss, as scalars.

    Args:
        codec: whose losses they are.
        wave_B2N: stereo clips.
        noise_B: standard normal noise of the latents' shape; None: the posterior's mean is decoded.

    Returns:
        ``log_magnitude`` (mean absolute error, nats), ``convergence`` (relative Frobenius error of
        magnitudes, Arik et al. 2018 eq. 2), ``stereo`` (mean absolute error of level in nats and
        coherence, weighted by band energy) and ``kl`` (nats per latent element).
    """
    log_magnitude, stereo = codec.features(wave_B2N)
    mean, log_variance = codec.posterior(log_magnitude, stereo)
    latent = mean if noise_B is None else mean + torch.exp(0.5 * log_variance) * noise_B
    made_log, made_stereo = codec.features_of(latent)
    magnitude = torch.exp(log_magnitude)
    made = torch.exp(made_log.clamp(max=6))
    difference = (made - magnitude).square().sum(dim=(1, 2))
    band_energy = codec.pooling_KF @ magnitude
    weight = (band_energy / band_energy.mean(dim=(1, 2), keepdim=True)).clamp(max=4).repeat(1, 3, 1)
    return {
        "log_magnitude": (made_log - log_magnitude).abs().mean(),
        "convergence": (difference / magnitude.square().sum(dim=(1, 2))).sqrt().mean(),
        "stereo": ((made_stereo - stereo).abs() * weight).mean(),
        "kl": 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(),
    }


class Codec(L.LightningModule):
    """Trains a ``SpectralCodec``: log-magnitude, spectral convergence, stereo, and a small KL term.

    At the end of every epoch the mean and standard deviation of the latents are measured over the
    validation batches. The noise depends on ``seed``, the step and the process only, so that a run
    resumed at the end of an epoch continues exactly.

    Args:
        codec: is trained in place.
        optimizer: and its learning rate.
        kl_weight: nats per latent element; more makes latents smoother and loses detail.
        convergence_weight, stereo_weight: of the other terms, relative to log-magnitude.
        freeze_encoder: only the decoder learns, so that latents stay valid.
        seed: of the posterior's noise.
    """

    MOVED_SETTINGS = MOVED_OPTIMIZER
    batch_types = (AudioBatch,)

    def __init__(
        self,
        codec: SpectralCodec,
        optimizer: ScheduleSettings = ScheduleSettings(),
        kl_weight: float = 0.01,
        convergence_weight: float = 1.0,
        stereo_weight: float = 0.3,
        freeze_encoder: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["codec", "optimizer"])
        self.save_hyperparameters({"optimizer": asdict(optimizer)})
        self.optimizer = optimizer
        self.codec = codec
        if freeze_encoder:
            codec.encoder.requires_grad_(False)
            codec.to_latent.requires_grad_(False)

    @classmethod
    def export_facts(cls, arguments: Mapping[str, Any]) -> RunFacts:
        """What a run with these ``arguments`` states about itself."""
        return RunFacts(cls.__name__, settings=card_settings(arguments, *ON_CARD, "kl_weight"))

    def _loss(self, batch: AudioBatch, name: str, generator: torch.Generator | None) -> Tensor:
        if batch.sample_rate_hz != self.codec.sample_rate_hz:
            raise UserError(
                f"the data has {batch.sample_rate_hz} Hz, the codec {self.codec.sample_rate_hz} Hz;"
                " set data.sample_rate_hz"
            )
        if batch.wave_BCN.shape[1] != 2:
            raise UserError(
                f"the codec trains on stereo audio, got {batch.wave_BCN.shape[1]} channel(s); set"
                " channels to 2"
            )
        frames = -(-batch.wave_BCN.shape[-1] // self.codec.samples_per_latent)
        shape = (len(batch), len(self.codec.latent_mean_C), frames)
        noise_B = (
            None if generator is None else torch.randn(shape, generator=generator).to(self.device)
        )
        losses = codec_losses(self.codec, batch.wave_BCN, noise_B)
        h = self.hparams
        total = (
            losses["log_magnitude"]
            + h.convergence_weight * losses["convergence"]
            + h.stereo_weight * losses["stereo"]
        )
        if not h.freeze_encoder:
            total = total + h.kl_weight * losses["kl"]
        across = {"batch_size": len(batch), "sync_dist": name == "val"}
        self.log_dict({f"{name}/{key}": value for key, value in losses.items()}, **across)
        self.log(f"{name}/loss", total, prog_bar=True, **across)
        return total

    def training_step(self, batch: AudioBatch, batch_index: int) -> Tensor:
        generator = noise_generator(
            self.hparams.seed, self.global_step, f"codec/{batch_index}", self.global_rank
        )
        return self._loss(batch, "train", generator)

    def on_validation_epoch_start(self) -> None:
        self._latents: list[Tensor] = []

    def validation_step(self, batch: AudioBatch, batch_index: int) -> None:
        self._loss(batch, "val", None)
        self._latents.append(self.codec.posterior(*self.codec.features(batch.wave_BCN))[0])

    def on_validation_epoch_end(self) -> None:
        if self.hparams.freeze_encoder or self.trainer.sanity_checking:
            return
        latents = self.all_gather(torch.cat(self._latents)).flatten(0, -3)
        self.codec.latent_mean_C.copy_(latents.mean(dim=(0, 2)))
        self.codec.latent_std_C.copy_(latents.std(dim=(0, 2)).clamp(min=1e-3))

    def configure_optimizers(self):
        parameters = [p for p in self.codec.parameters() if p.requires_grad]
        return scheduled_optimizer(parameters, self.optimizer, steps_of_run(self.optimizer, self))

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        self.clip_gradients(optimizer, self.optimizer.max_grad_norm, "norm")

    def export(self, out_dir: str | Path) -> None:
        """Writes ``out_dir``/codec.safetensors (float32), for trainings of ``TinyAudio``."""
        from zoo.hub.artifact import save_weights

        save_weights(self.codec.state_dict(), Path(out_dir) / "codec.safetensors")
