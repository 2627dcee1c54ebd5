"""The report page of training on clips: the same prompts with the same noise, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.batches import PromptBatch
from lightning_modules.audio_samples import Played, played, spread, write_samples
from lightning_modules.report import write_report
from lightning_modules.rl.rollouts import sample_and_score
from lightning_modules.rl.settings import SamplerSettings
from zoo.errors import UserError
from zoo.types import Prompt, Reward


class BeforeAfter(Callback):
    """Writes ``audio/before``, ``audio/after`` and ``report.html`` into the run folder.

    For modules that learn from clips and do not render prompts themselves, such as ``Denoising``.
    ``after`` is made with the averaged weights, which are exported. A resumed run keeps its
    ``before``.

    Args:
        prompts: a list of them, or (training prompts, held-out prompts): the latter are taken.
        reward: its scores stand beside the clips; no gradient comes from them.
        sampler: of the clips.
        count: prompts, evenly spread over the values of ``class_label``.
        class_label: a label of the prompts.
        seed: of the noise.

    Raises:
        UserError: for no prompts, and for a count below 1.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt] | tuple[Sequence[Prompt], Sequence[Prompt]],
        reward: Reward,
        sampler: SamplerSettings = SamplerSettings(),
        count: int = 8,
        class_label: str = "relation",
        seed: int = 1_000_003,
    ) -> None:
        if count < 1:
            raise UserError(f"invalid count {count}: expected a whole number >= 1")
        is_split = len(prompts) == 2 and not isinstance(prompts[0], Prompt)
        chosen = tuple(prompts[1] if is_split else prompts)
        if not chosen:
            raise UserError("prompts: there are none to listen to; hold some out")
        batch = PromptBatch(chosen, (0,) * len(chosen))
        self.batch = spread(batch, count, class_label)
        self.reward = reward
        self.sampler = sampler
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir) / "audio" / "before"
        if trainer.is_global_zero and trainer.global_step == 0:
            write_samples(folder, self._played(pl_module), pl_module.backbone.sample_rate_hz)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        out_dir = Path(trainer.default_root_dir)
        with pl_module.averaged():
            after = self._played(pl_module)
        write_samples(out_dir / "audio" / "after", after, pl_module.backbone.sample_rate_hz)
        write_report(out_dir, getattr(self.reward, "unit", ""))

    def _played(self, pl_module: LightningModule) -> list[Played]:
        was_training = pl_module.training
        pl_module.eval()
        samples = sample_and_score(
            pl_module.backbone,
            self.reward,
            self.sampler,
            self.batch,
            seed=self.seed,
            sample_batch_size=self.sampler.batch_size,
            device=pl_module.device,
            keep="wave",
        )
        pl_module.train(was_training)
        return played(samples)
