"""DDPO: denoising diffusion policy optimisation (arXiv 2305.13301), the clipped importance-sampled
form.

One training batch is one round: a ``PromptBatch`` is rolled out, decoded, scored, and the adapter
is updated with backward passes step by step, so memory does not grow with the number of sampling
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from datamodules.batches import PromptBatch, PromptSource
from lightning_modules.ema import EMA
from lightning_modules.offload import move, present, put_text_encoders_away
from lightning_modules.optimizers import build_optimizer
from lightning_modules.random_state import random_state, set_random_state
from lightning_modules.rl.advantages import PromptTracker
from lightning_modules.rl.ddpo_facts import ddpo_facts
from lightning_modules.rl.ddpo_settings import (
    CLIP_REFERENCE_ELEMENTS,
    check_settings,
    check_weights,
    make_trainable,
    samplers,
)
from lightning_modules.rl.distributed import gather, own_gradients, sum_gradients, together
from lightning_modules.rl.held_out import (
    HeldOutSample,
    held_out_samples,
    held_out_summary,
    scorers,
    told_not_finite,
    watched,
)
from lightning_modules.rl.ppo_update import (
    check_ratio,
    plan_round,
    ratio_tolerance,
    trainable_steps,
)
from lightning_modules.rl.prompt_checks import check_judged, check_round, settle_long_prompts, told
from lightning_modules.rl.rollouts import (
    RewardError,
    ScoredSamples,
    Stopwatch,
    sample_and_score,
    settle,
)
from lightning_modules.rl.round_scores import judge
from lightning_modules.rl.round_update import update_round
from lightning_modules.schedules import decay_rate
from zoo.backbones.lengths import check_lengths
from zoo.diffusion import Sampler, step_stds
from zoo.errors import UserError
from zoo.types import Backbone, Reward, Trajectory


class DDPO(LightningModule):
    """Trains a LoRA adapter (``lora_rank`` 0: the whole denoiser) of ``backbone`` to raise
    ``reward``.

    Sampling: ``sample_steps``, ``guidance_scale``, ``eta`` (or one a step), ``rule`` and
    ``detach_unconditional`` (no gradient through the unconditional branch) hold in rollout and
    training alike. Trained steps: ``train_steps`` (lo, hi) in sampler order (None: all with noise),
    without the last one if ``skip_last_step``; of these a random ``train_step_share``, drawn for
    each "sample" or once a "batch". Batches count samples per process: a round must be a multiple
    of ``sample_batch_size`` and of ``train_batch_size * updates_per_round``. ``clip_range`` is for
    ``clip_reference_elements`` scored latent elements and is rescaled to the backbone's (None: used
    as it is). ``optimizer``: one of ``optimizers.OPTIMIZERS``. ``decay_rounds``: the rate falls
    linearly to a tenth over so many rounds (None: constant). ``advantage``: "prompt" (running
    statistics per prompt, ``tracker_*``), "batch", "group" or "group_global". ``kl_weight`` > 0
    adds KL to the base model (adapter off), so it needs an adapter: a whole denoiser is not copied.
    ``ratio_check``: "auto" (float32: 1e-6, or 1e-5 where fewer or more rows are trained at once
    than ``sample_batch_size``; half the clip range otherwise), False, or a tolerance.
    ``on_bad_reward``, ``long_prompts`` (for an encoder): "stop" or "drop" (counted).
    ``reward_workers``: threads that score while sampling goes on (0: in line). ``text_encoders``
    "offload" (to main memory) or "drop" once all prompts are encoded, ``decoder`` "offload" during
    updates; else "keep". ``ema_decay``: evaluation and export use averages. ``eval_*`` None: as in
    training. ``held_out_reward`` is only logged, at evaluations (with ``held_out_on_training`` also
    for each round). ``start_adapter``: folder of another run's ``adapter/`` to begin with (same
    rank, alpha, targets and base); ``audio/before`` plays it, KL still compares with the base model
    (adapter off). Raises ``UserError`` on values that cannot be meant.
    """

    MAY_CHANGE_ON_RESUME = frozenset(
        {
            "reward",
            "held_out_reward",
            "held_out_on_training",
            "on_bad_reward",
            "reward_workers",
            "ratio_check",
            "text_encoders",
            "decoder",
            "sample_batch_size",  # these two change sums by rounding only
            "train_batch_size",
        }
    )

    batch_types = (PromptBatch,)
    export_facts = classmethod(ddpo_facts)

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        held_out_reward: Reward | None = None,
        held_out_on_training: bool = False,
        lora_rank: int = 8,
        lora_alpha: float | None = None,
        lora_targets: str | list[str] = "cross",
        lora_init: str = "gaussian",
        start_adapter: str | None = None,
        optimizer: str = "adamw",
        learning_rate: float = 3e-4,
        decay_rounds: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        adam_epsilon: float = 1e-8,
        max_grad_norm: float = 1.0,
        sample_steps: int = 20,
        guidance_scale: float = 1.0,
        eta: float | list[float] = 1.0,
        rule: str = "ddim",
        detach_unconditional: bool = False,
        sample_batch_size: int = 16,
        train_batch_size: int = 16,
        updates_per_round: int = 1,
        inner_epochs: int = 1,
        train_steps: tuple[int, int] | None = None,
        skip_last_step: bool = True,
        train_step_share: float = 1.0,
        train_step_draw: Literal["sample", "batch"] = "sample",
        clip_range: float = 1e-4,
        clip_reference_elements: int | None = CLIP_REFERENCE_ELEMENTS,
        advantage: Literal["prompt", "batch", "group", "group_global"] = "prompt",
        tracker_buffer_size: int = 16,
        tracker_min_count: int = 16,
        advantage_clip: float = 5.0,
        kl_weight: float = 0.0,
        recompute_old_log_prob: bool = False,
        ratio_check: Literal["auto"] | bool | float = "auto",
        on_bad_reward: Literal["stop", "drop"] = "stop",
        reward_workers: int = 0,
        long_prompts: Literal["stop", "drop"] = "stop",
        text_encoders: Literal["keep", "offload", "drop"] = "keep",
        decoder: Literal["keep", "offload"] = "keep",
        ema_decay: float | None = None,
        eval_sample_steps: int | None = None,
        eval_eta: float | list[float] | None = None,
        eval_guidance_scale: float | None = None,
        eval_rule: str | None = None,
        class_label: str = "mood",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters(ignore=["backbone", "reward", "held_out_reward"])
        if not isinstance(backbone, nn.Module):
            raise UserError(f"the backbone must be a torch module, got {type(backbone).__name__}")
        check_settings(self.hparams)
        self.sampler, self.eval_sampler = samplers(self.hparams)
        self.trained_steps = trainable_steps(
            step_stds(backbone.path, self.sampler), train_steps, skip_last_step
        )
        self.backbone = backbone
        self.reward, self.held_out_reward = scorers(reward, held_out_reward, held_out_on_training)
        make_trainable(backbone, lora_rank, lora_alpha, lora_targets, lora_init, start_adapter)
        self.tracker = PromptTracker(tracker_buffer_size, tracker_min_count)
        self.ema = None if ema_decay is None else EMA(self.trainable().values(), ema_decay)
        self.report: Callable[[str, int, int], None] = lambda phase, done, total: None
        self.round_metrics: dict[str, float] = {}
        self.held_out: dict[str, float] = {}
        self.held_out_samples: list[HeldOutSample] = []
        self._next_round: int | None = None
        self._saved_random_state: dict[str, Any] | None = None
        self._ratio_checked, self._grad_norm, self._dropped_prompts = (
            ratio_check is False,
            math.nan,
            0,
        )

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that learns."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        h = self.hparams
        return build_optimizer(
            h.optimizer,
            self.trainable().values(),
            h.learning_rate,
            h.betas,
            h.adam_epsilon,
            h.weight_decay,
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Trainable weights only: the base is named by the run's configuration."""
        names = {kwargs.get("prefix", "") + name for name in self.trainable()}
        return {
            name: value
            for name, value in super().state_dict(*args, **kwargs).items()
            if name in names
        }

    @torch.no_grad()
    def load_state_dict(
        self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Strict about trainable weights whatever ``strict`` says.

        Raises ``UserError`` naming the first that does not fit.
        """
        own = self.trainable()
        check_weights(own, state_dict)
        for name, parameter in own.items():
            parameter.copy_(state_dict[name])
        return _IncompatibleKeys([], [])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ddpo"] = {
            "next_round": self._next_round,
            "tracker": self.tracker.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "random_state": random_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "ddpo" not in checkpoint:
            raise UserError(
                "this checkpoint is not of a DDPO run (it holds no 'ddpo' state); give another one"
            )
        check_weights(self.trainable(), checkpoint["state_dict"])
        state = checkpoint["ddpo"]
        if (state["ema"] is None) != (self.ema is None):
            raise UserError(
                "ema_decay must be given in the resumed run exactly when it was given before"
            )
        self._next_round, self._saved_random_state = state["next_round"], state["random_state"]
        self.tracker.load_state_dict(state["tracker"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def transfer_batch_to_device(
        self, batch: PromptBatch, device: torch.device, dataloader_idx: int
    ) -> PromptBatch:
        return batch  # prompts are text

    def setup(self, stage: str) -> None:
        source, h = self.trainer.datamodule, self.hparams
        if isinstance(source, PromptSource):
            rewards = (self.reward, self.held_out_reward)
            self._dropped_prompts += settle_long_prompts(
                source,
                self.backbone,
                rewards,
                (self.sampler, self.eval_sampler),
                drop=h.long_prompts == "drop",
            )
            check_judged(rewards, source.all_prompts())
        elif h.text_encoders != "keep":
            raise UserError(
                f"text_encoders={h.text_encoders} needs a data module that knows all its prompts"
                " beforehand"
            )

    def on_fit_start(self) -> None:
        if not isinstance(self.trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise UserError(
                "DDPO runs on one device or with strategy ddp, not with"
                f" {type(self.trainer.strategy).__name__}"
            )
        if self._saved_random_state is None:
            self._next_round = None
        self._ratio_checked = self.hparams.ratio_check is False
        if self.hparams.text_encoders != "keep":
            prompts = told(self.trainer.datamodule.all_prompts(), (self.sampler, self.eval_sampler))
            put_text_encoders_away(
                self.backbone, prompts, drop=self.hparams.text_encoders == "drop"
            )
        if self.hparams.decoder == "offload":
            move(self.backbone, "decoder", "cpu")

    def on_train_start(self) -> None:
        if self._saved_random_state is not None:
            set_random_state(self._saved_random_state)
            self._saved_random_state = None

    def check_first_round(self, data: Any) -> None:
        """Raises ``UserError`` for what is known beforehand of a round that would be refused: its
        size, groups of one sample, prompts that a reward could not judge."""
        if not isinstance(data, PromptSource):
            return
        check_judged((self.reward, self.held_out_reward), data.all_prompts())
        size, states = self.hparams.sample_batch_size, self.sampler.steps + 1
        check_lengths(self.backbone, data.all_prompts(), size, states, "data.seconds")
        if hasattr(data, "first_round"):
            world = self.trainer.num_devices * self.trainer.num_nodes if self._trainer else 1
            whole, h = data.first_round(1), self.hparams
            single = len({prompt.id for prompt in whole.prompts}) == len(whole)
            if h.advantage in ("group", "group_global") and single:
                raise UserError(
                    f"advantage={h.advantage} compares the samples of a prompt, and every prompt "
                    "has only one; set data.repeats to at least 2, or advantage to prompt or batch"
                )
            check_round(data.first_round(world), h, None)

    def check_round(self, batch: PromptBatch) -> None:
        """Raises ``UserError`` when this round cannot be trained as configured: called before
        anything is sampled.
        """
        check_round(batch, self.hparams, self._next_round)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.check_round(batch)
        settle(self.backbone, self.reward, self.held_out_reward)
        samples = together(lambda: self._sample(batch, self.sampler, "trajectory"), RewardError)
        h = self.hparams
        drop_bad = h.on_bad_reward == "drop"
        judged = judge(
            batch,
            samples,
            self.reward,
            h.advantage,
            self.tracker,
            drop_bad=drop_bad,
            class_label=h.class_label,
        )
        metrics = dict(judged.metrics)
        updating = Stopwatch(self.device)
        with updating(), own_gradients(self.trainer.strategy):
            metrics |= self._update(
                batch, samples.trajectory, judged.advantage_B.to(self.device), judged.kept_B
            )
        self._next_round = batch.round_index + 1
        seconds = {
            "sampling": samples.seconds_sampling,
            "reward": samples.seconds_reward,
            "update": updating.seconds,
        }
        seconds |= {"reward_waited": samples.seconds_reward_waited} if h.reward_workers else {}
        metrics |= {f"seconds/{phase}": value for phase, value in seconds.items()} | {
            "round": float(self._next_round)
        }
        metrics |= (
            {"dropped_prompts": float(self._dropped_prompts)} if h.long_prompts == "drop" else {}
        )
        self.round_metrics = metrics
        self.log_dict(metrics, on_step=True, on_epoch=False, batch_size=len(batch))

    def _sample(self, batch: PromptBatch, sampler: Sampler, keep: str) -> ScoredSamples:
        h = self.hparams
        reward = watched(
            self.reward, self.held_out_reward, keep == "wave" or h.held_out_on_training
        )
        with (
            present(self.backbone, "decoder", self.device)
            if h.decoder == "offload"
            else nullcontext()
        ):
            return sample_and_score(
                self.backbone,
                reward,
                sampler,
                batch,
                seed=h.seed,
                sample_batch_size=h.sample_batch_size,
                device=self.device,
                keep=keep,
                report=self.report,
                reward_workers=h.reward_workers,
                drop_failed=h.on_bad_reward == "drop" and keep == "trajectory",
            )

    def _update(
        self, batch: PromptBatch, trajectory: Trajectory, advantage_B: Tensor, kept_B: list[bool]
    ) -> dict[str, float]:
        """All optimiser steps of one round; returns what to log."""
        h, optimizer = self.hparams, self.optimizers()
        decay_rate(optimizer, h.learning_rate, h.decay_rounds, batch.round_index)
        optimizer.zero_grad(set_to_none=True)
        plans = plan_round(self.trained_steps, batch, kept_B, h, advantage_B)
        metrics = update_round(
            self.backbone,
            self.sampler,
            batch,
            trajectory,
            plans,
            advantage_B,
            h,
            backward=self.manual_backward,
            step=self._step,
            check=self._check_first_ratio,
            report=self.report,
        )
        return metrics | {"learning_rate": optimizer.param_groups[0]["lr"]}

    def _step(self) -> float:
        """Applies the gradients of all processes; returns their norm."""
        sum_gradients(self.trainable().values())
        self.optimizers().step()  # calls on_before_optimizer_step, after any unscaling
        self.optimizers().zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return self._grad_norm

    def _check_first_ratio(
        self, deviation: float, where: str, clip_range: float, same_shapes: bool
    ) -> None:
        if self._ratio_checked:
            return
        h = self.hparams
        is_same, network = h.recompute_old_log_prob or same_shapes, self.backbone.denoiser
        usual, why = ratio_tolerance(network, self.device.type, is_same, clip_range)
        tolerance = usual if isinstance(h.ratio_check, (str, bool)) else h.ratio_check
        check_ratio(deviation, where, tolerance, why)
        self._ratio_checked = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._grad_norm = float(
            nn.utils.clip_grad_norm_(self.trainable().values(), self.hparams.max_grad_norm)
        )
        if (
            not math.isfinite(self._grad_norm)
            and getattr(self.trainer.precision_plugin, "scaler", None) is None
        ):
            raise UserError(  # (a scaler of 16-mixed leaves such a step out by itself)
                f"the gradient is not finite (its norm is {self._grad_norm}), so the run has"
                " diverged; nothing was learned from it and the last checkpoint is kept. Start"
                " again with a lower learning_rate or fewer inner_epochs"
            )

    def evaluate(self, batch: PromptBatch) -> ScoredSamples:
        """Samples and scores ``batch`` as evaluation does (with EMA weights if there are any);
        waves are kept. Repeatable.
        """
        settle(self.backbone, self.reward, self.held_out_reward)
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.swapped())
            if self._trainer is not None:
                stack.enter_context(self.trainer.precision_plugin.forward_context())
            return self._sample(batch, self.eval_sampler, "wave")

    def on_validation_epoch_start(self) -> None:
        self.held_out_samples = []

    def validation_step(
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> ScoredSamples:
        samples = together(lambda: self.evaluate(batch), RewardError)
        self.held_out_samples += held_out_samples(batch, samples)
        return samples

    def on_validation_epoch_end(self) -> None:
        self.held_out_samples = [
            sample for rank in gather(self.held_out_samples) for sample in rank
        ]
        self.held_out = held_out_summary(self.held_out_samples, self.hparams.class_label)
        if said := told_not_finite(self.held_out_samples):
            rank_zero_warn(said)
        self.log_dict(self.held_out)
