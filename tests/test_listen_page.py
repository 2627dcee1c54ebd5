"""The page of the blind test: it reveals no side to the browser, and saves answers of the test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from toy_listening import NAMES, folders

from zoo.listening import app
from zoo.listening.answers import read_answers
from zoo.listening.app import DONE, build, serve, shown
from zoo.listening.pairs import read_pairs
from zoo.listening.trials import BlindTest, View, heard, listening_test, next_view, playable, trials

TELLTALE = re.compile(r"before|after|tuned|base\b|original|fine|seed|/tmp|pytest", re.IGNORECASE)


@pytest.fixture
def test(tmp_path: Path) -> BlindTest:
    return listening_test(read_pairs(*folders(tmp_path, 3)).pairs, tmp_path / "answers.csv", NAMES)


@pytest.fixture
def gradio() -> Any:
    return pytest.importorskip(
        "gradio", reason="the listening page needs gradio (extra app), which is not installed"
    )


def handlers(page: Any) -> tuple[Any, list[Any]]:
    """(start, answer A / none / B) of the page."""
    functions = [function.fn for _, function in sorted(page.fns.items())]
    assert (
        len(functions) == 5 and [f.__name__ for f in functions] == ["start"] * 2 + ["answered"] * 3
    )
    return functions[0], functions[2:]


def words(node: Any) -> list[str]:
    """All text that a handler returns (sounds are numbers)."""
    if isinstance(node, str):
        return [node]
    if isinstance(node, dict):
        return [word for key, value in node.items() for word in (*words(key), *words(value))]
    return (
        [word for item in node for word in words(item)] if isinstance(node, (list, tuple)) else []
    )


def test_what_is_shown(test: BlindTest) -> None:
    view = next_view(test, "ann")
    progress, text, a, b = shown(test, view)
    assert progress == "1 of 3" and text == test.pairs[view.trial.pair].prompt.text
    for (rate, samples), wave in zip((a, b), heard(test, view.trial), strict=True):
        assert rate == 8000 and samples.tolist() == playable(wave)[1].tolist()
    assert shown(test, View(None, 3, 3)) == (DONE, "", None, None)


@pytest.mark.long
def test_the_page_asks_saves_and_goes_on(gradio: Any, test: BlindTest) -> None:
    start, answer = handlers(build(test))
    listener, number, *_ = start("ann")
    mine = trials(3, "ann", 0)
    for trial, press, meant in zip(mine, (0, 2, 1), ("A", "B", "none"), strict=True):
        assert number == trial.number
        listener, number, *rest = answer[press](listener, number)
        assert read_answers(test.answers).answers[-1].answer == meant
    assert number == 0 and rest[2] == DONE and rest[-1]["visible"] is False
    assert start("ann")[4] == DONE and start("ben")[1] == 1
    assert [saved.pair for saved in read_answers(test.answers).answers] == [
        trial.pair for trial in mine
    ]


@pytest.mark.long
def test_nothing_on_the_page_reveals_the_sides(gradio: Any, test: BlindTest) -> None:
    page = build(test)
    components = page.get_config_file()["components"]
    content = json.dumps(components, default=str)
    values = [
        word for component in components for word in words(component["props"].get("value") or "")
    ]
    labels = [str(component["props"].get("label")) for component in components]
    start, answer = handlers(page)
    told = [*values, *labels, page.title, *words(start("ann")), *words(answer[0]("ann", 1))]
    assert "A" in labels and "B" in labels and "# Which sound fits the text better?" in told
    assert "1 of 3" in told and "2 of 3" in told
    assert [word for word in told if TELLTALE.search(word)] == []
    assert (
        not any(path.name in content for path in test.answers.parent.rglob("*.*"))
        and str(test.answers.parent) not in content
    )


def test_sounds_leave_without_the_names_of_their_files(
    gradio: Any, test: BlindTest, tmp_path: Path
) -> None:
    """Gradio sends a file with a neutral name, without tags, at the given level."""
    import soundfile

    page = build(test)
    _, _, a, _ = shown(test, next_view(test, "ann"))
    audio = next(block for block in page.blocks.values() if isinstance(block, gradio.Audio))
    audio.GRADIO_CACHE = str(tmp_path / "cache")
    sent = audio.postprocess(a)
    path = Path(sent.path)
    assert path.is_relative_to(tmp_path / "cache") and path.name == "audio.wav"
    assert sent.orig_name in (None, "", "audio.wav")
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    assert rate == a[0] and samples.tolist() == a[1].tolist()
    assert soundfile.SoundFile(str(path)).copy_metadata() == {}


def test_mistakes_are_shown_on_the_page(
    gradio: Any, test: BlindTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, answer = handlers(build(test))
    with pytest.raises(gradio.Error, match="give a name or code"):
        start("  ")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "answers.csv")

    monkeypatch.setattr(app, "give_answer", full)
    with pytest.raises(gradio.Error, match=r"No space left on device: answers\.csv"):
        answer[0]("ann", 1)


def test_it_is_served_on_this_machine_and_shares_no_folder(
    gradio: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked: dict[str, Any] = {}

    class Page:
        def launch(self, **knobs: Any) -> None:
            asked.update(knobs)

    serve(Page(), [tmp_path / "before", tmp_path / "after"])
    assert (
        asked["server_name"] == "127.0.0.1"
        and asked["share"] is False
        and asked["allowed_paths"] == []
    )
    assert asked["blocked_paths"] == [
        str((tmp_path / name).resolve()) for name in ("before", "after")
    ]
    assert capsys.readouterr().out == "open http://127.0.0.1:7860\n"
    serve(Page(), [], host="0.0.0.0", port=80)
    assert "there is no password" in capsys.readouterr().out
    for knobs, message in (
        ({"host": "example"}, "expected localhost or an address"),
        ({"port": 0}, "port must be 1 to 65535"),
    ):
        with pytest.raises(ValueError, match=message):
            serve(Page(), [], **knobs)

    def taken(**knobs: Any) -> None:
        raise OSError("Cannot find empty port in range")

    monkeypatch.setattr(Page, "launch", staticmethod(taken))
    with pytest.raises(OSError, match="cannot serve at 127.0.0.1:7860 .*choose another --port"):
        serve(Page(), [])


def test_without_gradio_the_install_command_is_named(
    monkeypatch: pytest.MonkeyPatch, test: BlindTest
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r'Gradio.*pip install -e "\.\[app\]"'):
        build(test)
