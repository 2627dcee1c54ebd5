"""What every method that learns from its own samples shares: the round.

One training batch is one round: a ``PromptBatch`` is rolled out, decoded and scored, and a method
learns from it. Checkpoints, evaluation, averaged weights and the places of encoders and decoder are
here, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from datamodules.batches import PromptBatch, PromptSource
from lightning_modules.ema import EMA, AveragedWeights
from lightning_modules.offload import move, present, put_text_encoders_away
from lightning_modules.optimizers import build_optimizer
from lightning_modules.random_state import random_state, set_random_state
from lightning_modules.resume_settings import translated
from lightning_modules.rl.distributed import fail_together, gather, own_gradients, sum_gradients
from lightning_modules.rl.held_out import (
    HeldOutSample,
    held_out_samples,
    held_out_summary,
    not_finite_warning,
    with_held_out,
)
from lightning_modules.rl.policy_facts import policy_facts
from lightning_modules.rl.prompt_checks import (
    check_judged,
    check_round,
    prompts_to_encode,
    refuse_or_drop,
    too_long,
)
from lightning_modules.rl.rollouts import (
    RewardError,
    ScoredSamples,
    Stopwatch,
    eval_mode,
    sample_and_score,
)
from lightning_modules.rl.round_scores import RoundScores, round_scores
from lightning_modules.rl.settings import (
    MOVED_SETTINGS,
    EvaluationSettings,
    OptimizerSettings,
    SamplerSettings,
    ScoringSettings,
)
from lightning_modules.schedules import decay_rate
from lightning_modules.trainable import (
    check_weights,
    fill_learned,
    learned,
    learned_state,
    make_trainable,
)
from lightning_modules.training_settings import AdapterSettings, MemorySettings
from zoo.backbones.lengths import check_lengths
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.signatures import bind
from zoo.types import Backbone, Reward, Trajectory


class OnPolicy(AveragedWeights):
    """A method that learns from its own samples.

    A method has a constructor, ``learn`` (all that it does with a scored round) and, where it keeps
    something between rounds, ``method_state`` and ``load_method_state``.

    The arguments are those of ``DDPO`` of the same names. Raises ``UserError`` for settings that do
    not fit together or to the backbone.
    """

    MAY_CHANGE_ON_RESUME = frozenset(
        {
            "reward",
            "held_out_reward",
            "memory",
            "scoring.workers",
            "scoring.on_bad_reward",
            "scoring.held_out_on_training",
            "sampler.batch_size",  # changes sums by rounding only
        }
    )
    MOVED_SETTINGS = MOVED_SETTINGS
    batch_types = (PromptBatch,)
    export_facts = classmethod(policy_facts)

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        held_out_reward: Reward | None,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        optimizer: OptimizerSettings,
        evaluation: EvaluationSettings,
        memory: MemorySettings,
        scoring: ScoringSettings,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if not isinstance(backbone, nn.Module):
            raise UserError(f"the backbone must be a torch module, got {type(backbone).__name__}")
        if scoring.held_out_on_training and held_out_reward is None:
            raise UserError(
                "scoring.held_out_on_training=true needs a held_out_reward, which is not given"
            )
        self.sampler = sampler
        self.eval_sampler = evaluation.sampler(sampler)
        self.adapter = adapter
        self.optimizer = optimizer
        self.memory = memory
        self.scoring = scoring
        self.seed = seed
        self.save_settings(
            sampler=sampler,
            adapter=adapter,
            optimizer=optimizer,
            evaluation=evaluation,
            memory=memory,
            scoring=scoring,
        )
        self.save_hyperparameters({"seed": seed})
        self.backbone = backbone
        self.reward = reward
        self.held_out_reward = held_out_reward
        for scorer in (reward, held_out_reward):
            if isinstance(scorer, nn.Module):
                scorer.requires_grad_(False)
        make_trainable(backbone, adapter)
        decay = optimizer.ema_decay
        self.ema = None if decay is None else EMA(self.trainable().values(), decay)
        self.report: Callable[[str, int, int], None] = lambda phase, done, total: None
        self.round_metrics: dict[str, float] = {}
        self.held_out: dict[str, float] = {}
        self.held_out_samples: list[HeldOutSample] = []
        self._next_round: int | None = None
        self._saved_random_state: dict[str, Any] | None = None
        self._grad_norm = math.nan
        self._dropped_prompts = 0

    # What a method adds

    def learn(
        self, batch: PromptBatch, trajectory: Trajectory, scores: RoundScores
    ) -> dict[str, float]:
        """All optimiser steps of a round, by ``manual_backward`` and ``step``.

        Args:
            batch: prompts of this process (B).
            trajectory: how their samples were made.
            scores: the scores of all processes.

        Returns:
            What to log.
        """
        raise NotImplementedError

    def method_state(self) -> dict[str, Any]:
        """What a method keeps between rounds, as plain values for a checkpoint."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes back what ``method_state`` gave."""

    # Weights and checkpoints

    def save_settings(self, **settings: Any) -> None:
        """Keeps settings as plain values, so that a checkpoint loads with ``weights_only=True``."""
        self.save_hyperparameters({name: asdict(one) for name, one in settings.items()})

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that learns."""
        return learned(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        one = self.optimizer
        built = build_optimizer(
            one.name,
            self.trainable().values(),
            one.learning_rate,
            one.betas,
            one.epsilon,
            one.weight_decay,
        )
        self.follow(built)
        return built

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Trainable weights only: the base is named by the run's configuration."""
        whole = super().state_dict(*args, **kwargs)
        return learned_state(self, whole, kwargs.get("prefix", ""))

    def load_state_dict(
        self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Strict about trainable weights whatever ``strict`` says.

        Raises ``UserError`` naming the first that does not fit.
        """
        fill_learned(self, state_dict)
        return _IncompatibleKeys([], [])

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        strict: bool = True,
        **arguments: Any,
    ) -> OnPolicy:
        """The module of a checkpoint, also of one with flat settings.

        ``arguments`` are those of the constructor that the checkpoint does not hold (backbone,
        rewards). Raises ``UserError``.
        """
        checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=True)
        settings = checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY]
        arguments = translated(settings, MOVED_SETTINGS) | arguments
        module = cls(**bind(cls, arguments, ""))
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict)
        return module

    @classmethod
    def _state_key(cls) -> str:
        return cls.__name__.lower()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[self._state_key()] = {
            "next_round": self._next_round,
            "random_state": random_state(),
            **self.method_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._state_key() not in checkpoint:
            raise UserError(
                f"this checkpoint is not of a {type(self).__name__} run (it holds no"
                f" {self._state_key()!r} state); give another one"
            )
        check_weights(self.trainable(), checkpoint["state_dict"])
        state = checkpoint[self._state_key()]
        if state.get("ema") is not None:  # where 0.1.0-dev kept it
            checkpoint = {**checkpoint, "ema": state["ema"]}
        super().on_load_checkpoint(checkpoint)
        self._next_round = state["next_round"]
        self._saved_random_state = state["random_state"]
        self.load_method_state(state)

    # Before the first round

    def transfer_batch_to_device(
        self, batch: PromptBatch, device: torch.device, dataloader_idx: int
    ) -> PromptBatch:
        return batch  # prompts are text

    def setup(self, stage: str) -> None:
        source: Any = self.trainer.datamodule
        if isinstance(source, PromptSource):
            rewards = (self.reward, self.held_out_reward)
            prompts = prompts_to_encode(source.all_prompts(), (self.sampler, self.eval_sampler))
            found = too_long(self.backbone, rewards, prompts)
            drop = self.scoring.long_prompts == "drop"
            self._dropped_prompts += refuse_or_drop(source, found, drop=drop)
            check_judged(rewards, source.all_prompts())
        elif self.memory.text_encoders != "keep":
            raise UserError(
                f"memory.text_encoders={self.memory.text_encoders} needs a data module that knows"
                " all its prompts beforehand"
            )

    def on_fit_start(self) -> None:
        if not isinstance(self.trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise UserError(
                f"{type(self).__name__} runs on one device or with strategy ddp, not with"
                f" {type(self.trainer.strategy).__name__}"
            )
        if self._saved_random_state is None:
            self._next_round = None
        if self.memory.text_encoders != "keep":
            every = self.trainer.datamodule.all_prompts()
            prompts = prompts_to_encode(every, (self.sampler, self.eval_sampler))
            drop = self.memory.text_encoders == "drop"
            put_text_encoders_away(self.backbone, prompts, drop=drop)
        if self.memory.decoder == "offload":
            move(self.backbone, "decoder", "cpu")

    def on_train_start(self) -> None:
        if self._saved_random_state is not None:
            set_random_state(self._saved_random_state)
            self._saved_random_state = None

    def check_first_round(self, data: Any) -> None:
        """Raises ``UserError`` for a round that would be refused, as far as it is known beforehand.

        It checks its size, lengths, and prompts that a reward cannot score.
        """
        if not isinstance(data, PromptSource):
            return
        prompts = data.all_prompts()
        check_judged((self.reward, self.held_out_reward), prompts)
        rows = self.sampler.batch_size
        states = self.sampler.steps + 1
        check_lengths(self.backbone, prompts, rows, states, "data.seconds")
        if hasattr(data, "first_round"):
            world = self.trainer.num_devices * self.trainer.num_nodes if self._trainer else 1
            self.check_prompts_of_round(data.first_round(1))
            self.check_round(data.first_round(world))

    def check_prompts_of_round(self, whole: PromptBatch) -> None:
        """Raises ``UserError`` for a round of all processes that a method cannot learn from."""

    def check_round(self, batch: PromptBatch) -> None:
        """Raises ``UserError`` when this round cannot be trained, before anything is sampled."""
        check_round(batch, self.sampler.batch_size, self._next_round)

    # A round

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.check_round(batch)
        eval_mode(self.backbone, self.reward, self.held_out_reward)
        samples = fail_together(
            lambda: self._sample(batch, self.sampler, "trajectory"), RewardError
        )
        drop_bad = self.scoring.on_bad_reward == "drop"
        scores = round_scores(batch, samples, self.reward, drop_bad=drop_bad)
        updating = Stopwatch(self.device)
        with updating(), own_gradients(self.trainer.strategy):
            optimizer = self.optimizers()
            rate = self.optimizer.learning_rate
            decay_rounds = self.optimizer.decay_rounds
            decay_rate(optimizer, rate, decay_rounds, batch.round_index)
            optimizer.zero_grad(set_to_none=True)
            learned = self.learn(batch, samples.trajectory, scores)
        self._next_round = batch.round_index + 1
        metrics = scores.metrics(self.scoring.class_label) | learned
        metrics["learning_rate"] = optimizer.param_groups[0]["lr"]
        metrics["seconds/sampling"] = samples.seconds_sampling
        metrics["seconds/reward"] = samples.seconds_reward
        metrics["seconds/update"] = updating.seconds
        if self.scoring.workers:
            metrics["seconds/reward_waited"] = samples.seconds_reward_waited
        metrics["round"] = float(self._next_round)
        if self.scoring.long_prompts == "drop":
            metrics["dropped_prompts"] = float(self._dropped_prompts)
        self.round_metrics = metrics
        self.log_dict(metrics, on_step=True, on_epoch=False, batch_size=len(batch))

    def _sample(
        self, batch: PromptBatch, sampler: Sampler, keep: Literal["trajectory", "wave"]
    ) -> ScoredSamples:
        reward = self.reward
        if keep == "wave" or self.scoring.held_out_on_training:
            reward = with_held_out(reward, self.held_out_reward)
        is_away = self.memory.decoder == "offload"
        with present(self.backbone, "decoder", self.device) if is_away else nullcontext():
            return sample_and_score(
                self.backbone,
                reward,
                sampler,
                batch,
                seed=self.seed,
                sample_batch_size=self.sampler.batch_size,
                device=self.device,
                keep=keep,
                report=self.report,
                reward_workers=self.scoring.workers,
                drop_failed=self.scoring.on_bad_reward == "drop" and keep == "trajectory",
            )

    def step(self) -> float:
        """Applies and clears the gradients of all processes; returns their norm."""
        sum_gradients(self.trainable().values())
        self.optimizers().step()  # calls on_before_optimizer_step, after any unscaling
        self.optimizers().zero_grad(set_to_none=True)
        return self._grad_norm

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = self.trainable().values()
        norm = nn.utils.clip_grad_norm_(parameters, self.optimizer.max_grad_norm)
        self._grad_norm = float(norm)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if not math.isfinite(self._grad_norm) and scaler is None:
            # (a scaler of 16-mixed leaves out such a step by itself)
            raise UserError(
                f"the gradient is not finite (its norm is {self._grad_norm}), so the run has"
                " diverged; nothing was learned from it and the last checkpoint is kept. Start"
                " again with a lower optimizer.learning_rate or fewer inner epochs"
            )

    # Evaluation

    def evaluate(self, batch: PromptBatch) -> ScoredSamples:
        """Samples and scores ``batch`` for an evaluation, with averaged weights if there are any.

        Waves are kept, and the result is repeatable.
        """
        eval_mode(self.backbone, self.reward, self.held_out_reward)
        with ExitStack() as stack:
            stack.enter_context(self.averaged())
            if self._trainer is not None:
                stack.enter_context(self.trainer.precision_plugin.forward_context())
            return self._sample(batch, self.eval_sampler, "wave")

    def on_validation_epoch_start(self) -> None:
        self.held_out_samples = []

    def validation_step(
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> ScoredSamples:
        samples = fail_together(lambda: self.evaluate(batch), RewardError)
        self.held_out_samples += held_out_samples(batch, samples)
        return samples

    def on_validation_epoch_end(self) -> None:
        ranks = gather(self.held_out_samples)
        self.held_out_samples = [sample for rank in ranks for sample in rank]
        self.held_out = held_out_summary(self.held_out_samples, self.scoring.class_label)
        warning = not_finite_warning(self.held_out_samples)
        if warning is not None:
            rank_zero_warn(warning)
        self.log_dict(self.held_out)
