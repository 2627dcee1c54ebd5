"""Weighted clips: weights from labels, two paired streams, latents on disk, and bad input."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from toy_backbones import build
from toy_preferences import rated
from toy_weighted import (
    LABELS,
    RATE_HZ,
    label_files,
    label_row,
    recordings,
    weighted_clips,
    write_corpus,
    write_lines,
    write_tone,
)

from datamodules.batches import LatentBatch, PairedBatch, RatedClip
from datamodules.cache import LatentCache, encode_clips
from datamodules.latent_store import PER_FILE, LatentStore, encoder_id, wave_key
from datamodules.preferences.rated import LabelFiles
from datamodules.preferences.recorded import CaptionedFiles
from datamodules.preferences.reward_weights import RewardTransform
from datamodules.preferences.streams import PairedEpoch, Place, Rows, Stream
from datamodules.preferences.weighted import MixingSettings, Mixtures, WeightedClips
from datamodules.sounds.mixing import mixed
from zoo.errors import UserError
from zoo.types import Prompt


class Codec(torch.nn.Module):
    """A mono encoder that counts the clips it encodes: frames of 800 samples, doubled."""

    sample_rate_hz = RATE_HZ
    channels = 1

    def __init__(self, scale: float = 2.0, frame: int = 800) -> None:
        super().__init__()
        self.arguments = {"frame": frame}
        self.frame = frame
        self.codec = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.codec.weight, scale)
        self.denoiser = torch.nn.Linear(1, 1)
        self.encoded = 0

    def encode(self, wave_BCN):
        self.encoded += len(wave_BCN)
        return self.codec.weight * wave_BCN.unflatten(-1, (-1, self.frame)).mean(-1)


def ready(data: WeightedClips) -> WeightedClips:
    data.setup("fit")
    return data


CLIPS = [rated(label, f"prompt {i // 3}", f"{i}.wav") for i, label in enumerate((1, 0, 0.5, 0.9))]


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, [1, 0, 0.5, 0.9]),
        ({"kind": "thresholded"}, [1, 0, 1, 1]),
        ({"kind": "thresholded", "threshold": 0.9}, [1, 0, 0, 1]),
        ({"kind": "centred"}, [0.5, -0.5, 0, 0]),  # the mean of the first prompt is 0.5
        ({"kind": "normalised"}, [1 / 0.6, 0, 0.5 / 0.6, 1.5]),
        ({"kind": "constant"}, [1, 1, 1, 1]),
        ({"kind": "constant", "value": 0}, [0, 0, 0, 0]),
    ],
)
def test_labels_become_weights(settings, weights):
    assert RewardTransform(**settings).weights(CLIPS) == pytest.approx(weights)


def test_weights_that_learn_nothing_are_refused():
    good = [rated(1, "a", "0.wav"), rated(1, "b", "1.wav")]
    for settings, clips in (
        ({"kind": "centred"}, good),  # one clip per prompt
        ({}, [rated(0, "a", "0.wav")]),
        ({"kind": "normalised"}, [rated(0, "a", "0.wav")]),
        ({"kind": "thresholded", "threshold": 1.0}, [rated(0.9, "a", "0.wav")]),
    ):
        with pytest.raises(UserError, match="all . weights are 0"):
            RewardTransform(**settings).weights(clips)
    for settings, named in (
        ({"kind": "centered"}, "centred"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"value": float("nan")}, "value nan"),
    ):
        with pytest.raises(UserError, match=named):
            RewardTransform(**settings)


def test_batches_hold_clips_prompts_and_weights(tmp_path):
    codec = Codec()
    data = ready(weighted_clips(write_corpus(tmp_path), codec))
    assert data.batch_type is PairedBatch
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 3  # 5 labelled clips in pairs
    label_of = {clip.audio.name: (clip.prompt, clip.label) for clip in data.clips}
    assert [label for _, label in label_of.values()] == [1, 0.5, 0, 0, 1]  # HD, then RD
    seen = set()
    for batch in batches:
        assert isinstance(batch, PairedBatch) and len(batch) == len(batch.pretrain) == 2
        assert batch.labelled.latent_BCT.shape == (2, 1, 10)
        assert batch.labelled.latent_BCT.dtype == torch.float32
        assert batch.pretrain.weight_B is None
        for prompt, weight in zip(batch.labelled.prompts, batch.labelled.weight_B, strict=True):
            assert (prompt.text, float(weight)) == label_of[prompt.id] and prompt.seconds == 0.5
            seen.add(prompt.id)
        assert all(prompt.id.startswith("r") for prompt in batch.pretrain.prompts)
    assert seen == set(label_of)
    row = data.rows["labelled"].prompts.index(batches[0].labelled.prompts[0])
    latent = data.rows["labelled"].latents[row]
    assert latent.dtype == torch.float16
    assert torch.equal(batches[0].labelled.latent_BCT[0], latent.float())
    (val,) = data.val_dataloader()
    assert isinstance(val, LatentBatch) and len(val) == 3 and val.weight_B is None
    plain = ready(weighted_clips(tmp_path, codec, pretrain=False))
    assert plain.batch_type is LatentBatch and plain.val_dataloader() == []
    assert all(isinstance(batch, LatentBatch) for batch in plain.train_dataloader())


def test_weights_of_whole_numbers_are_numbers_of_the_loss(tmp_path):
    codec = Codec()
    whole = RewardTransform("constant", value=1)  # "value: 1" in a YAML
    data = ready(weighted_clips(write_corpus(tmp_path), codec, rewards=whole))
    weight_B = next(iter(data.train_dataloader())).labelled.weight_B
    assert weight_B.dtype == torch.float32 and weight_B.tolist() == [1, 1]


def rows(count: int) -> Rows:
    prompts = tuple(Prompt(str(i), "x") for i in range(count))
    return Rows(torch.arange(count).reshape(count, 1), prompts)


def ids(batches) -> list[list[int]]:
    return [batch.latent_BCT.flatten().int().tolist() for batch in batches]


def test_the_published_streams_and_their_pairings():
    """BATON: 2,500 clips by 6 against 2,099 by 2, on one device."""

    def streams():
        sizes = ((2099, 2), (2500, 6))
        return [Stream([(rows(n), size)], str(n), 0, Place()) for n, size in sizes]

    assert [len(stream) for stream in streams()] == [1050, 417]
    assert len(PairedEpoch(streams, "max_size_cycle")) == 1050
    assert len(PairedEpoch(streams, "min_size")) == 417
    cycled = list(PairedEpoch(streams, "max_size_cycle"))
    assert len(cycled) == 1050
    labelled = [i for batch in ids(pair.labelled for pair in cycled) for i in batch]
    assert set(labelled) == set(range(2099)) and len(labelled) == 2100
    pretrain = ids(pair.pretrain for pair in cycled)
    passes = [[i for batch in pretrain[a : a + 417] for i in batch] for a in (0, 417)]
    assert all(set(one) == set(range(2500)) and len(one) == 2502 for one in passes)
    assert passes[0] != passes[1], "a repeated stream comes in another order"
    stopped = list(PairedEpoch(streams, "min_size"))
    seen = {i for batch in ids(pair.labelled for pair in stopped) for i in batch}
    assert len(stopped) == 417 and len(seen) == 834  # two fifths of the labels


def test_batches_are_a_function_of_seed_epoch_number_and_rank():
    def batches(seed=0, epoch=0, rank=0, world=1, size=2):
        part = [(rows(7), size)]
        return ids(Stream(part, "labelled", seed, Place(epoch, rank, world)))

    assert batches() == batches()
    assert batches() != batches(seed=1) and batches() != batches(epoch=1)
    first, second = batches(rank=0, world=2), batches(rank=1, world=2)
    assert len(first) == len(second) == 2, "every process has as many batches"
    together = [a + b for a, b in zip(first, second, strict=True)]
    assert together == batches(size=4), "two processes see what one sees with twice the batch"
    assert {i for batch in together for i in batch} == set(range(7))
    assert {len(batch) for batch in first + second} == {2}, "all batches have one size"
    tiny = ids(Stream([(rows(1), 3)], "x", 0, Place(world=2)))
    assert tiny == [[0, 0, 0]]


def test_an_epoch_can_be_read_twice(tmp_path):
    data = ready(weighted_clips(write_corpus(tmp_path), Codec()))
    loader = data.train_dataloader()
    first, second = ([pair.labelled.prompts for pair in loader] for _ in range(2))
    assert first == second


def test_mixtures_join_the_pretraining_stream_alone(tmp_path):
    codec = Codec()
    mixing = MixingSettings(pool=5, per_batch=3)
    data = ready(weighted_clips(write_corpus(tmp_path), codec, mixing=mixing))
    assert len(data.rows["mixtures"]) == 5
    for pair in data.train_dataloader():
        plain, made = pair.pretrain.prompts[:2], pair.pretrain.prompts[2:]
        assert len(made) == 3 and all(" and " in p.text and "+" in p.id for p in made)
        assert not any("+" in p.id for p in (*plain, *pair.labelled.prompts))
    train, _ = recordings(tmp_path).clip_sets()
    mixtures = Mixtures(train, 5, RATE_HZ, 0)
    a, b = mixtures.pairs[0]
    wanted = mixed(train.wave(a)[0], train.wave(b)[0], RATE_HZ)
    assert a != b and torch.equal(mixtures.wave(0)[0], wanted)
    latent = codec.encode(wanted[None, None])[0].half()
    assert torch.equal(data.rows["mixtures"].latents[0], latent)
    texts = {prompt.text for prompt in data.all_prompts()}
    assert {p.text for p in data.rows["mixtures"].prompts} <= texts and len(texts) > 5


def test_a_mixture_needs_two_mono_clips(tmp_path):
    write_corpus(tmp_path, pretrain=1)
    train, _ = recordings(tmp_path).clip_sets()
    with pytest.raises(UserError, match="two clips"):
        Mixtures(train, 2, RATE_HZ, 0)
    write_corpus(tmp_path)
    stereo, _ = recordings(tmp_path, channels=2).clip_sets()
    with pytest.raises(UserError, match="mono"):
        Mixtures(stereo, 2, RATE_HZ, 0).wave(0)


# Latents on disk


def test_latents_are_made_once(tmp_path):
    write_corpus(tmp_path)
    first, second = Codec(), Codec()
    cache = str(tmp_path / "latents")
    made = ready(weighted_clips(tmp_path, first, cache_dir=cache))
    assert first.encoded == 5 + 4 + 3
    with torch.no_grad():
        second.denoiser.weight.add_(1)  # a fine-tuned model shares the latents of its base
    again = ready(weighted_clips(tmp_path, second, cache_dir=cache))
    assert second.encoded == 0
    for name, own in made.rows.items():
        assert torch.equal(own.latents, again.rows[name].latents)
    write_tone(tmp_path / "audio/made/0000.wav", 777)  # another sound under the old name
    third = Codec()
    changed = ready(weighted_clips(tmp_path, third, cache_dir=cache))
    assert third.encoded == 1
    assert not torch.equal(changed.rows["labelled"].latents[0], made.rows["labelled"].latents[0])


def test_latents_of_another_encoder_are_not_used(tmp_path, caplog):
    write_corpus(tmp_path)
    cache = tmp_path / "latents"
    old = Codec()
    ready(weighted_clips(tmp_path, old, cache_dir=str(cache)))
    for other in (Codec(scale=3.0), Codec(frame=400)):
        data = ready(weighted_clips(tmp_path, other, cache_dir=str(cache)))
        assert other.encoded == 12
        expected = other.encode(torch.zeros(1, 1, 8000)).shape[1:]
        assert data.rows["labelled"].latents.shape[1:] == expected
    assert len(list(cache.iterdir())) == 3
    folder = LatentStore(cache, old).folder  # a copy of it under another encoder's name
    moved = folder.rename(LatentStore(cache, Codec(scale=9.0)).folder)
    ninth = Codec(scale=9.0)
    with caplog.at_level(logging.WARNING):
        ready(weighted_clips(tmp_path, ninth, cache_dir=str(cache)))
    assert ninth.encoded == 12 and "another encoder" in caplog.text and moved.is_dir()


def test_damaged_and_half_written_files_are_not_served(tmp_path, caplog):
    write_corpus(tmp_path)
    cache = tmp_path / "latents"
    ready(weighted_clips(tmp_path, Codec(), cache_dir=str(cache)))
    (folder,) = cache.iterdir()
    files = sorted(folder.iterdir())
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    (folder / ".left.12.part.safetensors").write_bytes(whole)  # of a killed process
    codec = Codec()
    with caplog.at_level(logging.WARNING):
        data = ready(weighted_clips(tmp_path, codec, cache_dir=str(cache)))
    assert 0 < codec.encoded < 12 and files[0].name in caplog.text
    fresh = ready(weighted_clips(tmp_path, Codec()))
    for name, own in fresh.rows.items():
        assert torch.equal(own.latents, data.rows[name].latents)
    last = Codec()
    ready(weighted_clips(tmp_path, last, cache_dir=str(cache)))
    assert last.encoded == 0, "the damaged file was written again"


def test_a_store_writes_whole_files_of_bounded_size(tmp_path):
    codec = Codec()
    store = LatentStore(tmp_path, codec)
    latents = {wave_key(torch.full((1, 4), float(i))): torch.full((1, 2), i) for i in range(70)}
    for key, latent in latents.items():
        store.add(key, latent)
    files = list(store.folder.glob("*.safetensors"))
    assert len(files) == 1 and len(load_file(files[0])) == PER_FILE  # the rest waits for flush
    assert LatentStore(tmp_path, codec).get(list(latents)[69]) is None
    store.flush()
    again = LatentStore(tmp_path, codec)
    assert all(torch.equal(again.get(key), latent) for key, latent in latents.items())
    assert again.get("unknown") is None


def test_an_encoder_is_its_class_settings_and_codec():
    assert encoder_id(Codec()) == encoder_id(Codec())
    tiny = build("tiny_audio")
    own = encoder_id(tiny)
    with torch.no_grad():
        next(tiny.denoiser.parameters()).add_(1)
    assert encoder_id(tiny) == own
    with torch.no_grad():
        next(tiny.codec.parameters()).add_(1)
    assert len({own, encoder_id(tiny), encoder_id(Codec()), encoder_id(Codec(frame=400))}) == 4
    assert wave_key(torch.zeros(1, 6)) != wave_key(torch.zeros(2, 3))


def test_other_data_modules_keep_their_latents_too(tmp_path):
    """``LatentCache`` serves the same latents from disk."""
    source = recordings(write_corpus(tmp_path))
    source.batch_size = source.batches_per_epoch = 2
    served = []
    for codec in (Codec(), Codec()):
        data = LatentCache(source, codec, str(tmp_path / "latents"))
        data.setup("fit")
        served.append((codec.encoded, [batch.latent_BCT for batch in data.train_dataloader()]))
    (first, made), (second, kept) = served
    assert (first, second) == (7, 0)
    assert all(torch.equal(a, b) for a, b in zip(made, kept, strict=True))


def test_clips_are_encoded_as_before_without_a_store(tmp_path):
    write_corpus(tmp_path)
    train, _ = recordings(tmp_path).clip_sets()
    whole = torch.stack([train.wave(i) for i in range(len(train))])
    assert torch.equal(encode_clips(Codec(), train, batch_size=3), Codec().encode(whole).half())


# Bad input


def test_clips_that_cannot_be_read_are_left_out_and_named(tmp_path, caplog):
    write_corpus(tmp_path)
    (tmp_path / "audio/made/0000.wav").unlink()
    (tmp_path / "audio/made/0003.wav").write_bytes(b"RIFF")
    (tmp_path / "audio/real/r0001.wav").unlink()
    with caplog.at_level(logging.WARNING):
        data = ready(weighted_clips(tmp_path, Codec()))
    assert sorted(data.quarantined) == ["made/0000.wav", "made/0003.wav"]
    assert list(data.pretrain.quarantined) == ["real/r0001.wav"]
    assert "left out 2 clips" in caplog.text and "left out 1 clips" in caplog.text
    assert [clip.audio.name for clip in data.clips] == ["0002.wav", "0004.wav", "0001.wav"]
    assert data.rows["labelled"].weights.tolist() == [0.5, 0, 0] == [c.label for c in data.clips]
    assert len(data.rows["labelled"]) == 3 == len(data.rows["pretrain"])


class Unchecked:
    """Labels whose audio nobody looked at."""

    def __init__(self, *clips: RatedClip) -> None:
        self.clips = clips

    def rated_clips(self) -> list[tuple[str, RatedClip]]:
        return [("", clip) for clip in self.clips]


def test_audio_that_nobody_checked(tmp_path):
    """What cannot be decoded is found when it is encoded."""
    write_corpus(tmp_path)
    (tmp_path / "audio/made/0001.wav").write_bytes(b"RIFF")
    paths = [tmp_path / f"audio/made/{i:04d}.wav" for i in range(len(LABELS))]
    clips = [rated(label, "a dog", str(path)) for path, label in zip(paths, LABELS, strict=True)]
    source = Unchecked(*clips, rated(1, "a dog", str(tmp_path / "gone.wav")))
    rewards = RewardTransform("centred")
    data = ready(WeightedClips(source, 0.5, rewards=rewards, encoder=Codec()))
    assert [name.rpartition("/")[2] for name in data.quarantined] == ["0001.wav", "gone.wav"]
    kept = torch.tensor([1, 0.5, 1, 0])
    assert torch.allclose(data.rows["labelled"].weights, kept - kept.mean())


def test_a_wrong_sample_rate_stops(tmp_path):
    write_corpus(tmp_path)
    with pytest.raises(UserError, match="16000 Hz and was given as 48000 Hz"):
        ready(WeightedClips(label_files(tmp_path, sample_rate_hz=48_000), 0.5, encoder=Codec()))
    wrong = recordings(tmp_path, stated_rate_hz=48_000)
    with pytest.raises(UserError, match="given as 48000 Hz"):
        ready(WeightedClips(label_files(tmp_path), 0.5, wrong, encoder=Codec()))
    other = recordings(tmp_path, rate_hz=22_050)
    with pytest.raises(UserError, match="22050 Hz, the backbone 16000 Hz"):
        ready(WeightedClips(label_files(tmp_path), 0.5, other, encoder=Codec()))


def test_files_of_another_rate_are_resampled(tmp_path):
    write_corpus(tmp_path)
    write_tone(tmp_path / "audio/made/0000.wav", 200, rate_hz=48_000)
    data = ready(weighted_clips(tmp_path, Codec()))
    rows_of = {prompt.id: i for i, prompt in enumerate(data.rows["labelled"].prompts)}
    write_tone(tmp_path / "audio/made/0000.wav", 200)
    plain = ready(weighted_clips(tmp_path, Codec()))
    row = rows_of["0000.wav"]
    both = (one.rows["labelled"].latents[row].float() for one in (data, plain))
    torch.testing.assert_close(*both, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"label": 1.5}, "label"),
        ({"label": float("nan")}, "label"),
        ({"audio": "made/0000.wav", "prompt": "a dog barks"}, "judged twice"),
        ({"prompt": "A dog barks.", "split": "val"}, "split"),
    ],
)
def test_bad_labels_stop(tmp_path, row, named):
    write_corpus(tmp_path)
    write_tone(tmp_path / "audio/made/new.wav", 100)
    good = [label_row(f"made/000{i}.wav", "a dog barks", 1, split="train") for i in (0, 1)]
    new = label_row("made/new.wav", "rain", 1, split="train") | row
    file = write_lines(tmp_path / "l.jsonl", [*good, new])
    labels = LabelFiles(str(file), str(tmp_path / "audio"))
    with pytest.raises(UserError, match=named):
        ready(WeightedClips(labels, 0.5, encoder=Codec()))


def test_only_the_training_split_is_learned(tmp_path):
    write_corpus(tmp_path)
    splits = ("train", "val", "test", "train")
    found = [
        label_row(f"made/000{i}.wav", f"prompt {i}", 0.5, split=split)
        for i, split in enumerate(splits)
    ]
    file = write_lines(tmp_path / "l.jsonl", found)
    labels = LabelFiles(str(file), str(tmp_path / "audio"))
    data = ready(WeightedClips(labels, 0.5, encoder=Codec()))
    assert [clip.prompt for clip in data.clips] == ["prompt 0", "prompt 3"]
    for split, named in (("val", "split train is empty"), ("dev", "'dev'")):
        write_lines(file, [one | {"split": split} for one in found])
        with pytest.raises(UserError, match=named):
            ready(WeightedClips(labels, 0.5, encoder=Codec()))


def test_hard_captions_pass(tmp_path):
    write_corpus(tmp_path)
    hard = ('a "dog", then_rain, 🐕', "a " * 5000 + "dog")
    lines = [label_row(f"made/000{i}.wav", text, 1) for i, text in enumerate(hard)]
    file = write_lines(tmp_path / "l.jsonl", lines)
    labels = LabelFiles(str(file), str(tmp_path / "audio"))
    data = ready(WeightedClips(labels, 0.5, encoder=Codec()))
    assert [prompt.text for prompt in data.all_prompts()] == [text.strip() for text in hard]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"pretrain_batch_size": 0}, "pretrain_batch_size 0"),
        ({"pairing": "min_sise"}, "min_size"),
        ({"pairing": "sequential"}, "max_size_cycle"),
        ({"mixing": MixingSettings(2, 1), "pretrain": None}, "mixing"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, named):
    write_corpus(tmp_path)
    with pytest.raises(UserError, match=named):
        weighted_clips(tmp_path, Codec(), **settings)
    with pytest.raises(UserError, match="per_batch 0"):
        MixingSettings(pool=3)


def test_an_encoder_is_needed(tmp_path):
    with pytest.raises(UserError, match="encoder"):
        ready(weighted_clips(write_corpus(tmp_path)))


def test_a_dry_run_checks_files_and_encodes_nothing(tmp_path):
    data = weighted_clips(write_corpus(tmp_path))
    data.check_files()
    assert data.rows == {}
    (tmp_path / "pd.json").write_text(json.dumps({"location": "x.wav"}))
    with pytest.raises(UserError):
        weighted_clips(tmp_path).check_files()


# Recordings with captions


def test_recordings_of_a_table_or_a_list(tmp_path):
    write_corpus(tmp_path)
    train, val = recordings(tmp_path).clip_sets()
    assert (len(train), len(val)) == (4, 3)
    lines = [f"real/r{i:04d}.wav,caption {i}" for i in range(4)]
    (tmp_path / "pd.csv").write_text("\n".join(["file,caption", *lines]))
    table = CaptionedFiles(str(tmp_path / "pd.csv"), str(tmp_path / "audio"), RATE_HZ, 1, 0.5)
    found, none = table.clip_sets()
    assert [found.prompt(i, None).text for i in range(4)] == [f"caption {i}" for i in range(4)]
    assert len(none) == 0 and torch.equal(found.wave(2), train.wave(2))
    assert found.wave(0).shape == (1, 8000)


def test_a_draw_of_recordings(tmp_path):
    write_corpus(tmp_path)
    drawn = [recordings(tmp_path, count=2, seed=seed).clip_sets()[0].files for seed in range(8)]
    assert all(len(files) == 2 for files in drawn) and len(set(drawn)) > 1
    assert drawn[3] == recordings(tmp_path, count=2, seed=3).clip_sets()[0].files
    with pytest.raises(UserError, match="count is 9"):
        recordings(tmp_path, count=9).clip_sets()


def test_a_clip_is_not_in_training_and_validation(tmp_path):
    write_corpus(tmp_path)
    with pytest.raises(UserError, match="4 clips are in both"):
        recordings(tmp_path, val_files=str(tmp_path / "pd.json")).clip_sets()
