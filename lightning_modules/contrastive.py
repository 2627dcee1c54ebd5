"""Contrastive training of a CLAP, with captions that are wrong in order or in one event.

Sources: symmetric InfoNCE of CLIP (Radford et al., arXiv 2103.00020, figure 3); LAION-CLAP (Wu et
al., arXiv 2211.06687); wrong captions of the sample's own among its candidates: NegCLIP
(Yuksekgonul et al., arXiv 2210.01936).

Shapes: ``B`` samples (audio rows, text columns), ``E`` embedding, ``K`` wrong captions of a sample,
``N`` clips of an evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.batches import AudioBatch
from lightning_modules.degradations import add_noise, codec_round_trip
from lightning_modules.ema import EMA, AveragedWeights
from lightning_modules.retrieval_report import RetrievalReport, retrieval_report, same_meaning
from lightning_modules.schedules import scheduled_optimizer, steps_of_run
from lightning_modules.training_settings import (
    MOVED_DEGRADATIONS,
    MOVED_OPTIMIZER,
    ON_CARD,
    Degradations,
    ScheduleSettings,
    card_settings,
)
from zoo.audio_files.resampling import resampled
from zoo.errors import UserError
from zoo.hub.run_facts import RunFacts
from zoo.rewards.clap import ClapReward
from zoo.types import Backbone, Prompt


def info_nce(
    similarity_BB: Tensor,
    same_BB: Tensor,
    scale: Tensor | float,
    wrong_BK: Tensor | None = None,
    given_BK: Tensor | None = None,
) -> Tensor:
    """Mean () of both cross-entropies in nats: clips choose captions, captions choose clips.

    ``similarity_BB``: cosines, clips in rows and captions in columns, pairs on the diagonal.
    ``same_BB`` marks captions that say the same; such pairs off the diagonal count neither as
    right nor as wrong. ``wrong_BK``: cosines of each clip with its own wrong captions, further
    candidates of the clip's choice; where ``given_BK`` is False there is none.
    """
    count = len(similarity_BB)
    diagonal = torch.eye(count, dtype=torch.bool, device=similarity_BB.device)
    logits = (scale * similarity_BB).masked_fill(same_BB & ~diagonal, -torch.inf)
    rows = logits
    if wrong_BK is not None:
        wrong = scale * wrong_BK
        rows = torch.cat(
            [logits, wrong if given_BK is None else wrong.masked_fill(~given_BK, -torch.inf)], dim=1
        )
    target = torch.arange(count, device=logits.device)
    return (F.cross_entropy(rows, target) + F.cross_entropy(logits.T, target)) / 2


def wrong_captions(prompt: Prompt) -> list[str]:
    """``labels["negatives"]`` (a list) and ``labels["swapped"]`` (one or None), each text once.

    A text equal to the caption is left out ("a bird then a bird" swapped). Raises ``UserError`` for
    other types and for empty texts.
    """
    negatives = prompt.labels.get("negatives") or ()
    swapped = prompt.labels.get("swapped")
    texts = list(dict.fromkeys([*((swapped,) if swapped is not None else ()), *negatives]))
    if isinstance(negatives, str) or not all(
        isinstance(text, str) and text.strip() for text in texts
    ):
        raise UserError(
            f"prompt {prompt.id!r}: negatives must be a list of texts and swapped one text, got"
            f" {texts!r}"
        )
    return [text for text in texts if text != prompt.text]


class Contrastive(AveragedWeights):
    """Trains ``reward.towers`` on ``AudioBatch`` whose prompts are captions; exports the reward.

    A clip chooses among the captions of one process's batch. Labels of a prompt, all optional:
    ``events`` (classes in order) and ``relation`` say which captions mean the same (else only equal
    texts do); ``negatives`` is a list of wrong captions; ``swapped`` is the caption in the wrong
    order, a negative too, on which the order accuracy is measured; ``recording_split`` says which
    recordings are unknown from training.

    Args:
        reward: is trained in place.
        optimizer: and its learning rate.
        degradations: of the training clips.
        codec: a backbone, whose codec some clips go through, because the reward will judge
            generations. It is neither trained nor saved.
        ema_decay: of the averaged weights that are evaluated and exported; None: the weights as
            they are.

    Raises:
        UserError: for a reward that no gradient passes.
    """

    MOVED_SETTINGS = {**MOVED_OPTIMIZER, **MOVED_DEGRADATIONS}
    batch_types = (AudioBatch,)

    def __init__(
        self,
        reward: ClapReward,
        optimizer: ScheduleSettings = ScheduleSettings(total_steps=1500, weight_decay=0.05),
        degradations: Degradations = Degradations(),
        codec: Backbone | None = None,
        ema_decay: float | None = 0.995,
    ) -> None:
        super().__init__()
        if not reward.differentiable:
            raise UserError(
                "no gradient passes this reward (int16=true, or towers that are not differentiable)"
            )
        self.save_hyperparameters(
            {
                "optimizer": asdict(optimizer),
                "degradations": asdict(degradations),
                "ema_decay": ema_decay,
            }
        )
        self.optimizer = optimizer
        self.degradations = degradations
        self.reward = reward.requires_grad_(True)
        self._codec = (codec,)  # in a tuple: not a submodule, so neither trained nor saved
        self.ema = None if ema_decay is None else EMA(self.reward.parameters(), ema_decay)
        self.report: RetrievalReport | None = None
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._prompts: list[Prompt] = []

    @classmethod
    def export_facts(cls, arguments: Mapping[str, Any]) -> RunFacts:
        """What a run with these ``arguments`` states about itself."""
        return RunFacts(cls.__name__, settings=card_settings(arguments, *ON_CARD, "ema_decay"))

    def setup(self, stage: str) -> None:
        if isinstance(self._codec[0], torch.nn.Module):
            self._codec[0].to(self.device).eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        self.reward.set_train_mode()

    def on_train_epoch_start(self) -> None:
        self.on_fit_start()

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), E); equal texts are embedded once."""
        unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        return self.reward.towers.embed_text(list(unique))[[unique[text] for text in texts]]

    def _cosines_with_wrong(
        self, audio_BE: Tensor, prompts: Sequence[Prompt]
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """(B, K) cosines of clips with their wrong captions, and which of them there are."""
        texts = [wrong_captions(prompt) for prompt in prompts]
        most = max(map(len, texts))
        if most == 0:
            return None, None
        flat = [
            text
            for row, prompt in zip(texts, prompts, strict=True)
            for text in [*row, *[prompt.text] * (most - len(row))]
        ]
        wrong_BKE = self._embed_texts(flat).unflatten(0, (len(texts), most))
        given = torch.tensor(
            [[place < len(row) for place in range(most)] for row in texts], device=audio_BE.device
        )
        return (audio_BE[:, None] * wrong_BKE).sum(dim=-1), given

    def _degraded(self, batch: AudioBatch) -> Tensor:
        """(B, 1, N) mono, some of it sent through the codec, some of it noisy."""
        h = self.degradations
        device = batch.wave_BCN.device
        mono_BN = batch.wave_BCN.float().mean(dim=1)
        codec = self._codec[0]
        through_codec = round(h.codec_share * len(batch))
        if codec is not None and through_codec:
            rows = torch.randperm(len(batch), device=device)[:through_codec]
            scale = h.codec_latent_noise * torch.rand(through_codec, device=device)
            tripped = codec_round_trip(
                codec, batch.wave_BCN[rows], batch.sample_rate_hz, scale
            ).mean(dim=1)
            tripped = resampled(tripped, codec.sample_rate_hz, batch.sample_rate_hz)
            mono_BN = mono_BN.clone()
            length = min(tripped.shape[1], mono_BN.shape[1])
            mono_BN[rows, :length] = tripped[:, :length]
        low, high = h.snr_db
        noisy = add_noise(
            mono_BN,
            torch.randn_like(mono_BN),
            low + (high - low) * torch.rand(len(batch), device=device),
        )
        return torch.where(
            (torch.rand(len(batch), 1, device=device) < h.noise_share), noisy, mono_BN
        ).unsqueeze(1)

    def training_step(self, batch: AudioBatch, batch_index: int) -> Tensor:
        audio_BE = self.reward.embed_audio(self._degraded(batch), batch.sample_rate_hz)
        text_BE = self._embed_texts([prompt.text for prompt in batch.prompts])
        with torch.autocast(audio_BE.device.type, enabled=False):
            wrong_BK, given_BK = self._cosines_with_wrong(audio_BE, batch.prompts)
            same_BB = same_meaning(batch.prompts).to(audio_BE.device)
            similarity_BB = audio_BE @ text_BE.T
            loss = info_nce(similarity_BB, same_BB, self.reward.towers.scale, wrong_BK, given_BK)
        if not torch.isfinite(loss):
            bad = [
                p.id
                for p, row in zip(batch.prompts, batch.wave_BCN, strict=True)
                if not torch.isfinite(row).all()
            ]
            cause = (
                f"clips that hold NaN or infinity: {bad[:5]}"
                if bad
                else "all clips are finite; lower module.optimizer.learning_rate"
            )
            raise UserError(f"the loss is {loss.item()} at step {self.global_step}; {cause}")
        own_B = similarity_BB.detach().diagonal()
        logged = {
            "train/loss": loss,
            "train/scale": self.reward.towers.scale.detach(),
            "train/cosine": own_B.mean(),
        }
        if given_BK is not None and given_BK.any():
            logged["train/right_over_wrong"] = (
                (own_B[:, None] > wrong_BK.detach())[given_BK].float().mean()
            )
        self.log_dict(logged, batch_size=len(batch), prog_bar=True)
        return loss

    def _evaluate(self, batch: AudioBatch) -> None:
        with self.averaged():
            audio_BE = self.reward.embed_audio(batch.wave_BCN, batch.sample_rate_hz)
            text_BE = self._embed_texts([prompt.text for prompt in batch.prompts])
            swapped = [
                None if (other := p.labels.get("swapped")) == p.text else other
                for p in batch.prompts
            ]
            order_BE = self._embed_texts(
                [other or p.text for other, p in zip(swapped, batch.prompts, strict=True)]
            )
        ordered_B = torch.tensor([other is not None for other in swapped], device=audio_BE.device)
        order_B = (audio_BE * order_BE).sum(dim=-1).masked_fill(~ordered_B, torch.nan)
        self._rows.append((audio_BE.float().cpu(), text_BE.float().cpu(), order_B.float().cpu()))
        self._prompts += batch.prompts

    def _finish(self, name: str) -> None:
        audio_NE, text_NE, order_N = (torch.cat(column) for column in zip(*self._rows, strict=True))
        prompts = self._prompts
        self._rows = []
        self._prompts = []
        self.report = retrieval_report(text_NE @ audio_NE.T, order_N, prompts)
        values = {f"{name}/{key}": value for key, value in self.report.metrics().items()}
        self.log_dict(values, sync_dist=True)  # each process ranks its own share of the clips
        shown = [f"{name}/{key}" for key in ("text_to_audio_r1", "order_accuracy")]
        self.log_dict(
            {f"{key}_now": values[key] for key in shown if key in values},
            prog_bar=True,
            logger=False,
            sync_dist=True,
        )

    def validation_step(self, batch: AudioBatch, batch_index: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def test_step(self, batch: AudioBatch, batch_index: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def configure_optimizers(self):
        found = scheduled_optimizer(
            self.reward.parameters(), self.optimizer, steps_of_run(self.optimizer, self)
        )
        self.follow(found["optimizer"])
        return found

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        self.clip_gradients(optimizer, self.optimizer.max_grad_norm, "norm")

    def export(self, out_dir: str | Path) -> None:
        """Writes the reward with averaged weights to ``out_dir``/model, in half precision."""
        from zoo.hub.artifact import save_artifact

        facts = {} if self.report is None else {"evaluation": asdict(self.report)}
        with self.averaged():
            save_artifact(
                Path(out_dir) / "model",
                kind="reward",
                architecture="clap",
                arguments=self.reward.arguments,
                module=self.reward,
                dtype=torch.float16,
                **facts,
            )
