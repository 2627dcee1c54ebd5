"""A model's own clips, labels by a stand-in, and the report page of training on clips."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from toys import small_audio

from datamodules.batches import LatentBatch
from datamodules.preferences.dialects import read_labels, write_labels
from datamodules.preferences.recorded import LabelledAgain
from datamodules.preferences.stand_in import StandInLabels, above_prompt_mean
from lightning_modules.before_after import BeforeAfter
from lightning_modules.denoising import Denoising
from lightning_modules.own_clips import OwnClips, make_clips
from lightning_modules.report import draw_losses, read_samples
from lightning_modules.rl.settings import SamplerSettings
from lightning_modules.training_settings import ScheduleSettings
from zoo.audio_files import read_audio, write_audio
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.generations import Sample
from zoo.types import Prompt, RewardOutput, Vote, Waveform

SHORT = SamplerSettings(steps=2, guidance_scale=1.0, eta=0.0, batch_size=4)


class Loudness:
    """A reward that scores the level, or NaN."""

    differentiable = True
    name = "loudness"
    unit = "mean square"

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(self.factor * wave_BCN.square().mean(dim=(1, 2)))


@dataclass
class Clips:
    """Clips of one second at three levels, as ``OwnClips`` gives them."""

    folder: Path
    scorer: str = "level"
    asked: int = 0

    def samples(self) -> tuple[Sample, ...]:
        found = []
        for place, text in enumerate(("a cow", "a crow")):
            for level in (1, 2, 3):
                path = self.folder / f"{place}_{level}.wav"
                write_audio(path, Waveform(torch.full((2, 160), level / 10), 16_000))
                found.append(Sample(path, Prompt(text, text, seconds=0.01), level))
        return tuple(found)

    def scores(self) -> list[float]:
        self.asked += 1
        return [float(sample.seed) for sample in self.samples()]


def prompts(count: int) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"p{i}", f"sound {i}", seconds=0.512, labels={"relation": "then"})
        for i in range(count)
    )


def test_the_better_clips_of_each_prompt_are_good() -> None:
    scores = [0.1, 0.3, 0.2, 0.9, 0.8, 0.5, 0.5]
    assert above_prompt_mean(scores, list("aaabbcc")) == [0, 1, 0, 1, 0, 0, 0]


def test_labels_of_the_stand_in_are_written_once_and_may_be_corrected(tmp_path: Path) -> None:
    clips = Clips(tmp_path)
    source = StandInLabels(clips)
    rows = source.rated_clips()
    assert [(clip.prompt, clip.label) for _, clip in rows] == [
        *(("a cow", float(good)) for good in (0, 0, 1)),
        *(("a crow", float(good)) for good in (0, 0, 1)),
    ]
    records = list(read_labels(tmp_path / "labels.jsonl").checked())
    assert {vote.rater for record in records for vote in record.votes} == {"stand-in level"}
    people = [
        replace(record, votes=(*record.votes, Vote("ann", 1.0)), label=None) for record in records
    ]
    write_labels(people, tmp_path / "labels.jsonl", "attune")
    # the stand-in said 0, 0, 1
    assert [clip.label for _, clip in source.rated_clips()] == [0.5, 0.5, 1.0] * 2
    assert clips.asked == 1
    write_labels(people[:-1], tmp_path / "labels.jsonl", "attune")
    with pytest.raises(UserError, match="1_3.wav"):
        source.rated_clips()


def test_the_labelled_clips_again_are_all_of_them_without_weights(tmp_path: Path) -> None:
    source = StandInLabels(Clips(tmp_path))
    train, val = LabelledAgain(source, 16_000, 2, 0.01).clip_sets()
    assert len(train) == 6 and len(val) == 0
    assert train.prompt(5, random.Random(0)).text == "a crow"
    assert torch.allclose(train.wave(5), torch.full((2, 160), 0.3), atol=1e-4)


def test_own_clips_are_scored_in_order_and_a_bad_reward_is_named(tmp_path: Path) -> None:
    both = (prompts(2), prompts(3)[2:])
    own = OwnClips(small_audio(), Loudness(), both, str(tmp_path), clips=3, sampler=SHORT, seed=2)
    samples = own.samples()
    assert [(sample.prompt.id, sample.seed) for sample in samples] == [
        (f"p{i}", seed) for i in range(2) for seed in (6, 7, 8)
    ]
    levels = [float(read_audio(one.path).samples_CN.square().mean()) for one in samples]
    assert own.scores() == pytest.approx(levels)
    own.reward = Loudness(float("nan"))
    with pytest.raises(UserError, match="loudness"):
        own.scores()


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"prompts": ()}])
def test_no_clips_are_refused(tmp_path: Path, wrong: dict) -> None:
    arguments = {"prompts": prompts(1), "folder": str(tmp_path)} | wrong
    with pytest.raises(UserError, match=next(iter(wrong))):
        OwnClips(small_audio(), Loudness(), **arguments)


def test_clips_are_made_once_and_go_on(tmp_path: Path) -> None:
    backbone = small_audio()
    wanted = prompts(3)
    sampler = Sampler(2, 1.0, 0.0)
    make_clips(tmp_path, backbone, wanted[:2], [5, 6], sampler)
    first = (tmp_path / "000_5.wav").read_bytes()
    (tmp_path / "000_5.wav").write_bytes(first[:-2] + b"\0\0")  # a trace that it is kept
    made = make_clips(tmp_path, backbone, wanted, [5, 6], sampler)
    assert [clip.path.name for clip in made[::3]] == ["000_5.wav", "001_6.wav"]
    assert (tmp_path / "000_5.wav").read_bytes()[-2:] == b"\0\0"
    alone = make_clips(tmp_path / "other", backbone, wanted, [6], sampler)
    with_others = read_audio(tmp_path / "002_6.wav").samples_CN
    apart = (read_audio(alone[2].path).samples_CN - with_others).abs().max()
    assert float(apart) < 1e-3  # the same noise, rounded in another batch
    assert float(with_others.abs().max()) > 0.05
    with pytest.raises(UserError, match="sound 0"):
        make_clips(tmp_path, backbone, wanted[::-1], [5], sampler)


class OneBatch(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> LatentBatch:
        latents = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(index))
        return LatentBatch(latents, prompts(2))


def test_a_run_on_clips_leaves_a_page_with_its_averaged_weights(tmp_path: Path) -> None:
    import lightning as L

    backbone = small_audio()
    module = Denoising(
        backbone,
        ScheduleSettings(learning_rate=0.03, total_steps=6, warmup_steps=1),
        ema_decay=0.9,
        trainable=("denoiser",),
    )
    heard = BeforeAfter((prompts(1), prompts(3)), Loudness(), SHORT, count=2)
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[heard],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(OneBatch(), batch_size=None))
    before = read_samples(tmp_path / "audio" / "before")
    after = read_samples(tmp_path / "audio" / "after")
    assert [one.text for one in before] == [one.text for one in after] == ["sound 0", "sound 1"]
    assert before[0].score != after[0].score
    with module.averaged():
        averaged = heard._played(module)
    assert [one.score for one in averaged] == pytest.approx([one.score for one in after])
    plain = heard._played(module)
    assert plain[0].score != averaged[0].score  # the averages are heard, not the last weights
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<audio") == 4 and "mean square" in page


def test_losses_are_drawn_where_there_are_any(tmp_path: Path) -> None:
    rows = [{"step": float(i), "train/loss": 1 / (1 + i)} for i in range(3)]
    assert draw_losses(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not draw_losses([{"step": 1.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
