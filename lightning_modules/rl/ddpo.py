"""DDPO: denoising diffusion policy optimisation (arXiv 2305.13301), importance-sampled."""

from __future__ import annotations

from typing import Any

from datamodules.batches import PromptBatch
from lightning_modules.rl.advantages import PromptTracker
from lightning_modules.rl.loop import OnPolicy
from lightning_modules.rl.ppo_update import check_sizes, plan_round, trainable_steps
from lightning_modules.rl.ratio import check_ratio, is_full_precision, ratio_tolerance
from lightning_modules.rl.round_scores import (
    RoundScores,
    check_groups,
    of_process,
    round_advantages,
)
from lightning_modules.rl.round_update import update_round
from lightning_modules.rl.settings import (
    AdvantageSettings,
    EvaluationSettings,
    OptimizerSettings,
    SamplerSettings,
    ScoringSettings,
    UpdateSettings,
)
from lightning_modules.training_settings import AdapterSettings, MemorySettings
from zoo.diffusion import step_stds
from zoo.errors import UserError
from zoo.types import Backbone, Reward, Trajectory


class DDPO(OnPolicy):
    """Trains a LoRA adapter of ``backbone`` (or its whole denoiser) to raise ``reward``.

    Args:
        backbone: the generator, a torch module.
        reward: what its samples are scored by.
        sampler: how rollouts are sampled.
        update: how the policy is updated from a round.
        advantages: how rewards become advantages.
        adapter: what of the backbone is trained.
        optimizer: how weights follow their gradients.
        evaluation: how evaluation samples.
        memory: the place of encoders and decoder while they are not needed.
        scoring: how rewards are asked and logged.
        held_out_reward: a second reward that is only logged; None for no such reward.
        seed: of the noise of rollouts and of the trained steps.

    Raises:
        UserError: for settings that do not fit together or to the backbone.
    """

    MAY_CHANGE_ON_RESUME = OnPolicy.MAY_CHANGE_ON_RESUME | {
        "update.ratio_check",
        "update.batch_size",  # changes sums by rounding only
    }

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        sampler: SamplerSettings = SamplerSettings(),
        update: UpdateSettings = UpdateSettings(),
        advantages: AdvantageSettings = AdvantageSettings(),
        adapter: AdapterSettings = AdapterSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        memory: MemorySettings = MemorySettings(),
        scoring: ScoringSettings = ScoringSettings(),
        held_out_reward: Reward | None = None,
        seed: int = 0,
    ) -> None:
        if update.kl_coef > 0 and adapter.rank == 0:
            raise UserError(
                "update.kl_coef > 0 compares with the base model, which is the adapter switched"
                " off; set adapter.rank to at least 1"
            )
        shared = (sampler, adapter, optimizer, evaluation, memory, scoring)
        super().__init__(backbone, reward, held_out_reward, *shared, seed)
        self.save_settings(update=update, advantages=advantages)
        self.update = update
        self.advantages = advantages
        stds_S = step_stds(backbone.path, sampler)
        self.trained_steps = trainable_steps(stds_S, update.window, update.skip_last_step)
        self.tracker = PromptTracker(advantages.buffer_size, advantages.min_count)
        self._ratio_checked = False

    def learn(
        self, batch: PromptBatch, trajectory: Trajectory, scores: RoundScores
    ) -> dict[str, float]:
        advantage_G = round_advantages(scores, self.advantages.kind, self.tracker)
        advantage_B, kept_B = of_process(batch, scores, advantage_G)
        # half precision and TF32 give another ratio in batches of another shape
        is_exact = self.update.recompute_old_log_prob or is_full_precision(
            self.backbone.denoiser, self.device.type, convolutions=True
        )
        what = (self.trained_steps, batch, kept_B, self.update, advantage_B, self.seed)
        plans = plan_round(*what, keep_shapes=not is_exact)
        return update_round(
            self.backbone,
            self.sampler,
            batch,
            trajectory,
            plans,
            advantage_B.to(self.device),
            self.update,
            advantage_clip=self.advantages.clip,
            sampled_rows=self.sampler.batch_size,
            backward=self.manual_backward,
            step=self.step,
            check=self._check_first_ratio,
            report=self.report,
        )

    def _check_first_ratio(
        self, deviation: float, where: str, clip_range: float, same_shapes: bool
    ) -> None:
        """Before the first update the trained policy is the one that sampled: the ratio is 1."""
        check = self.update.ratio_check
        if self._ratio_checked or check is False:
            return
        is_same = same_shapes or self.update.recompute_old_log_prob
        network = self.backbone.denoiser
        tolerance, why = ratio_tolerance(network, self.device.type, is_same, clip_range)
        if not isinstance(check, (str, bool)):
            tolerance = check
        check_ratio(deviation, where, tolerance, why)
        self._ratio_checked = True

    def check_round(self, batch: PromptBatch) -> None:
        super().check_round(batch)
        check_sizes(len(batch), self.update.batch_size, self.update.per_round)

    def check_prompts_of_round(self, whole: PromptBatch) -> None:
        check_groups(whole.prompts, self.advantages.kind)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._ratio_checked = False

    def method_state(self) -> dict[str, Any]:
        return {"tracker": self.tracker.state_dict()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.tracker.load_state_dict(state["tracker"])
