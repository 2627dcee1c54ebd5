"""Preference pairs: what becomes a pair, what is counted, batches, latents on disk, bad input."""

from __future__ import annotations

import logging

import pytest
import torch
from test_weighted_clips import Codec
from toy_pairs import label_pairs, pair_row, ranked_clips, write_pairs, write_rated
from toy_weighted import SECONDS, write_lines, write_tone

from datamodules.batches import LatentBatch, LatentPairBatch
from datamodules.preferences.streams import Place
from zoo.errors import UserError


def names(pairs) -> list[tuple[str, str]]:
    return [(pair.chosen.name, pair.rejected.name) for pair in pairs]


def ready(folder, **more):
    data = ranked_clips(folder, more.pop("codec", Codec()), **more)
    data.setup("fit")
    return data


# Pairs


def test_comparisons_become_pairs_and_ties_do_not(tmp_path):
    write_pairs(tmp_path, count=4)
    rows = [
        pair_row("one", "p0_a.wav", "p0_b.wav"),
        pair_row("two", "p1_a.wav", "p1_b.wav", 0.0),  # the other one is better
        pair_row("three", "p2_a.wav", "p2_b.wav", 0.5),
        pair_row("four", "p3_a.wav", "p3_b.wav", None)
        | {
            "votes": [
                {"rater": "x", "value": 0.5, "both_bad": True},
                {"rater": "y", "value": 0.5},
            ]
        },
    ]
    write_lines(tmp_path / "pairs.jsonl", rows)
    found = label_pairs(tmp_path).pairs()
    assert names(found.train) == [("p0_a.wav", "p0_b.wav"), ("p1_b.wav", "p1_a.wav")]
    assert [pair.prompt.text for pair in found.train] == ["one", "two"]
    assert found.left_out == {"ties": 2} and found.val == ()


def test_files_of_other_projects_are_pairs_too(tmp_path):
    write_pairs(tmp_path, count=2)
    (tmp_path / "flux.json").write_text(
        '[{"captions": "one", "duration": 0.5, "chosen": "p0_a.wav", "reject": "p0_b.wav"}]'
    )
    (tmp_path / "arena.jsonl").write_text(
        '{"prompt": "two", "model_a": "m", "model_b": "n", "winner": "model_b",'
        ' "audio_a": "p1_a.wav", "audio_b": "p1_b.wav"}\n'
    )
    source = label_pairs(tmp_path)
    source.files = (str(tmp_path / "flux.json"), str(tmp_path / "arena.jsonl"))
    assert names(source.pairs().train) == [("p0_a.wav", "p0_b.wav"), ("p1_b.wav", "p1_a.wav")]


def test_clips_of_a_prompt_are_compared(tmp_path):
    labels = {
        "a dog": [0.2, 0.9, 0.4],
        "a cow": [0.5, 0.5],
        "rain": [1.0],
        "glass": [0.5, 0.6],
    }
    write_rated(tmp_path, labels)
    found = label_pairs(tmp_path, "rated.jsonl").pairs()
    first = ["r0_1.wav", "r0_0.wav"], ["r0_2.wav", "r0_0.wav"], ["r0_1.wav", "r0_2.wav"]
    assert names(found.train) == [*map(tuple, first), ("r3_1.wav", "r3_0.wav")]
    assert found.left_out == {
        "prompts with one clip": 1,
        "prompts whose clips have equal labels": 1,
    }
    wide = label_pairs(tmp_path, "rated.jsonl", minimum_gap=0.45).pairs()
    assert names(wide.train) == [("r0_1.wav", "r0_0.wav"), ("r0_1.wav", "r0_2.wav")]
    assert wide.left_out["prompts whose labels differ by less than minimum_gap"] == 1


def test_held_out_prompts(tmp_path):
    write_rated(tmp_path, {f"sound {i}": [0.0, 1.0] for i in range(12)})
    found = label_pairs(tmp_path, "rated.jsonl", val_share=0.4).pairs()
    assert len(found.train) + len(found.val) == 12 and 2 <= len(found.val) <= 8
    assert not {p.prompt.text for p in found.train} & {p.prompt.text for p in found.val}
    again = label_pairs(tmp_path, "rated.jsonl", val_share=0.4).pairs()
    assert found == again


# Batches


def test_batches_hold_both_clips_of_each_pair(tmp_path):
    codec = Codec()
    data = ready(write_pairs(tmp_path), codec=codec)
    assert data.batch_type is LatentPairBatch and codec.encoded == 8
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 2
    wanted = {}
    for pair in data.source.pairs().train:
        waves = [read(path) for path in (pair.chosen, pair.rejected)]
        wanted[pair.prompt.text] = [codec.encode(wave[None])[0].half().float() for wave in waves]
    seen = set()
    for batch in batches:
        assert isinstance(batch, LatentPairBatch) and len(batch) == 2
        for row, prompt in enumerate(batch.prompts):
            chosen, rejected = wanted[prompt.text]
            assert torch.equal(batch.chosen_BCT[row], chosen)
            assert torch.equal(batch.rejected_BCT[row], rejected)
            assert prompt.seconds == SECONDS
            seen.add(prompt.text)
    assert seen == {prompt.text for prompt in data.all_prompts()} and len(seen) == 4


