"""The cache of CLAP embeddings: once, by content, of one encoder, never half-written."""

import hashlib

import pytest
import torch
from toy_preferences import RATE_HZ, small_clap, tone

from zoo.audio_files import Waveform, read_audio, resample, write_audio
from zoo.errors import UserError
from zoo.rewards import clap_features as cache
from zoo.rewards.clap_features import clap_features, encoder_id


@pytest.fixture
def clips(tmp_path):
    paths = [tmp_path / "audio" / f"{i}.wav" for i in range(5)]
    for i, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        write_audio(path, tone(300 * (i + 1), i))
    return paths


def forbidden(*_):
    raise AssertionError("it was embedded already")


def test_what_is_cached_is_not_computed_again(clips, tmp_path, monkeypatch):
    clap = small_clap()
    texts = ["a cow", "a bell", "a cow"]
    first = clap_features(clap, [*clips, clips[0]], texts, tmp_path / "cache")
    assert first.computed == 5 + 2 and not first.refused
    wave = read_audio(clips[2])
    with torch.no_grad():
        own = clap.embed_audio(wave.samples_CN[None], wave.sample_rate_hz)[0]
    assert torch.equal(first.audio[clips[2]], own)
    assert torch.equal(first.text["a bell"], clap.embed_text(["a bell"])[0])
    monkeypatch.setattr(clap, "embed_audio", forbidden)
    monkeypatch.setattr(clap, "embed_text", forbidden)
    moved = clips[0].rename(tmp_path / "renamed.wav")
    again = clap_features(clap, [moved, *clips[1:]], texts, tmp_path / "cache")
    assert again.computed == 0
    assert torch.equal(again.audio[moved], first.audio[clips[0]])
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_changed_file_is_embedded_anew_and_a_copy_is_not(clips, tmp_path):
    clap = small_clap()
    clap_features(clap, clips, [], tmp_path / "cache")
    clips[1].write_bytes(clips[2].read_bytes())
    assert clap_features(clap, clips, [], tmp_path / "cache").computed == 0
    write_audio(clips[1], tone(777, 99))
    found = clap_features(clap, clips, [], tmp_path / "cache")
    assert found.computed == 1
    digest = hashlib.sha256(clips[1].read_bytes()).hexdigest()
    assert found.content[clips[1]] == f"audio.{digest}"


def test_a_cache_of_another_encoder_is_refused_by_name(clips, tmp_path):
    clap_features(small_clap(), clips, [], tmp_path / "cache")
    other = small_clap(seed=1)
    other.name = "clap/other"
    with pytest.raises(UserError, match=r"clap/untrained.*clap/other"):
        clap_features(other, clips, [], tmp_path / "cache")


def test_the_encoder_is_its_weights_and_settings_and_not_its_name():
    own = encoder_id(small_clap())
    same = small_clap()
    same.checkpoint = same.arguments["checkpoint"] = "renamed"
    assert encoder_id(same) == own == encoder_id(small_clap().train())
    turned = small_clap()
    with torch.no_grad():
        turned.towers.log_scale.add_(1e-3)
    assert encoder_id(turned) != own
    first = small_clap()
    first.arguments["windows"] = "first"
    assert encoder_id(first) != own
    assert encoder_id(small_clap().bfloat16()) != own


def test_an_interrupted_run_goes_on(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PER_FILE", 2)
    clap = small_clap()
    whole = clap_features(clap, clips, ["a cow"])
    real = clap.embed_audio
    heard = []

    def failing(wave_BCN, rate_hz):
        heard.append(1)
        if len(heard) == 3:
            raise KeyboardInterrupt
        return real(wave_BCN, rate_hz)

    monkeypatch.setattr(clap, "embed_audio", failing)
    with pytest.raises(KeyboardInterrupt):
        clap_features(clap, clips, ["a cow"], tmp_path / "cache")
    monkeypatch.setattr(clap, "embed_audio", real)
    done = []
    found = clap_features(
        clap, clips, ["a cow"], tmp_path / "cache", lambda *count: done.append(count)
    )
    # the text and two clips were kept, the last of them from a file that was not full
    assert found.computed == 3 and done == [(1, 3), (2, 3), (3, 3)]
    for path in clips:
        assert torch.equal(found.audio[path], whole.audio[path])


def test_half_a_file_of_a_killed_process_is_cleared_and_damage_is_named(clips, tmp_path):
    clap = small_clap()
    clap_features(clap, clips, [], tmp_path / "cache")
    (kept,) = (tmp_path / "cache").glob("*.safetensors")
    left = kept.with_name(f".{kept.stem}.999999999.part.safetensors")
    left.write_bytes(b"half")
    assert clap_features(clap, clips, [], tmp_path / "cache").computed == 0
    assert not left.exists()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(UserError, match=kept.name):
        clap_features(clap, clips, [], tmp_path / "cache")


def test_unreadable_files_are_set_aside_by_name(clips, tmp_path):
    missing = tmp_path / "missing.wav"
    clips[1].write_bytes(b"not audio")
    clips[3].write_bytes(b"")
    found = clap_features(small_clap(), [*clips, missing], ["a cow"], tmp_path / "cache")
    assert set(found.refused) == {clips[1], clips[3], missing}
    assert all(path.name in why for path, why in found.refused.items())
    assert set(found.audio) == set(clips) - set(found.refused) and found.computed == 3 + 1


def test_a_file_counts_by_the_rate_in_its_header(clips, tmp_path):
    """A clip and its resampled copy are one sound: 16 kHz is never heard as 48 kHz."""
    clap = small_clap()
    wave = read_audio(clips[0])
    copy, wrong = tmp_path / "copy.wav", tmp_path / "wrong.wav"
    write_audio(copy, resample(wave, 3 * RATE_HZ))
    write_audio(wrong, Waveform(wave.samples_CN, 3 * RATE_HZ))
    found = clap_features(clap, [clips[0], copy, wrong], []).audio
    assert float(found[clips[0]] @ found[copy]) > 0.999
    assert float(found[clips[0]] @ found[wrong]) < float(found[clips[0]] @ found[copy]) - 1e-3
