"""tools/evaluate.py: from folders and models to tables, pictures and the page, and errors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from toy_disk import no_file_above
from toy_evaluation import LoudnessJudge, evaluate, reward_file, sine, sines
from toys import SMALL

from zoo.audio_files import read_audio
from zoo.backbones.lora import add_lora
from zoo.errors import UserError, reported
from zoo.evaluation import scores
from zoo.evaluation.results import read_results
from zoo.evaluation.scores import fingerprint, open_scorers
from zoo.hub.adapters import save_adapter
from zoo.hub.artifact import save_artifact
from zoo.loading import open_model
from zoo.rewards.mood import MOODS, EmotionReward

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "table1.md",
    "table2.md",
    "results.json",
    "scores.json",
    "confusion.png",
    "tables.png",
    "report.html",
}
BASE = {
    "happy": [0.9, 0.9, 0.2, 0.2],
    "sad": [0.9, 0.2, 0.9, 0.9],
}  # loud is happy: 2 of 4 and 1 of 4 are right
TRAINED = {"happy": [0.9, 0.9, 0.9, 0.2], "sad": [0.2, 0.2, 0.9, 0.9]}


@pytest.fixture
def rewards(tmp_path):
    return reward_file(tmp_path), reward_file(tmp_path, "similar", "Similarity")


def test_folders_of_files_become_tables_pictures_and_a_page(tmp_path, rewards, capsys):
    base = sines(tmp_path / "base", BASE, prompts=2)
    trained = sines(tmp_path / "trained", TRAINED, prompts=2)
    out = tmp_path / "out"
    words = ["--setting", "1-step", "--rewards", *rewards, "--out", out, "--players", 2]
    evaluate("--generations", trained, "--baseline", base, *words)
    assert {path.name for path in out.iterdir()} == FILES
    first, second = (out / "table1.md").read_text(), (out / "table2.md").read_text()
    assert (
        "| 1-step original: base | 8 (4) | 0.50 [" in first
        and "(2/4)" in first
        and "| 1-step trained: trained | 8 (4) |" in first
    )
    assert "by loudness" in first and "similarity by clap/toy" in second and "+0.25 [" in second
    record = json.loads((out / "results.json").read_text())
    original, after = record["sets"]
    assert (original["role"], after["role"]) == ("original", "trained") and len(after["clips"]) == 8
    clip = after["clips"][0]
    assert clip["file"] == "../trained/happy_0.wav" and clip["values"]["loudness"][
        "p_happy"
    ] == pytest.approx(1.0)
    assert clip["wanted"] == clip["predicted"] == {"loudness": "happy"}
    assert (
        clip["values"]["toy"]["clap/toy"]
        == clip["values"]["toy"]["score"]
        == pytest.approx(0.9 / 2**0.5, rel=1e-2)
    )
    change = record["summary"]["differences"]["1-step trained: trained - 1-step original: base"][
        "loudness"
    ]["accuracy"]
    assert change["is_paired"] and change["estimate"]["value"] == pytest.approx(0.25)
    page = (out / "report.html").read_text()
    assert (
        page.count("<audio") == 2 * 2 * 2
        and page.count('src="data:image/png') == 2
        and "http" not in page.split("<style>")[1]
    )
    assert "&lt;take&gt;" in page and "<take>" not in page and "best" in page and "worst" in page
    assert (
        (out / "confusion.png").read_bytes()[:4]
        == (out / "tables.png").read_bytes()[:4]
        == b"\x89PNG"
    )
    printed = capsys.readouterr().out
    assert "Table 1: accuracy by loudness" in printed and "report.html" in printed
    assert read_results(out).sets[1].clips[0].file == str(out / "../trained/happy_0.wav")


def test_scored_clips_are_not_scored_again_and_a_killed_run_goes_on(tmp_path, rewards, monkeypatch):
    folder = sines(tmp_path / "g", BASE)
    LoudnessJudge.calls = 0
    breaking = reward_file(tmp_path, "breaking", raise_after=1)
    with pytest.raises(ValueError, match="killed"):
        evaluate(
            "--generations",
            folder,
            "--rewards",
            breaking,
            "--out",
            tmp_path / "o",
            "--batch-size",
            4,
        )
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"scores.json"}
    LoudnessJudge.calls = 0
    evaluate(
        "--generations", folder, "--rewards", rewards[0], "--out", tmp_path / "o", "--batch-size", 4
    )
    assert LoudnessJudge.calls == 1  # the second four
    text = (tmp_path / "o" / "table1.md").read_text()
    words = ["--generations", folder, "--rewards", rewards[0], "--out", tmp_path / "o"]
    evaluate(*words, "--overwrite")
    assert LoudnessJudge.calls == 1 and (tmp_path / "o" / "table1.md").read_text() == text
    sine(folder / "sad_0.wav", 0.1)  # other bytes: that clip is scored again
    evaluate(*words, "--overwrite")
    assert LoudnessJudge.calls == 2 and (tmp_path / "o" / "table1.md").read_text() != text
    (tmp_path / "o" / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json"):
        evaluate(*words, "--overwrite")


def test_tables_of_another_evaluation_are_not_replaced_unasked(tmp_path, rewards):
    words = ["--rewards", rewards[0], "--out", tmp_path / "o"]
    evaluate("--generations", sines(tmp_path / "g", BASE), *words)
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    other = sines(tmp_path / "h", TRAINED)
    LoudnessJudge.calls = 0
    for what in (["--generations", other, *words], ["--combine", tmp_path / "o", *words[2:]]):
        with pytest.raises(UserError, match="--overwrite"):
            evaluate(*what)
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before
    assert LoudnessJudge.calls == 0
    evaluate("--generations", other, *words, "--overwrite")
    assert [one.name for one in read_results(tmp_path / "o").sets] == ["h"]


def test_unpaired_clips_are_neither_original_nor_trained(tmp_path, rewards):
    folder = sines(tmp_path / "g", BASE)
    words = ["--generations", folder, "--rewards", *rewards]
    evaluate(*words, "--out", tmp_path / "o", "--players", 1)
    (one,) = read_results(tmp_path / "o").sets
    assert (one.role, one.title) == ("clips", "g clips: g")
    table = (tmp_path / "o" / "table2.md").read_text()
    assert "accuracy by loudness: clips | similarity by clap/toy: clips |" in table
    page = (tmp_path / "o" / "report.html").read_text()
    assert "Best and worst of the clips" in page
    assert not {"original", "trained", "difference"} & set(re.findall(r"\w+", table + page))
    evaluate(*words, "--out", tmp_path / "p", "--role", "trained")
    assert read_results(tmp_path / "p").sets[0].role == "trained"


def test_every_clip_is_read_once_for_all_scorers(tmp_path, rewards, monkeypatch):
    levels = [0.1 * i for i in range(1, 5)]
    folder = sines(tmp_path / "g", {"happy": levels, "sad": [0.5 + each for each in levels]})
    read: Counter[str] = Counter()
    held: list[int] = []
    decode = scores.decoded

    def counted(content: bytes):
        wave = decode(content)
        held.append(sum(ref() is not None for ref in waves) + 1)
        waves.append(weakref.ref(wave))
        read[hashlib.sha256(content).hexdigest()] += 1
        return wave

    waves: list[weakref.ref] = []
    monkeypatch.setattr(scores, "decoded", counted)
    words = ["--generations", folder, "--out", tmp_path / "o", "--batch-size", 2]
    evaluate(*words, "--rewards", *rewards)
    assert sum(read.values()) == 8  # not 16
    assert max(held) <= 4  # one batch, and the one before it
    evaluate(*words, "--rewards", *rewards, "embedded/clap", "--overwrite")
    assert sum(read.values()) == 16
    assert set(read_results(tmp_path / "o").sets[0].clips[0].values) == {
        "loudness",
        "toy",
        "embedded/clap",
    }


def test_a_full_disk_leaves_the_whole_older_evaluation(tmp_path, rewards):
    out = tmp_path / "o"
    words = ["--rewards", *rewards, "--out", out, "--overwrite"]
    evaluate("--generations", sines(tmp_path / "g", BASE), *words)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = sines(tmp_path / "h", TRAINED)
    for name in ("report.html", "tables.png", "results.json"):
        with pytest.raises(OSError) as caught, no_file_above(len(before[name]) - 2000):
            evaluate("--generations", other, *words)
        assert Path(caught.value.filename).parent == out
        after = {path.name: path.read_bytes() for path in out.iterdir()}
        assert {**after, "scores.json": b""} == {
            **before,
            "scores.json": b"",
        }  # of the scores, more may be known
    evaluate("--generations", other, *words)
    assert "h" in (out / "table1.md").read_text() and set(before) == {
        path.name for path in out.iterdir()
    }


def test_an_unwritable_place_is_reported_before_anything_is_scored(tmp_path, rewards):
    LoudnessJudge.calls = 0
    folder = sines(tmp_path / "g", BASE)
    with pytest.raises(OSError, match="cannot be written here .*results.json"):
        evaluate("--generations", folder, "--rewards", rewards[0], "--out", "/proc/evaluation")
    assert LoudnessJudge.calls == 0


def test_leftovers_of_a_killed_evaluation_are_removed(tmp_path, rewards):
    out = tmp_path / "o"
    alive = f".report.{os.getppid()}.part.html"
    dead = ".scores.999999999.part.json", ".together.999999999.part/table1.md"
    clips = "clips/trained/.000_x.999999999.part.wav", "clips/original/.a.999999999.part.wav"
    for name in (*dead, *clips, alive, ".mine.999999999.part.doc"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    evaluate("--generations", sines(tmp_path / "g", BASE), "--rewards", rewards[0], "--out", out)
    hidden = {path.relative_to(out).as_posix() for path in out.rglob(".*")}
    assert hidden == {alive, ".mine.999999999.part.doc"}


def test_combine_puts_runs_into_one_table(tmp_path, rewards, capsys):
    base = sines(tmp_path / "base", BASE)
    for name, levels in (("one", TRAINED), ("two", BASE)):
        run = sines(tmp_path / name, levels)
        evaluate(
            "--generations",
            run,
            "--baseline",
            base,
            "--setting",
            "s",
            "--rewards",
            rewards[0],
            "--out",
            tmp_path / f"e_{name}",
        )
    evaluate(
        "--generations",
        base,
        "--setting",
        "200-step",
        "--role",
        "original",
        "--rewards",
        rewards[1],
        "--out",
        tmp_path / "e_3",
    )
    capsys.readouterr()
    evaluate(
        "--combine",
        *(tmp_path / name for name in ("e_one", "e_two", "e_3")),
        "--out",
        tmp_path / "all",
        "--players",
        1,
    )
    text = (tmp_path / "all" / "table2.md").read_text()
    rows = [
        line for line in text.split("## ")[1].splitlines() if line.startswith(("| s ", "| 200"))
    ]
    assert [row.split(" | ")[0] for row in rows] == ["| s (one)", "| s (two)", "| 200-step"]
    assert "+0.25 [" in rows[0] and "+0.00 [" in rows[1] and rows[2].count("| - ") >= 3
    record = json.loads((tmp_path / "all" / "results.json").read_text())
    assert [one["name"] for one in record["sets"]] == ["base", "one", "two", "base"]
    assert (tmp_path / "all" / "report.html").read_text().count("<audio") == 2 * 2 + 2 * 2 + 1
    (tmp_path / "e_3" / "results.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="is not what tools/evaluate.py writes"):
        evaluate("--combine", tmp_path / "e_3", "--out", tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"has no results.json.*did you mean 'e_one'"):
        evaluate("--combine", tmp_path / "e_onee", "--out", tmp_path / "x")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, a run folder with an adapter, and a classifier, as training saves them."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    from zoo.backbones.tiny import TinyAudio

    backbone = TinyAudio(**SMALL)
    with torch.no_grad():
        for parameter in backbone.denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_artifact(
        folder / "tiny",
        kind="backbone",
        architecture="tiny_audio",
        arguments=SMALL,
        module=backbone,
    )
    reward = EmotionReward(channels=[4] * 7, n_mels=32, chunk_s=0.25)
    save_artifact(
        folder / "mood",
        kind="reward",
        architecture="emotion",
        arguments=reward.arguments,
        module=reward,
    )
    backbone = open_model(str(folder / "tiny"))
    add_lora(backbone, rank=2)
    with torch.no_grad():
        for name, parameter in backbone.denoiser.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    save_adapter(backbone, folder / "run" / "adapter")
    words = {mood: [mood] for mood in MOODS}
    config = {
        "module": {
            "backbone": {"_target_": "zoo.load", "name": str(folder / "tiny")},
            "reward": {"_target_": "zoo.load", "name": str(folder / "mood")},
            "sample_steps": 3,
            "eval_sample_steps": 2,
            "guidance_scale": 2.0,
        },
        "data": {
            "_target_": "datamodules.prompts.PromptDataModule",
            "template": "a {word} {instrument}",
            "words": words,
            "instruments": ["piano", "harp"],
            "held_out": [[mood, "harp"] for mood in MOODS],
            "seconds": 0.5,
        },
    }
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_a_run_folder_against_its_base_pairs_noise_and_goes_on(trained, tmp_path):
    out = tmp_path / "out"
    words = [
        "--model",
        trained / "run",
        "--baseline",
        "base",
        "--samples",
        2,
        "--out",
        out,
        "--players",
        0,
    ]
    evaluate(*words)
    record = json.loads((out / "results.json").read_text())
    original, after = record["sets"]
    assert (original["name"], after["name"], after["setting"]) == (
        "base",
        "run",
        "2-step, 0.5 sec.",
    )
    assert [clip["text"] for clip in after["clips"]][::2] == [f"a {mood} harp" for mood in MOODS]
    assert (
        after["source"]["steps"] == 2
        and after["source"]["guidance_scale"] == 2.0
        and after["source"]["first_seed"] == 1_000_003
    )
    assert (
        original["source"]["denoiser"] != after["source"]["denoiser"]
        and record["scorers"][0]["name"] == "mood"
    )
    assert {clip["sample"] for clip in after["clips"]} == {1_000_003, 1_000_004}
    assert record["picking"] == {"by": "mood", "n": 2}  # the reward that it was trained by
    forwards = [(way["forwards"], way["reward_calls"]) for way in record["summary"]["best_of_n"]]
    assert forwards == [("4", "0"), ("8", "2"), ("4", "0")]
    assert next(iter(record["summary"]["differences"].values()))["mood"]["accuracy"]["is_paired"]
    wavs = sorted((out / "clips" / "trained").glob("*.wav"))
    assert len(wavs) == 8 and "<audio" not in (out / "report.html").read_text()
    kept = wavs[0].stat().st_mtime_ns
    lost = read_audio(wavs[5]).samples_CN
    wavs[5].unlink()
    evaluate(*words, "--overwrite")
    assert (
        wavs[0].stat().st_mtime_ns == kept
    )  # the lost one is made again, alone in its batch: equal but for rounding
    assert torch.allclose(read_audio(wavs[5]).samples_CN, lost, atol=1e-3)
    with pytest.raises(ValueError, match="steps.* 2 .* 3"):
        evaluate(*words, "--steps", 3, "--overwrite")
    again = [
        "--generations",
        out / "clips" / "trained",
        "--rewards",
        trained / "mood",
        "--out",
        tmp_path / "again",
    ]
    evaluate(*again)  # a folder that an evaluation made is a folder of generations
    same = json.loads((tmp_path / "again" / "results.json").read_text())["sets"][0]
    assert [clip["values"] for clip in same["clips"]] == [clip["values"] for clip in after["clips"]]


def test_a_configuration_alone_evaluates_its_untrained_model(trained, tmp_path):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    config = {**config, "out_dir": "x", "data": {**config["data"], "held_out": []}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    words = [
        "--config",
        tmp_path / "c.yaml",
        "--samples",
        1,
        "--out",
        tmp_path / "o",
        "--players",
        1,
    ]
    with pytest.raises(ValueError, match="held_out.*--which train"):
        evaluate(*words)
    evaluate(*words, "--which", "train")
    (one,) = json.loads((tmp_path / "o" / "results.json").read_text())["sets"]
    assert one["role"] == "original" and len(one["clips"]) == 8
    adapter = f"{trained / 'run' / 'adapter'}=0.5"
    evaluate(
        "--model",
        "base",
        "--adapter",
        adapter,
        *words[:-2],
        "--out",
        tmp_path / "p",
        "--which",
        "train",
    )
    (other,) = json.loads((tmp_path / "p" / "results.json").read_text())["sets"]
    assert other["role"] == "trained" and other["name"] == "base + adapter x 0.5"


def test_an_untrained_model_is_called_original(trained, tmp_path):
    from zoo.commands.evaluate import _role

    assert (
        _role("embedded/music", [])
        == _role(str(trained / "tiny"), [])
        == _role("base", [])
        == "original"
    )
    assert (
        _role(str(trained / "run"), []) == _role("embedded/music", ["runs/x/adapter"]) == "trained"
    )
    export = tmp_path / "merged"
    shutil.copytree(trained / "tiny", export)
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | {"training": {"algorithm": "DDPO"}}))
    assert _role(str(export), []) == "trained"


def test_the_embedded_model_is_evaluated_by_embedded_scorers(tmp_path):
    (tmp_path / "p.csv").write_text("text,mood\na sad piano,sad\na happy piano,happy\n")
    words = [
        "--model",
        "embedded/music",
        "--prompts",
        tmp_path / "p.csv",
        "--rewards",
        "embedded/mood",
        "embedded/clap",
    ]
    evaluate(*words, "--samples", 1, "--steps", 2, "--seconds", 1, "--out", tmp_path / "o")
    text = (tmp_path / "o" / "table1.md").read_text()
    assert (
        "happy | angry | sad | tender | mean" in text and "no prompt requests angry, tender" in text
    )
    text = (tmp_path / "o" / "table2.md").read_text()
    assert "similarity by clap/embedded/clap" in text and "accuracy by embedded/mood" in text


def test_diversity_within_a_prompt_is_measured_over_the_whole_set(tmp_path):
    folder = sines(tmp_path / "g", {"happy": [0.5, 0.5, 0.5, 0.5]})
    guards = tmp_path / "guards.yaml"
    guards.write_text(
        "{_target_: zoo.rewards.guards.GuardReward, diversity: 1.0, loudness_dbfs: [-60, -1]}"
    )
    for words in ([], ["--batch-size", 1]):
        evaluate(
            "--generations",
            folder,
            "--rewards",
            guards,
            "--out",
            tmp_path / f"o{len(words)}",
            *words,
        )
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text())["sets"][0]["clips"]
        for name in ("o0", "o2")
    )
    assert [clip["values"] for clip in one] == [clip["values"] for clip in two]
    found = one[0]["values"]["guards"]
    assert found["diversity_db"] == pytest.approx(0, abs=1e-3) and found[
        "diversity_penalty"
    ] == pytest.approx(-1, abs=1e-3)
    assert found["score"] == 0 and found["level_dbfs"] == pytest.approx(-9.03, abs=0.01)
    assert "| diversity_db |" in (tmp_path / "o0" / "table2.md").read_text()


def test_a_scorer_is_named_after_its_checkpoint(trained, tmp_path):
    (tmp_path / "overlay.yaml").write_text(
        f"{{base: {trained / 'run' / 'config.yaml'}, out_dir: x}}"
    )
    node = {"_target_": "toy_evaluation.LoudnessJudge", "checkpoint": "other"}
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(node))
    names = [str(tmp_path / "overlay.yaml"), str(tmp_path / "named.yaml"), "embedded/clap"]
    scorers = open_scorers([*names, "config"], {"_target_": "toy_evaluation.Similarity"}, "cpu")
    assert [scorer.facts.name for scorer in scorers] == ["mood", "other", "embedded/clap", "toy"]
    assert scorers[0].facts.class_names == MOODS and scorers[2].facts.title == "clap/embedded/clap"
    with pytest.raises(ValueError, match="embedded/clap twice"):
        open_scorers(["embedded/clap", "embedded/clap"], None, "cpu")


def test_fingerprints_follow_weights_and_settings():
    torch.manual_seed(0)
    small = {"channels": [4] * 7, "n_mels": 32}
    one = EmotionReward(**small)
    first = fingerprint(one)
    assert first == fingerprint(one) and len(first) == 12
    other = EmotionReward(**small, value="label")
    other.load_state_dict(one.state_dict())
    assert fingerprint(other) != first
    with torch.no_grad():
        next(one.parameters()).view(-1)[0].add_(1)
    assert fingerprint(one) != first


def test_a_page_without_its_clips_says_so(tmp_path, rewards):
    folder = sines(tmp_path / "g", BASE)
    evaluate("--generations", folder, "--rewards", rewards[0], "--out", tmp_path / "o")
    shutil.rmtree(folder)
    evaluate("--combine", tmp_path / "o", "--out", tmp_path / "c")
    page = (tmp_path / "c" / "report.html").read_text()
    assert "the file is not here" in page and "<audio" not in page


def test_names_with_signs_of_other_languages_are_text_everywhere(tmp_path, rewards):
    """matplotlib reads $ as a formula, and drops labels that begin with an underscore."""
    folder = sines(tmp_path / "g", BASE)
    name = "a $ x^{ $ \\frac <script>"
    evaluate(
        "--generations",
        folder,
        "--rewards",
        *rewards,
        "--name",
        name,
        "--setting",
        "_one|two",
        "--out",
        tmp_path / "o",
    )
    page, table = ((tmp_path / "o" / file).read_text() for file in ("report.html", "table1.md"))
    assert (
        "<script" not in page
        and "a $ x^{ $ \\frac &lt;script&gt;" in page
        and "_one\\|two clips: a $ x^{ $" in table
    )


def test_every_set_is_in_the_legend_and_a_class_without_clips_has_dashes(
    tmp_path, rewards, monkeypatch
):
    from zoo.evaluation import page

    figures = []
    monkeypatch.setattr(
        page, "_save", lambda figure, path: figures.append(figure) or path.write_bytes(b"")
    )
    folder = sines(tmp_path / "g", {"happy": [0.9, 0.1]})
    evaluate(
        "--generations",
        folder,
        "--rewards",
        *rewards,
        "--setting",
        "_one",
        "--name",
        "$",
        "--out",
        tmp_path / "o",
    )
    bars, matrix = figures
    (legend,) = bars.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "one class for every clip",
        r" _one clips: \$ (n = 2)",
    ]
    assert [text.get_text() for text in matrix.axes[0].texts] == [
        "0.50\n(1)",
        "0.50\n(1)",
        "-",
        "-",
    ]


def test_the_command(tmp_path, rewards, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", ["tools", *sys.path])
    scope: dict = {"__file__": str(ROOT / "tools" / "evaluate.py"), "__name__": "evaluate"}
    exec(compile((ROOT / "tools" / "evaluate.py").read_text(), "evaluate.py", "exec"), scope)
    folder = sines(tmp_path / "g", BASE)
    assert (
        reported(
            scope["main"],
            ["--generations", str(folder), "--rewards", rewards[0], "--out", str(tmp_path / "o")],
        )
        == 0
    )
    assert "## Table 2" in capsys.readouterr().out
    assert reported(scope["main"], ["--generations", str(tmp_path), "--rewards", rewards[0]]) == 2
    assert "error: " in capsys.readouterr().err
