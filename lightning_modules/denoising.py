"""Learning from clean audio: pre-training, fine-tuning, reward-weighted likelihood (BATON)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from datamodules.batches import AudioBatch, LatentBatch, PairedBatch
from lightning_modules.denoising_export import (
    best_state,
    checked_best,
    denoising_facts,
    same_base,
    write_model,
)
from lightning_modules.ema import EMA, AveragedWeights, holding
from lightning_modules.latent_errors import (
    error_weights,
    latent_errors,
    pair_margins,
    weighted_mean,
)
from lightning_modules.offload import move, put_text_encoders_away
from lightning_modules.schedules import scheduled_optimizer, steps_of_run
from lightning_modules.trainable import fill_learned, learned, learned_state, make_trainable
from lightning_modules.training_settings import (
    MOVED_OPTIMIZER,
    TRAINABLE,
    AdapterSettings,
    MemorySettings,
    ScheduleSettings,
    require_choice,
)
from zoo.diffusion import MIN_SNR_FORMS, noise_generator
from zoo.errors import UserError, did_you_mean
from zoo.types import Backbone, Prompt

Clean = AudioBatch | LatentBatch


class Denoising(AveragedWeights):
    """Minimises the weighted denoising error of a backbone's network.

    Ho et al. 2020, eq. 14; v prediction: Salimans and Ho 2022. The loss of a batch is ``mean(weight
    * error)``; of a ``PairedBatch`` it is ``mean(weight * error of the labelled samples) +
    pretrain_weight * mean(error of the pretraining samples)``, reward-weighted likelihood (BATON,
    arXiv 2402.00744). Samples of weight 0 are not computed.

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
        min_snr_form: "prediction", or "snr" as Tango's code (``zoo.diffusion.min_snr_weights``).
        pretrain_weight: of the pretraining stream, BATON's beta; 0: it is not computed.
        ema_decay: of averaged weights that are validated and exported; None: the weights as they
            are.
        trainable: names of the backbone's parts that learn, without an adapter.
        adapter: a LoRA adapter that learns instead (with rank 0: the whole denoiser).
            Checkpoints then hold what learns alone, and the export is ``adapter/`` (or
            ``denoiser.safetensors``).
        memory: where encoders and codec are during training; all clips must be encoded before.
        val_time: adds ``val/loss``, the error at this one place of the path (0.5: t = 500 of 1,000,
            as Tango), weighted by min-SNR; None: no such measure.
        keep_best: exports the weights of the epoch with the lowest ``val/loss`` (without
            ``val_time``: ``val/error``), not those of the last one.
        seed: of times, noise and emptied captions.

    Raises:
        UserError: for settings out of range or that do not fit the backbone, and for audio at
            another rate than the backbone's.
    """

    MOVED_SETTINGS = MOVED_OPTIMIZER
    batch_types = (AudioBatch, LatentBatch, PairedBatch)
    export_facts = classmethod(denoising_facts)

    def __init__(
        self,
        backbone: Backbone,
        optimizer: ScheduleSettings = ScheduleSettings(total_steps=10_000, warmup_steps=200),
        condition_dropout: float = 0.1,
        min_snr_gamma: float | None = None,
        min_snr_form: str = "prediction",
        pretrain_weight: float = 0.0,
        ema_decay: float | None = 0.999,
        trainable: Sequence[str] = TRAINABLE,
        adapter: AdapterSettings | None = None,
        memory: MemorySettings = MemorySettings(),
        val_time: float | None = None,
        keep_best: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        trainable = tuple(trainable)  # a plain value in the checkpoint
        self.save_hyperparameters(ignore=["backbone", "optimizer", "adapter", "memory"])
        self.save_hyperparameters(
            {
                "optimizer": asdict(optimizer),
                "adapter": None if adapter is None else asdict(adapter),
                "memory": asdict(memory),
            }
        )
        self.optimizer = optimizer
        self.adapter = adapter
        self.memory = memory
        self.backbone = backbone
        self._check_settings(trainable)
        if adapter is None:
            _train_parts(backbone, trainable)
        else:
            make_trainable(backbone, adapter)
        self.parameters_that_learn = tuple(learned(backbone).values())
        self.ema = None if ema_decay is None else EMA(self.parameters_that_learn, ema_decay)
        self._best: dict[str, Any] | None = None  # error, epoch and weights of the best epoch
        self._base_sha256: dict[str, str] = {}

    def _check_settings(self, trainable: Sequence[str]) -> None:
        given = self.hparams
        if not 0 <= given.condition_dropout < 1:
            raise UserError(
                f"invalid condition_dropout {given.condition_dropout}: expected a share >= 0 and"
                " < 1"
            )
        if not 0 <= given.pretrain_weight < math.inf:
            raise UserError(f"invalid pretrain_weight {given.pretrain_weight}: expected >= 0")
        if given.val_time is not None and not 0 <= given.val_time < 1:
            raise UserError(f"invalid val_time {given.val_time}: expected a number >= 0 and < 1")
        require_choice(given, "min_snr_form", MIN_SNR_FORMS)
        if self.adapter is not None and tuple(trainable) not in (TRAINABLE, ("denoiser",)):
            raise UserError(
                f"trainable {list(trainable)} has no effect with an adapter, which is on the"
                " denoiser alone; leave out one of the two"
            )
        if self.memory.text_encoders == "drop" and self.adapter is None:
            others = [name for name in trainable if name != "denoiser"]
            if others:
                raise UserError(
                    f"memory.text_encoders=drop exports the denoiser alone, but {others[0]!r}"
                    " learns too; set module.trainable=[denoiser], or keep the encoders"
                )

    @property
    def saves_learned_only(self) -> bool:
        """Whether checkpoints and export hold only what learns; the base is in the run's config."""
        return self.adapter is not None or self.memory.text_encoders == "drop"

    # The loss

    def _latents(self, batch: Clean) -> Tensor:
        if isinstance(batch, LatentBatch):
            return batch.latent_BCT.float()
        if batch.sample_rate_hz != self.backbone.sample_rate_hz:
            raise UserError(
                f"the data has {batch.sample_rate_hz} Hz, the backbone"
                f" {self.backbone.sample_rate_hz} Hz; set data.sample_rate_hz"
            )
        with torch.no_grad():
            return self.backbone.encode(batch.wave_BCN).float()

    def weighted_error(self, batch: Clean, name: str) -> Tensor | None:
        """() mean of the weighted errors of a batch; None where every weight is 0.

        ``name`` keys times, noise and emptied captions, together with seed, step and process. They
        are drawn for all samples, so that which of them are computed changes nothing.
        """
        clean = self._latents(batch)
        count = len(batch)
        time_B, prompts, noise = self.drawn(batch.prompts, clean.shape, name)
        weight_B = self._weights(time_B, batch.weight_B)
        if batch.weight_B is None:
            error_B = latent_errors(self.backbone, clean, prompts, time_B, noise)
            return weighted_mean(error_B, weight_B)
        rows = batch.weight_B.nonzero().flatten()
        if len(rows) == 0:
            return None
        kept = [prompts[row] for row in rows.tolist()]
        error_R = latent_errors(self.backbone, clean[rows], kept, time_B[rows], noise[rows])
        return weighted_mean(error_R, weight_B[rows], count)

    def drawn(
        self, prompts: Sequence[Prompt], shape: Sequence[int], name: str
    ) -> tuple[Tensor, list[Prompt], Tensor]:
        """Times (B,), prompts with some captions emptied, and noise of ``shape`` (B, ...).

        They depend on ``name``, seed, step and process only.
        """
        count = len(prompts)
        generator = noise_generator(self.hparams.seed, self.global_step, name, self.global_rank)
        # stratified times: one in each of B equal intervals, so that the loss is less noisy
        uniform = (
            torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
        ) / count
        time_B = self.backbone.path.sample_times(uniform.to(self.device))
        dropped = torch.rand(count, generator=generator) < self.hparams.condition_dropout
        told = [
            replace(p, text="", sources=()) if drop else p
            for p, drop in zip(prompts, dropped, strict=True)
        ]
        return time_B, told, torch.randn(shape, generator=generator).to(self.device)

    def _weights(self, time_B: Tensor, weight_B: Tensor | None) -> Tensor:
        given = self.hparams
        path = self.backbone.path
        return error_weights(path, time_B, weight_B, given.min_snr_gamma, given.min_snr_form)

    def training_step(self, batch: Clean | PairedBatch, batch_index: int) -> Tensor:
        labelled = batch.labelled if isinstance(batch, PairedBatch) else batch
        parts: list[Tensor] = []
        own = self.weighted_error(labelled, f"denoising/{batch_index}")
        if own is not None:
            parts.append(own)
        if isinstance(batch, PairedBatch) and self.hparams.pretrain_weight:
            other = self.weighted_error(batch.pretrain, f"denoising/pretrain/{batch_index}")
            if other is not None:
                parts.append(self.hparams.pretrain_weight * other)
                self.log("train/pretrain", other.detach(), batch_size=len(batch.pretrain))
        # nothing counts: a gradient of zeros, which every process of a group must have
        loss = sum(parts) if parts else self._nothing()
        if isinstance(batch, PairedBatch):
            labelled_error = torch.zeros(()) if own is None else own.detach()
            self.log("train/labelled", labelled_error, batch_size=len(labelled))
        self.log("train/loss", loss, batch_size=len(labelled), prog_bar=True)
        return loss

    def _nothing(self) -> Tensor:
        zeros = [0 * parameter.flatten()[:1].sum() for parameter in self.parameters_that_learn]
        return torch.stack(zeros).sum()

    # Validation

    def validation_step(self, batch: Clean, batch_index: int) -> None:
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
            values = {} if self.hparams.val_time is None else self._at_one_time(batch, clean, noise)
        margin_B = pair_margins(error_R, place_B, place_B + count)
        values |= {
            "val/error": error_R[:count].mean(),
            "val/error_shuffled": error_R[count:].mean(),
            "val/own_caption_better": (margin_B > 0).float().mean(),
        }
        self.log_dict(values, batch_size=count, sync_dist=True, prog_bar=True)

    def _at_one_time(self, batch: Clean, clean: Tensor, noise: Tensor) -> dict[str, Tensor]:
        place_B = torch.full((len(batch),), self.hparams.val_time, device=self.device)
        time_B = self.backbone.path.sample_times(place_B)
        error_B = latent_errors(self.backbone, clean, batch.prompts, time_B, noise)
        return {"val/loss": weighted_mean(error_B, self._weights(time_B, None))}

    def on_validation_end(self) -> None:
        if not self.hparams.keep_best or self.trainer.sanity_checking:
            return
        name = "val/error" if self.hparams.val_time is None else "val/loss"
        error = float(self.trainer.callback_metrics[name])
        if self._best is None or error < self._best["error"]:
            with self.averaged():
                self._best = best_state(error, self.current_epoch, self.parameters_that_learn)

    # Before and between steps

    def check_first_round(self, data: Any) -> None:
        """Raises ``UserError`` where the loss has a part that the data has not."""
        kind = getattr(data, "batch_type", None)
        if self.hparams.pretrain_weight and kind is not None and kind is not PairedBatch:
            raise UserError(
                f"module.pretrain_weight={self.hparams.pretrain_weight} weighs a second stream, but"
                f" {type(data).__name__} yields {kind.__name__}; set data.pretrain, or"
                " module.pretrain_weight=0"
            )

    def setup(self, stage: str) -> None:
        """Raises ``UserError`` for captions that are too long, where the data knows them all."""
        prompts = self._all_prompts()
        found = self.backbone.too_long(prompts) if hasattr(self.backbone, "too_long") else {}
        if found:
            first = "; ".join(list(found.values())[:3])
            raise UserError(
                f"{len(found)} of {len(prompts)} captions are too long for the backbone; {first};"
                " shorten them or leave their clips out"
            )

    def _all_prompts(self) -> tuple[Prompt, ...]:
        data = self.trainer.datamodule
        return data.all_prompts() if hasattr(data, "all_prompts") else ()

    def on_fit_start(self) -> None:
        if self.adapter is not None and self.adapter.rank:
            self._base_sha256 = same_base(self.backbone, self._base_sha256)
        if self.memory.text_encoders != "keep":
            prompts = list({prompt.text: prompt for prompt in self._all_prompts()}.values())
            if not prompts:
                raise UserError(
                    f"memory.text_encoders={self.memory.text_encoders} needs a data module that"
                    " knows all its prompts beforehand (datamodules.preferences.weighted)"
                )
            prompts.append(replace(prompts[0], text="", sources=()))  # condition_dropout
            drop = self.memory.text_encoders == "drop"
            put_text_encoders_away(self.backbone, prompts, drop=drop)
        if self.memory.decoder == "offload":
            move(self.backbone, "decoder", "cpu")

    def configure_optimizers(self):
        steps = steps_of_run(self.optimizer, self)
        found = scheduled_optimizer(self.parameters_that_learn, self.optimizer, steps)
        self.follow(found["optimizer"])
        return found

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        limit = self.optimizer.max_grad_norm
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None and not math.isfinite(norm):  # a scaler leaves such a step out by itself
            raise UserError(
                f"the gradient is not finite (its norm is {norm:g}), so the run has diverged;"
                " nothing was learned from it and the last checkpoint is kept. Start again with a"
                " lower optimizer.learning_rate or a max_grad_norm"
            )
        self.log("train/grad_norm", norm)

    # Checkpoints and export

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        whole = super().state_dict(*args, **kwargs)
        if not self.saves_learned_only:
            return whole
        return learned_state(self, whole, kwargs.get("prefix", ""))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, **options: Any):
        """Raises ``UserError`` for weights that learn and are missing or do not fit."""
        if not self.saves_learned_only:
            return super().load_state_dict(state_dict, strict, **options)
        fill_learned(self, state_dict)
        return _IncompatibleKeys([], [])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"] = self._best
        checkpoint["base_sha256"] = dict(self._base_sha256)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._best = checked_best(checkpoint.get("best"), self.parameters_that_learn)
        self._base_sha256 = dict(checkpoint.get("base_sha256") or {})

    def _exported(self) -> AbstractContextManager[None]:
        if not self.hparams.keep_best:
            return self.averaged()
        if self._best is None:
            rank_zero_warn("keep_best: nothing was validated, so the last weights are exported")
            return self.averaged()
        return holding(self.parameters_that_learn, self._best["weights"])

    def export(self, out_dir: str | Path) -> None:
        """Writes what was learned, averaged or of the best epoch (``denoising_export``)."""
        with self._exported():
            write_model(self.backbone, Path(out_dir), self.adapter, self.saves_learned_only)


def _train_parts(backbone: Backbone, names: Sequence[str]) -> None:
    """Freezes ``backbone`` but for these parts. Raises ``UserError`` for one it does not have."""
    backbone.requires_grad_(False)
    parts = dict(backbone.named_children())
    for name in names:
        if name not in parts:
            kind = type(backbone).__name__
            raise UserError(
                f"trainable names {name!r}, which {kind} does not have; {did_you_mean(name, parts)}"
            )
        parts[name].requires_grad_(True)