def read(path):
    from zoo.audio_files import read_audio

    return read_audio(path).samples_CN


def test_winners_come_once_each(tmp_path):
    write_rated(tmp_path, {"a dog": [0.2, 0.9, 0.4], "a cow": [0.1, 0.3]})
    data = ready(tmp_path, source=label_pairs(tmp_path, "rated.jsonl"), batches="winners")
    assert data.batch_type is LatentBatch
    (first, second) = data.train_dataloader()
    assert isinstance(first, LatentBatch) and first.weight_B is None
    assert len(data._train) == 3  # two winners of the dog, one of the cow
    assert len({latent.numpy().tobytes() for latent in data._train.latents}) == 3
    assert {p.text for p in (*first.prompts, *second.prompts)} == {"a dog", "a cow"}


def test_batches_depend_on_epoch_and_rank(tmp_path, monkeypatch):
    import datamodules.preferences.ranked as ranked

    data = ready(write_pairs(tmp_path))
    texts = {}
    for epoch, rank, world in ((0, 0, 1), (1, 0, 1), (0, 0, 2), (0, 1, 2)):
        monkeypatch.setattr(ranked, "place_of", lambda _, p=Place(epoch, rank, world): p)
        batches = [[p.text for p in batch.prompts] for batch in data.train_dataloader()]
        assert batches == [[p.text for p in batch.prompts] for batch in data.train_dataloader()]
        texts[epoch, rank, world] = batches
    assert texts[0, 0, 1] != texts[1, 0, 1]
    assert [len(texts[0, rank, 2]) for rank in (0, 1)] == [1, 1]
    own, other = (set(texts[0, rank, 2][0]) for rank in (0, 1))
    assert own | other == set(sum(texts[0, 0, 1], [])) and not own & other


def test_latents_are_made_once(tmp_path):
    write_pairs(tmp_path)
    first, second = Codec(), Codec()
    for codec in (first, second):
        ready(tmp_path, codec=codec, cache_dir=str(tmp_path / "latents"))
    assert (first.encoded, second.encoded) == (8, 0)


# Bad input


def test_a_pair_of_equal_clips_is_no_pair(tmp_path, caplog):
    write_pairs(tmp_path, count=3)
    audio = tmp_path / "audio"
    (audio / "p1_b.wav").write_bytes((audio / "p1_a.wav").read_bytes())
    with caplog.at_level(logging.INFO):
        data = ready(tmp_path)
    assert len(data._train) == 2 and data.left_out == {"pairs of equal clips": 1}
    assert "pairs of equal clips" in caplog.text
    for number in range(3):
        (audio / f"p{number}_b.wav").write_bytes((audio / f"p{number}_a.wav").read_bytes())
    with pytest.raises(UserError, match="all 3 pairs"):
        ready(tmp_path)


def test_without_a_pair_there_is_nothing_to_learn(tmp_path):
    write_rated(tmp_path, {"a cow": [0.5, 0.5], "rain": [1.0]})
    source = label_pairs(tmp_path, "rated.jsonl")
    with pytest.raises(UserError, match="1 prompts with one clip"):
        ready(tmp_path, source=source)
    with pytest.raises(UserError, match="no pair"):
        ranked_clips(tmp_path, Codec(), source).check_files()


def test_clips_that_vanished_are_named(tmp_path, caplog):
    write_pairs(tmp_path)
    (tmp_path / "audio/p2_b.wav").unlink()
    with caplog.at_level(logging.WARNING):
        data = ready(tmp_path)
    assert len(data._train) == 3 and list(data.source.quarantined) == ["p2_b.wav"]
    assert "p2_b.wav" in caplog.text


def test_a_prompt_is_in_one_split(tmp_path):
    write_pairs(tmp_path)
    rows = [
        pair_row("Rain.", "p0_a.wav", "p0_b.wav", split="train"),
        pair_row("rain", "p1_a.wav", "p1_b.wav", split="val"),
    ]
    write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError, match="splits train and val"):
        label_pairs(tmp_path).pairs()
    rows[1]["prompt"], rows[1]["split"] = "snow", ""
    write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError, match="name a split"):
        label_pairs(tmp_path).pairs()


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"minimum_gap": 1.0}, "minimum_gap"), ({"val_share": -0.1}, "val_share")],
)
def test_wrong_settings_are_named(tmp_path, settings, named):
    with pytest.raises(UserError, match=named):
        label_pairs(tmp_path, **settings)
    with pytest.raises(UserError, match="batch_size 0"):
        ranked_clips(tmp_path, batch_size=0)


def test_a_longer_clip_is_cut(tmp_path):
    write_pairs(tmp_path, count=1)
    write_tone(tmp_path / "audio/p0_a.wav", 500, seconds=3 * SECONDS)
    (batch,) = ready(tmp_path, batch_size=1).train_dataloader()
    assert batch.chosen_BCT.shape == batch.rejected_BCT.shape == (1, 1, 10)
