"""Labels of clips: what a table must hold, splits by prompt, pairs and batches."""

import pytest
from toy_preferences import rated

from datamodules.preferences.pairs import ordered_pairs
from datamodules.rated_clips import RatedClips, by_split, split_of
from zoo.errors import UserError


def test_no_prompt_crosses_a_split():
    rows = [("", rated(i % 2, f"prompt {i // 3}", f"{i}.wav")) for i in range(300)]
    splits = by_split(rows, seed=3, val_share=0.2, test_share=0.3)
    groups = {name: {clip.group for clip in clips} for name, clips in splits.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 100
    assert sum(map(len, splits.values())) == 300
    assert 10 <= len(groups["val"]) <= 32 and 18 <= len(groups["test"]) <= 44
    more = by_split([*rows, ("", rated(1, "new", "new.wav"))], 3, 0.2, 0.3)
    for name, own in groups.items():  # a new prompt moves no old one
        assert {clip.group for clip in more[name]} - {"new"} == own
    assert split_of("a", 0, 0.0, 0.0) == "train" and split_of("a", 0, 0.0, 1.0) == "test"


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([("train", rated(1, "p", "a")), ("val", rated(0, "p", "b"))], "'p'"),
        ([("train", rated(1, "p", "a.wav")), ("val", rated(0, "q", "a.wav"))], "a.wav"),
        ([("train", rated(1, "p", "a.wav")), ("train", rated(0, "p", "a.wav"))], "a.wav"),
        ([("train", rated(1)), ("", rated(0, "q", "b"))], "split"),
        ([("train", rated(1)), ("test", rated(0, "q", "b"))], "val"),
        ([], "train"),
    ],
)
def test_what_no_split_may_hold(rows, named):
    with pytest.raises(UserError, match=named):
        by_split(rows, 0, 0.2, 0.2)


def test_two_listeners_may_judge_a_clip():
    rows = [("train", rated(1, listener=name)) for name in ("ann", "bob")]
    rows.append(("val", rated(0, "q", "b")))
    assert len(by_split(rows, 0, 0.2, 0.2)["train"]) == 2


def test_pairs_never_mix_prompts_and_need_a_difference():
    labels = [1, 0, 0.5, 1, 1, 0]
    groups = ["a", "a", "a", "b", "b", "c"]
    assert ordered_pairs(labels, groups) == [(0, 1), (0, 2), (2, 1)]
    # BATON's order is that of the clips, not that of the better one
    assert ordered_pairs([0, 1, 0, 1], "pppp") == [(1, 0), (3, 0), (1, 2), (3, 2)]


class Rows:
    def __init__(self, rows) -> None:
        self.rows = rows

    def rated_clips(self):
        return self.rows


def data(batches: str = "clips", **settings) -> RatedClips:
    rows = [
        (split, rated(i % 2, f"{split} {i // 4}", f"{split}{i}.wav"))
        for split, count in (("train", 24), ("val", 8), ("test", 4))
        for i in range(count)
    ]
    made = RatedClips(Rows(rows), batches, **settings)
    made.setup()
    return made


def test_an_epoch_has_every_clip_once():
    made = data(batch_size=7)
    batches = list(made.train_dataloader())
    assert [len(batch) for batch in batches] == [7, 7, 7, 3] and len(made.train_dataloader()) == 4
    seen = [clip for batch in batches for clip in batch.clips]
    assert sorted(map(str, seen)) == sorted(map(str, made.train)) and seen != list(made.train)
    assert [batch.clips for batch in made.train_dataloader()] == [batch.clips for batch in batches]


def test_an_epoch_has_every_pair_once():
    made = data("pairs", batch_size=5)
    pairs = [
        (batch.clips[better], batch.clips[worse])
        for batch in made.train_dataloader()
        for better, worse in batch.pairs
    ]
    assert len(pairs) == len(set(pairs)) == 6 * 4  # two good and two bad clips of each prompt
    assert all((a.label, b.label, a.group) == (1, 0, b.group) for a, b in pairs)
    (held_out,) = made.val_dataloader()
    assert len(held_out.clips) == 8 and len(held_out) == 2 * 4


def test_pairs_are_of_one_listener():
    both = [("train", rated(i % 2, "p", f"{i}", listener="ab"[i // 2])) for i in range(4)]
    val = [("val", rated(i, "q", f"v{i}")) for i in range(2)]
    made = RatedClips(Rows([*both, *val]), "pairs")
    made.setup()
    assert made.pairs("train") == [(1, 0), (3, 2)]


def test_dropped_clips_are_gone_from_pairs_too():
    made = data("pairs")
    gone = made.train[1].audio
    made.pairs("train")
    made.drop_clips([gone])
    assert len(made.train) == 23 and len(made.pairs("train")) == 6 * 4 - 2
    with pytest.raises(UserError, match="val"):
        made.drop_clips([clip.audio for clip in made.splits["val"]])


def test_pairs_need_a_difference_somewhere():
    rows = [(split, rated(1, split, f"{split}{i}")) for split in ("train", "val") for i in range(3)]
    with pytest.raises(UserError, match="no pairs"):
        RatedClips(Rows(rows), "pairs").setup()


@pytest.mark.parametrize(
    "settings", [{"batch_size": 0}, {"val_share": 0.6, "test_share": 0.4}, {"val_share": -0.1}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        RatedClips(Rows([]), **settings)
