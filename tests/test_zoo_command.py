"""``tools/zoo.py``: what each command prints, and one line for each mistake."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.commands import zoo
from zoo.errors import reported
from zoo.files import sha256_of
from zoo.hub.lock import LockedFile, Pin, write_pin
from zoo.hub.store import PullRecord, write_record
from zoo.hub.table import ENTRIES

ROOT = Path(__file__).resolve().parents[1]
MUSIC = ENTRIES["embedded/music"]


@pytest.fixture(autouse=True)
def _working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*argv: str) -> str:
        assert reported(zoo.main, argv) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    def refused(*argv: str) -> str:
        assert reported(zoo.main, argv) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("error: ") == 1 and err.strip().count("\n") == 0
        return err

    return refused


def test_the_script_runs_beside_a_package_of_its_own_name(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/zoo.py"), "list", "--kind", "classifier"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "name",
        "kind",
        "size",
        "licence",
        "cached",
        "loads",
        "what",
        "it",
        "is",
    ]
    assert [line.split()[0] for line in lines[1:]] == [
        "emopia-ar-va",
        "emopia-arousal",
        "emopia-valence",
    ]


def test_list(run, refused) -> None:
    rows = {line.split()[0]: line for line in run("list").splitlines()[1:]}
    assert set(rows) == set(ENTRIES)
    assert "apache-2.0" in rows["embedded/music"] and "18.9 MB" in rows["embedded/music"]
    assert "in the package" in rows["embedded/music"] and "yes" in rows["embedded/music"]
    assert (
        "stable-audio-community (gated)" in rows["stable-audio-open-1.0"]
        and "planned" not in rows["stable-audio-open-1.0"]
    )
    assert "planned" in rows["bewo-nl"] and "unknown" in rows["bewo-nl"]
    assert {
        line.split()[0]
        for line in run("list", "--pattern", "emb", "--kind", "reward").splitlines()[1:]
    } == {name for name, entry in ENTRIES.items() if entry.kind == "reward" and "emb" in name}
    assert "no entry matches 'nothing'" in refused("list", "--pattern", "nothing")


def test_show(run, refused) -> None:
    text = run("show", "stable-audio-open-1.0")
    for words in (
        "stabilityai/stable-audio-open-1.0 on the Hub",
        "not known here: the first pull pins it",
        "44100 Hz",
        "cached:       no",
        "gated: access is granted on its Hub page",
        "loads:        yes",
    ):
        assert words in text
    text = run("show", "embedded/music")
    for words in (
        *MUSIC.sha256.values(),
        "loads:        yes",
        "hub_cards/embedded_music.md",
        "commercial use allowed",
    ):
        assert words in text
    assert "only BEWO_mix.ckpt" in run("show", "bewo-mix")
    assert ENTRIES["audioldm2"].revision in run("show", "audioldm2")
    assert "no zoo entry 'tango3'; did you mean 'tango2'" in refused("show", "tango3")


def test_an_embedded_entry_is_verified_and_copied_whole(run, refused, tmp_path: Path) -> None:
    assert Path(run("pull", "embedded/music").strip()) == MUSIC.path
    assert run("pull", "embedded/music", "--to", "here/music").strip() == "here/music"
    copied = tmp_path / "here/music"
    assert {path.name for path in copied.iterdir()} == {path.name for path in MUSIC.path.iterdir()}
    assert (copied / "model.safetensors").read_bytes() == (
        MUSIC.path / "model.safetensors"
    ).read_bytes()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["music"]
    assert run("pull", "embedded/music", "--to", "here/music").strip() == "here/music", (
        "a second time is fine"
    )
    lines = run("verify", "here/music").splitlines()
    assert lines[-1] == f"here/music is whole: {len(list(copied.iterdir()))} files"
    assert any(
        MUSIC.sha256["model.safetensors"] in line and "hash from config.json" in line
        for line in lines
    )
    assert "the zoo's table" in run("verify", "embedded/music")
    (copied / "config.json").unlink()
    assert "here/music exists and does not hold what is being pulled" in refused(
        "pull", "embedded/music", "--to", "here/music"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["pull", "tango3"],
            "no zoo entry 'tango3', and it is not an owner/name on the Hub; did you mean 'tango2'",
        ),
        (
            ["pull", "embedded/musik"],
            "no zoo entry 'embedded/musik', .*did you mean 'embedded/music'",
        ),
        (
            ["pull", "emopia-valence"],
            "cannot be pulled: not on the Hub: .*best_weight/wav/valence/best.ckpt",
        ),
        (["pull", "tango2"], "tango2 is not in .*cache, and HF_HUB_OFFLINE is set"),
        (["pull", "owner/model"], "owner/model is not in .*cache, and HF_HUB_OFFLINE is set"),
        (["verify", "nowhere"], "there is no folder nowhere; name a model folder, or a zoo name"),
        (["verify", "tango2"], "there is no folder tango2; pull tango2 first"),
        (["verify", "."], "is not a model"),
        (["push", ".", "me/x"], "is not a model"),
    ],
)
def test_mistakes_get_one_line(refused, argv: list[str], message: str) -> None:
    assert re.search(message, refused(*argv))


@pytest.mark.parametrize(
    "argv", [[], ["lst"], ["list", "--kind", "model"], ["export", "run"], ["push", "folder"]]
)
def test_a_wrong_command_line_shows_the_right_ones(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        zoo.main(argv)
    assert caught.value.code == 2 and "usage: python tools/zoo.py" in capsys.readouterr().err


def test_export_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, run) -> None:
    seen = []
    module = SimpleNamespace(export_run=lambda *args, **settings: seen.append((args, settings)))
    monkeypatch.setitem(sys.modules, "zoo.hub.export", module)
    assert run("export", "runs/one", "--to", "out") == "out\n"
    run("export", "runs/one", "--to", "out", "--merge", "--overwrite")
    settings = [{"merge": False, "overwrite": False}, {"merge": True, "overwrite": True}]
    assert seen == [(("runs/one", "out"), one) for one in settings]


def test_a_dry_push_prints_the_plan(monkeypatch: pytest.MonkeyPatch, run) -> None:
    seen = []
    plan = SimpleNamespace(describe=lambda: "the plan")
    monkeypatch.setattr(
        "zoo.hub.pull.push", lambda *args, **settings: seen.append((args, settings)) or plan
    )
    assert run("push", "folder", "me/model") == "the plan\n"
    run("push", "folder", "me/model", "--yes", "--private")
    where = ("folder", "me/model")
    assert seen == [
        (where, {"private": False, "yes": False}),
        (where, {"private": True, "yes": True}),
    ]


def test_a_licence_is_asked_for_at_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, run, tmp_path: Path
) -> None:
    asked: list[object] = []

    def pull(
        name: str, revision: str | None, to: str | None, *, progress, lock: str, accept_licence
    ) -> Path:
        asked.append(accept_licence)
        progress(5, 10)
        progress(10, 10)
        return tmp_path

    monkeypatch.setattr("zoo.hub.pull.pull", pull)
    run("pull", "tango2", "--accept-licence")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    run("pull", "tango2")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    run("pull", "tango2")
    assert asked[:2] == [True, False] and callable(asked[2])
    for answer, agreed in (
        ("yes", True),
        (" Y ", True),
        ("", False),
        ("no", False),
        ("yeah?", False),
    ):
        monkeypatch.setattr("builtins.input", lambda words, answer=answer: answer)
        assert asked[2]("terms") is agreed


def test_verify_compares_a_pulled_folder_with_the_lock_file(run, refused, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"kind": "reward"}))
    (folder / "weights.pt").write_bytes(b"x")
    hashes = {path.name: sha256_of(path) for path in folder.iterdir()}
    write_record(folder, PullRecord("o/n", "a" * 40, "mit", hashes))
    assert "hash from the pull)" in run("verify", "model")
    write_pin("o/n", Pin("a" * 40, {"weights.pt": LockedFile(hashes["weights.pt"], 1)}))
    assert "hash from the pull, attune.lock.json" in run("verify", "model")
    write_pin("o/n", Pin("a" * 40, {"weights.pt": LockedFile("0" * 64, 1)}), "other.json")
    assert "other.json pins 0000" in refused("verify", "model", "--lock", "other.json")
    write_pin("o/n", Pin("b" * 40, {}), "third.json")
    assert f"third.json pins o/n at {'b' * 40}" in refused(
        "verify", "model", "--lock", "third.json"
    )
    (folder / "weights.pt").write_bytes(b"y")
    assert "weights.pt has sha256" in refused("verify", "model")


def test_the_parser_explains_every_option() -> None:
    (commands,) = (
        action for action in zoo.parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    assert set(commands.choices) == {"list", "show", "pull", "export", "push", "verify"}
    unexplained = [
        action.dest
        for command in commands.choices.values()
        for action in command._actions
        if action.option_strings and not action.help
    ]
    assert unexplained == []
