"""Settings of on-policy methods: small frozen records, one node of a configuration each.

Every record checks itself when it is built (``UserError``). What concerns two of them, or a record
and the backbone, is checked by the module that takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_modules.optimizers import optimizer_class
from lightning_modules.training_settings import (
    require_betas,
    require_choice,
    require_finite,
    require_not_negative,
    require_positive,
)
from zoo.diffusion import Sampler
from zoo.errors import UserError

# Stable Diffusion's 4 x 64 x 64 latent, for which DDPO's clip range of 1e-4 was found.
CLIP_REFERENCE_ELEMENTS = 16384

AdvantageKind = Literal["prompt", "batch", "group", "group_global"]
StepDraw = Literal["sample", "batch"]
StopOrDrop = Literal["stop", "drop"]


@dataclass(frozen=True)
class SamplerSettings(Sampler):
    """How rollouts are sampled in training, and by default in evaluation (``EvaluationSettings``).

    Args:
        steps: denoising steps of a rollout.
        guidance_scale: classifier-free guidance, in rollout and training; 1 for none.
        eta: share of fresh noise, 0 to 1: one number, or one per step.
        rule: "ddim" or "cps".
        detach_unconditional: no gradient flows through the unconditional side of guidance. The
            first optimiser step of a round takes its outputs from the rollout, which keeps them:
            as much memory as the latents of the round.
        batch_size: samples rolled out at once, per process; a round must be a multiple of it.
    """

    steps: int = 20
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "batch_size")
        if self.detach_unconditional and self.guidance_scale == 0:
            raise UserError(
                "guidance_scale 0 uses the unconditional side alone, and detach_unconditional=true "
                "keeps gradients out of it: nothing would be trained; change one of them"
            )


@dataclass(frozen=True)
class EvaluationSettings:
    """How evaluation samples; None: as in training.

    Args:
        steps, guidance_scale, eta: as in ``SamplerSettings``.
        rule: also a solver that cannot be trained, such as "dpmpp_2m_sde".
    """

    steps: int | None = None
    guidance_scale: float | None = None
    eta: float | tuple[float, ...] | None = None
    rule: str | None = None

    def sampler(self, training: Sampler) -> Sampler:
        """The sampler of evaluation. Raises ``UserError`` for values that do not fit together."""
        steps = training.steps if self.steps is None else self.steps
        if self.eta is None and isinstance(training.eta, tuple) and steps != training.steps:
            raise UserError(
                f"evaluation.steps {steps} differs from sampler.steps {training.steps}, while"
                " sampler.eta is one number per step; give evaluation.eta too"
            )
        return Sampler(
            steps,
            training.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            training.eta if self.eta is None else self.eta,
            training.rule if self.rule is None else self.rule,
            training.detach_unconditional,
        )


@dataclass(frozen=True)
class UpdateSettings:
    """How a policy-gradient method learns from a round.

    Args:
        batch_size: samples per backward pass, per process.
        per_round: optimiser steps per round (and inner epoch); a round must be a multiple of
            ``batch_size * per_round``.
        inner_epochs: how often a round is gone through.
        window: steps (first, one after the last) that may be trained, in sampler order; None: all
            that add noise.
        skip_last_step: leaves out the last step of the sampler.
        timestep_fraction: share of those steps that is trained, drawn at random.
        timestep_draw: "sample" draws steps for each sample, "batch" once for all.
        clip_range: largest change of the importance ratio that is learned from, for
            ``clip_reference_elements`` scored latent elements.
        clip_reference_elements: the clip range is rescaled from so many elements to the backbone's;
            None: it is used as it is.
        kl_coef: weight of the KL divergence from the reference model (adapter off); 0: none.
        recompute_old_log_prob: scores the rollout again before the update, in the batches of the
            update.
        ratio_check: whether the ratio is 1 before the first update: "auto" (1e-6 in float32, 1e-5
            where the update computes other numbers of samples at once than the sampler, half the
            clip range otherwise), False (not checked), or a tolerance.
    """

    batch_size: int = 16
    per_round: int = 1
    inner_epochs: int = 1
    window: tuple[int, int] | None = None
    skip_last_step: bool = True
    timestep_fraction: float = 1.0
    timestep_draw: StepDraw = "sample"
    clip_range: float = 1e-4
    clip_reference_elements: int | None = CLIP_REFERENCE_ELEMENTS
    kl_coef: float = 0.0
    recompute_old_log_prob: bool = False
    ratio_check: Literal["auto"] | bool | float = "auto"

    def __post_init__(self) -> None:
        require_positive(
            self, "batch_size", "per_round", "inner_epochs", "timestep_fraction", "clip_range"
        )
        require_positive(self, "clip_reference_elements", otherwise="null (clip_range as it is)")
        require_not_negative(self, "kl_coef")
        require_choice(self, "timestep_draw", get_args(StepDraw))
        if self.timestep_fraction > 1:
            raise UserError(
                f"invalid timestep_fraction {self.timestep_fraction}: expected a share of the"
                " steps, at most 1"
            )
        check = self.ratio_check
        if check != "auto" if isinstance(check, str) else not check >= 0:
            raise UserError(
                f"invalid ratio_check {check!r}: expected auto, true, false or a tolerance"
            )


@dataclass(frozen=True)
class AdvantageSettings:
    """How rewards become advantages.

    Args:
        kind: what a reward is compared with. "prompt": running statistics of its prompt; "batch":
            the whole round; "group": the samples of its prompt in this round; "group_global": their
            mean, over the deviation of the whole round.
        buffer_size: rewards that are remembered per prompt ("prompt" only).
        min_count: a prompt with fewer remembered rewards is compared with the whole round
            ("prompt" only).
        clip: advantages beyond this many deviations are cut.
    """

    kind: AdvantageKind = "prompt"
    buffer_size: int = 16
    min_count: int = 16
    clip: float = 5.0

    def __post_init__(self) -> None:
        require_choice(self, "kind", get_args(AdvantageKind))
        require_positive(self, "clip")


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights follow their gradients.

    Args:
        name: one of ``lightning_modules.optimizers.OPTIMIZERS``.
        learning_rate: at the start.
        decay_rounds: the rate falls linearly to a tenth over so many rounds; None: it is constant.
        betas, epsilon, weight_decay: of AdamW.
        max_grad_norm: the norm of the gradient is cut to this before each step.
        ema_decay: evaluation and export use weights that are averaged with this decay; None: the
            weights themselves.
    """

    name: str = "adamw"
    learning_rate: float = 3e-4
    decay_rounds: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        optimizer_class(self.name)
        require_positive(self, "learning_rate", "max_grad_norm")
        require_finite(self, "learning_rate")
        require_positive(self, "decay_rounds", otherwise="null (a constant rate)")
        require_not_negative(self, "weight_decay", "epsilon")
        require_betas(self)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UserError(f"invalid ema_decay {self.ema_decay}: expected a number >= 0 and < 1")


