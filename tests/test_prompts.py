"""The rounds made of prompts, their shards, held-out prompts, and exact resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch

from datamodules.batches import PromptBatch
from datamodules.prompt_sources import template_prompts
from datamodules.prompts import PromptDataModule, PromptRounds, round_prompts, shard

TEMPLATE = "A recording of a {word} {instrument} solo, high quality"
WORDS = {"happy": ["happy", "joyful"], "sad": ["sad", "mournful"]}
INSTRUMENTS = ["piano", "guitar"]


def module(**changes) -> PromptDataModule:
    settings = {
        "template": TEMPLATE,
        "words": WORDS,
        "instruments": INSTRUMENTS,
        "held_out": [["joyful", "piano"], ["mournful", "guitar"]],
        "negative": "Low quality",
        "prompts_per_round": 4,
        "repeats": 2,
        "seed": 3,
    }
    return PromptDataModule(**(settings | changes))


def test_rounds_deal_every_prompt_before_any_repeats() -> None:
    prompts = template_prompts(TEMPLATE, WORDS, INSTRUMENTS)
    dealt = [p.id for r in range(8) for p in round_prompts(prompts, 3, 1, 0, r).prompts]
    assert [set(Counter(dealt[i : i + 8]).values()) for i in range(0, 24, 8)] == [{1}] * 3
    assert dealt[:8] != dealt[8:16] and dealt[:8] != [p.id for p in prompts]


def test_a_round_depends_on_seed_and_index_only() -> None:
    prompts = template_prompts(TEMPLATE, WORDS, INSTRUMENTS)
    torch.manual_seed(1)
    first = round_prompts(prompts, 4, 2, 5, 7)
    torch.manual_seed(2)
    assert round_prompts(prompts, 4, 2, 5, 7) == first
    assert round_prompts(prompts, 4, 2, 6, 7).prompts != first.prompts
    assert (
        first.round_index == 7
        and first.prompts[:4] == first.prompts[4:]
        and first.sample_index == (0,) * 4 + (1,) * 4
    )


def test_a_prompt_dealt_twice_in_a_round_gets_its_own_noise() -> None:
    prompts = template_prompts(TEMPLATE, {"sad": ["sad"]}, ["piano"])
    assert round_prompts(prompts, 3, 2, 0, 0).sample_index == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_ranks_together_are_the_round(world_size: int) -> None:
    whole = round_prompts(template_prompts(TEMPLATE, WORDS, INSTRUMENTS), 4, 2, 0, 1)
    parts = [shard(whole, rank, world_size) for rank in range(world_size)]
    assert tuple(p for part in parts for p in part.prompts) == whole.prompts
    assert tuple(i for part in parts for i in part.sample_index) == whole.sample_index
    assert {part.round_index for part in parts} == {1}


def test_samples_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="8 .* 3"):
        shard(round_prompts(template_prompts(TEMPLATE, WORDS, INSTRUMENTS), 4, 2, 0, 1), 0, 3)


class FakeTrainer:
    def __init__(self, world_size: int, global_rank: int = 0) -> None:
        self.world_size = world_size
        self.global_rank = global_rank


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({}, 3, "prompts_per_round . repeats = 8 samples"),
        ({"val_repeats": 3}, 4, "2 held-out prompts . val_repeats = 6 samples"),
    ],
)
def test_setup_refuses_sizes_that_do_not_divide(
    changes: dict, world_size: int, message: str
) -> None:
    data = module(**changes)
    data.trainer = FakeTrainer(world_size)
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


def test_setup_takes_the_rank() -> None:
    data = module()
    data.trainer = FakeTrainer(2, 1)
    data.setup("fit")
    whole = round_prompts(data.train_prompts, 4, 2, 3, 0)
    assert next(iter(data.train_dataloader())) == shard(whole, 1, 2)
    assert [p.text for p in next(iter(data.val_dataloader())).prompts] == [
        "A recording of a mournful guitar solo, high quality"
    ]


def test_held_out_pairs_are_validated_and_never_trained_on() -> None:
    data = module(val_repeats=2)
    assert len(data.train_prompts) == 6 and not set(data.train_prompts) & set(
        data.validation_prompts
    )
    (batch,) = data.val_dataloader()
    assert [p.labels["word"] for p in batch.prompts] == ["joyful", "mournful"] * 2
    assert batch.sample_index == (0, 0, 1, 1) and batch.round_index == 0
    assert [p.labels["word"] for p in module(val_prompts=1).val_dataloader().batch.prompts] == [
        "joyful"
    ]
    assert module(val_prompts=0).val_dataloader() == module(held_out=[]).val_dataloader() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": [["joyfull", "piano"]]}, "did you mean 'joyful'"),
        ({"held_out": [["joyful", "harp"]]}, "unknown instrument 'harp'"),
        ({"held_out": ["joyful"]}, r"\[word, instrument\] pairs, got 'joyful'"),
        ({"held_out": [["joyful"]]}, r"\[word, instrument\] pairs"),
        (
            {"held_out": [[w, i] for words in WORDS.values() for w in words for i in INSTRUMENTS]},
            "none is left to train on",
        ),
        ({"prompts_per_round": 0}, "prompts_per_round must be at least 1, got 0"),
        ({"val_repeats": 0}, "val_repeats must be at least 1"),
        ({"val_prompts": -1}, "val_prompts must be 0"),
        ({"file": "p.txt"}, "exactly one of template"),
        ({"template": None}, "exactly one of template"),
        ({"template": None, "file": "p.txt"}, "belong to a template"),
        ({"val_file": "p.txt"}, "drop one of them"),
        ({"val_template": "a {word} {instrument}"}, "held_out and val_template both"),
        (
            {"held_out": [], "val_template": "a {word} {instrument}", "val_file": "p.txt"},
            "drop one of them",
        ),
        ({"held_out": [], "val_template": "a {wort} {instrument}"}, "did you mean 'word'"),
        (
            {
                "template": None,
                "words": None,
                "instruments": None,
                "held_out": None,
                "val_template": "x",
                "file": "p",
            },
            "belong",
        ),
        ({"words": "emotion_16"}, "unknown list of words 'emotion_16'; did you mean 'emotions_16'"),
        (
            {"instruments": "instrument_3"},
            "unknown list of instruments 'instrument_3'; did you mean 'instruments_3'",
        ),
    ],
)
def test_settings_that_contradict_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        module(**changes)


def test_files_for_training_and_validation(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("rain\nwind\n")
    (tmp_path / "b.txt").write_text("hail\n")
    data = PromptDataModule(
        file=str(tmp_path / "a.txt"),
        val_file=str(tmp_path / "b.txt"),
        prompts_per_round=2,
        repeats=1,
    )
    assert {p.text for p in next(iter(data.train_dataloader())).prompts} == {"rain", "wind"}
    assert [p.text for p in next(iter(data.val_dataloader())).prompts] == ["hail"]


def test_training_words_are_validated_with_other_wording_or_noise() -> None:
    data = module(
        held_out=[],
        val_template="a recording of {article} {word} {instrument}",
        words="emotions_4",
        val_repeats=3,
    )
    (batch,) = data.val_dataloader()
    assert len(batch) == 3 * 4 * 2 and {p.text for p in batch.prompts} >= {
        "a recording of an angry piano"
    }
    assert [p.labels["mood"] for p in batch.prompts[:8]] == [
        "happy",
        "happy",
        "angry",
        "angry",
        "sad",
        "sad",
        "tender",
        "tender",
    ]
    (same,) = module(held_out=[], val_template=TEMPLATE).val_dataloader()
    assert (
        set(same.prompts) == set(data_of := module(held_out=[]).train_prompts) and len(data_of) == 8
    )
    rounds = {
        batch.round_index for batch in module(held_out=[], rounds_per_epoch=5).train_dataloader()
    }
    assert same.round_index == -1 and rounds == {0, 1, 2, 3, 4}, "noise is keyed by the round"


def test_epochs_go_on_where_the_last_stopped() -> None:
    rounds = PromptRounds(
        template_prompts(TEMPLATE, WORDS, INSTRUMENTS), 2, 1, rounds_per_epoch=3, seed=0
    )
    assert len(rounds) == 3
    assert [[batch.round_index for batch in rounds] for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]


def test_a_checkpoint_of_other_prompts_is_refused() -> None:
    state = module().state_dict()
    module().load_state_dict(state)
    for changes in ({"seed": 4}, {"repeats": 4}, {"negative": "hum"}, {"held_out": []}):
        with pytest.raises(ValueError, match="cannot be continued exactly"):
            module(**changes).load_state_dict(state)


class Recorder(L.LightningModule):
    """Learns nothing and records the rounds it gets, with their epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, PromptBatch]] = []
        self.validated: list[PromptBatch] = []

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.seen.append((self.current_epoch, batch))

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveEveryRound(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.save_checkpoint(self.folder / f"{self.count}.ckpt")
        self.count += 1


def fit(
    data: PromptDataModule, folder: Path, epochs: int, resume: Path | None = None, callbacks=()
) -> Recorder:
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )
    trainer.fit(recorder, data, ckpt_path=resume, weights_only=True if resume else None)
    return recorder


@pytest.mark.parametrize("rounds_per_epoch", [1, 2])
def test_a_fit_resumed_after_any_round_sees_the_rounds_that_were_left(
    tmp_path: Path, rounds_per_epoch: int
) -> None:
    rounds = {"rounds_per_epoch": rounds_per_epoch}
    whole = fit(
        module(**rounds), tmp_path, 4 // rounds_per_epoch, callbacks=[SaveEveryRound(tmp_path)]
    )
    assert [batch.round_index for _, batch in whole.seen] == [0, 1, 2, 3]
    assert len(whole.validated) == 4 // rounds_per_epoch and {
        len(batch) for batch in whole.validated
    } == {2}
    for done in range(3):
        resumed = fit(
            module(**rounds), tmp_path, 4 // rounds_per_epoch, resume=tmp_path / f"{done}.ckpt"
        )
        assert resumed.seen == whole.seen[done + 1 :]
