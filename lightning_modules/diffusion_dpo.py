"""Learning from preference pairs: Diffusion-DPO (Tango 2) and CRPO (TangoFlux)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datamodules.batches import LatentPairBatch
from lightning_modules.denoising import Denoising
from lightning_modules.denoising_export import denoising_facts
from lightning_modules.latent_errors import latent_errors
from lightning_modules.preference_losses import pair_measures, preference_loss
from lightning_modules.reference import Reference
from lightning_modules.training_settings import (
    AdapterSettings,
    MemorySettings,
    ScheduleSettings,
    require_finite,
    require_not_negative,
    require_positive,
)
from zoo.backbones.lora import AdapterSwitch
from zoo.hub.run_facts import RunFacts
from zoo.types import Backbone


class DiffusionDPO(Denoising):
    """Prefers what was preferred: of two clips of a prompt the chosen one gets likelier.

    Winner and loser of a pair share one time and one noise, and the reference sees the same. The
    first ``sft_epochs`` learn the winners alone (``Denoising``), by the number of the epoch, so
    that all processes change over together. Where the data makes new clips every few epochs
    (``starts_iteration``), the weights of that moment become the reference: CRPO.

    Logged: ``train/implicit_accuracy``, the share of pairs that the policy prefers more than the
    reference does, and mean errors; of held-out pairs at fixed times and noise (``val/``).

    Args:
        backbone: is trained in place.
        optimizer: and its learning rate.
        beta: how little the policy may leave the reference; less lets it go further.
        winner_weight: of the winners' denoising error; 0: DPO, 1: CRPO.
        sft_epochs: epochs on the winners alone, before any preference.
        condition_dropout: share of pairs whose caption is emptied, for both of its clips.
        min_snr_gamma, min_snr_form: of the SFT epochs; preferences are not weighted by time.
        ema_decay: as in ``Denoising``.
        adapter: what learns. The reference of an adapter is the model without it; with rank 0 the
            whole denoiser learns, and the reference is a copy of it.
        memory: where encoders and codec are during training.
        seed: of times, noise and emptied captions.

    Raises:
        UserError: for settings out of range or that do not fit the backbone.
    """

    batch_types = (LatentPairBatch,)

    def __init__(
        self,
        backbone: Backbone,
        optimizer: ScheduleSettings = ScheduleSettings(learning_rate=1e-5),
        beta: float = 2000.0,
        winner_weight: float = 0.0,
        sft_epochs: int = 0,
        condition_dropout: float = 0.0,
        min_snr_gamma: float | None = None,
        min_snr_form: str = "prediction",
        ema_decay: float | None = None,
        adapter: AdapterSettings = AdapterSettings(),
        memory: MemorySettings = MemorySettings(),
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            optimizer,
            condition_dropout,
            min_snr_gamma,
            min_snr_form,
            ema_decay=ema_decay,
            adapter=adapter,
            memory=memory,
            seed=seed,
        )
        require_finite(self.hparams, "beta")
        require_positive(self.hparams, "beta")
        require_not_negative(self.hparams, "winner_weight", "sft_epochs")
        switch = AdapterSwitch.of(backbone) if adapter.rank else None
        self.reference = Reference(self.parameters_that_learn, switch)

    @classmethod
    def export_facts(cls, arguments: Mapping[str, Any]) -> RunFacts:
        return denoising_facts(cls, {"adapter": {}, **arguments})

    @property
    def is_sft(self) -> bool:
        """Whether this epoch learns from the winners alone."""
        return self.current_epoch < self.hparams.sft_epochs

    def _both_errors(self, batch: LatentPairBatch, time_P, prompts, noise) -> tuple[Tensor, Tensor]:
        """Errors (2P,) of policy and reference: winners, then losers, at shared times and noise."""
        clean = torch.cat([batch.chosen_BCT, batch.rejected_BCT]).float()
        place_P = torch.arange(len(batch), device=clean.device)
        rows = (torch.arange(len(clean), device=clean.device), place_P.repeat(2))
        shared = (time_P.repeat(2), torch.cat([noise, noise]), rows)
        with torch.no_grad(), self.reference():
            reference_R = latent_errors(self.backbone, clean, prompts, *shared)
        return latent_errors(self.backbone, clean, prompts, *shared), reference_R

    def training_step(self, batch: LatentPairBatch, batch_index: int) -> Tensor:
        if self.is_sft:
            return super().training_step(batch.chosen, batch_index)
        drawn = self.drawn(batch.prompts, batch.chosen_BCT.shape, f"preference/{batch_index}")
        error_R, reference_R = self._both_errors(batch, *drawn)
        beta = self.hparams.beta
        loss = preference_loss(error_R, reference_R, beta, self.hparams.winner_weight)
        values = pair_measures(error_R.detach(), reference_R, beta)
        self.log_dict({f"train/{k}": v for k, v in values.items()}, batch_size=len(batch))
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: LatentPairBatch, batch_index: int) -> None:
        count = len(batch)
        generator = torch.Generator().manual_seed(batch_index)
        noise = torch.randn(batch.chosen_BCT.shape, generator=generator).to(self.device)
        place_P = (torch.arange(count, device=self.device) + 0.5) / count
        time_P = self.backbone.path.sample_times(place_P)
        with self.averaged():
            errors = self._both_errors(batch, time_P, list(batch.prompts), noise)
        values = pair_measures(*errors, self.hparams.beta)
        self.log_dict({f"val/{k}": v for k, v in values.items()}, batch_size=count, sync_dist=True)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.reference.to(self.device)

    def on_train_epoch_start(self) -> None:
        starts = getattr(self.trainer.datamodule, "starts_iteration", None)
        if starts is not None and starts(self.current_epoch):
            self.reference.renew()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference"] = self.reference.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.reference.load(checkpoint["reference"])