@dataclass(frozen=True)
class ScoringSettings:
    """How rewards are asked, and how what they say is logged.

    Args:
        workers: threads that score while sampling goes on; 0: in line. The scores are the same.
        on_bad_reward: a reward that is not finite or that raises an error: "stop", or "drop" its
            samples and count them.
        long_prompts: prompts that are too long for an encoder: "stop", or "drop" them and count
            them.
        held_out_on_training: asks the held-out reward about the samples of training, too.
        class_label: label of the prompts by which rewards are logged separately.
    """

    workers: int = 0
    on_bad_reward: StopOrDrop = "stop"
    long_prompts: StopOrDrop = "stop"
    held_out_on_training: bool = False
    class_label: str = "mood"

    def __post_init__(self) -> None:
        require_not_negative(self, "workers")
        require_choice(self, "on_bad_reward", get_args(StopOrDrop))
        require_choice(self, "long_prompts", get_args(StopOrDrop))


# The flat settings of DDPO before 0.1.0 -> where they are now.
MOVED_SETTINGS: Mapping[str, str] = {
    "sample_steps": "sampler.steps",
    "guidance_scale": "sampler.guidance_scale",
    "eta": "sampler.eta",
    "rule": "sampler.rule",
    "detach_unconditional": "sampler.detach_unconditional",
    "sample_batch_size": "sampler.batch_size",
    "train_batch_size": "update.batch_size",
    "updates_per_round": "update.per_round",
    "inner_epochs": "update.inner_epochs",
    "train_steps": "update.window",
    "skip_last_step": "update.skip_last_step",
    "train_step_share": "update.timestep_fraction",
    "train_step_draw": "update.timestep_draw",
    "clip_range": "update.clip_range",
    "clip_reference_elements": "update.clip_reference_elements",
    "kl_weight": "update.kl_coef",
    "recompute_old_log_prob": "update.recompute_old_log_prob",
    "ratio_check": "update.ratio_check",
    "advantage": "advantages.kind",
    "tracker_buffer_size": "advantages.buffer_size",
    "tracker_min_count": "advantages.min_count",
    "advantage_clip": "advantages.clip",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_targets": "adapter.targets",
    "lora_init": "adapter.init",
    "start_adapter": "adapter.start",
    "optimizer": "optimizer.name",
    "learning_rate": "optimizer.learning_rate",
    "decay_rounds": "optimizer.decay_rounds",
    "betas": "optimizer.betas",
    "weight_decay": "optimizer.weight_decay",
    "adam_epsilon": "optimizer.epsilon",
    "max_grad_norm": "optimizer.max_grad_norm",
    "ema_decay": "optimizer.ema_decay",
    "eval_sample_steps": "evaluation.steps",
    "eval_guidance_scale": "evaluation.guidance_scale",
    "eval_eta": "evaluation.eta",
    "eval_rule": "evaluation.rule",
    "text_encoders": "memory.text_encoders",
    "decoder": "memory.decoder",
    "reward_workers": "scoring.workers",
    "on_bad_reward": "scoring.on_bad_reward",
    "long_prompts": "scoring.long_prompts",
    "held_out_on_training": "scoring.held_out_on_training",
    "class_label": "scoring.class_label",
}
