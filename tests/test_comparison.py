"""tools/listen.py: the page of original and fine-tuned sounds, and its command line."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
import torch
from toy_listening import NAMES, folders
from toy_study import command

from zoo.errors import reported
from zoo.listening.comparison import comparison_page, scored, summary_lines
from zoo.listening.pairs import paired_difference, read_pairs
from zoo.types import Prompt, RewardOutput

ROOT = Path(__file__).resolve().parents[1]


class Loudness:
    """A reward that a reader can compute: the largest sample, as ``loudness/toy``."""

    differentiable = True
    name = "loudness/toy"

    def __call__(
        self, wave_BCN: torch.Tensor, sample_rate_hz: int, prompts: list[Prompt]
    ) -> RewardOutput:
        value_B = wave_BCN.abs().amax(dim=(1, 2))
        return RewardOutput(value_B, {"loudness/toy": value_B})


class Parts:
    """A reward without a name whose first part is not its score, as a classifier's."""

    differentiable = False

    def __call__(
        self, wave_BCN: torch.Tensor, sample_rate_hz: int, prompts: list[Prompt]
    ) -> RewardOutput:
        value_B = wave_BCN.abs().amax(dim=(1, 2))
        return RewardOutput(value_B - 1, {"p_happy": value_B})


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_holds_prompts_sounds_and_scores_and_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    before, after = folders(tmp_path, count=3, seeds=(0, 1))
    index = json.loads((after / "samples.json").read_text())
    (after / "samples.json").write_text(json.dumps(index[:5]))
    pairing = read_pairs(before, after)
    name, base, tuned = scored(pairing.pairs, Loudness())
    assert scored(pairing.pairs, Parts(), "toy/mood")[0] == "toy/mood", (
        "the total is not called after its first part"
    )
    assert (
        name == "loudness/toy"
        and base == pytest.approx([0.25] * 5, abs=0.01)
        and tuned == pytest.approx([0.5] * 5, abs=0.01)
    )
    text = comparison_page(pairing, name, base, tuned, "Original & fine-tuned")
    assert "<h1>Original &amp; fine-tuned</h1>" in text and ">change of loudness/toy</th>" in text
    assert (
        text.count("sound number 0") == 2 and text.count("sound number 2") == 1 and "seed 1" in text
    )
    assert (
        "mean over n = 3 prompts (5 pairs of clips)" in text
        and "1 samples of one folder have no partner" in text
    )
    players = [attrs for tag, attrs in Elements(text).found if tag == "audio"]
    assert len(players) == 10
    sound, rate = soundfile.read(
        io.BytesIO(base64.b64decode(players[0]["src"].partition(",")[2])), dtype="int16"
    )
    assert (
        rate == 8000
        and sound.tolist() == soundfile.read(pairing.pairs[0].first.path, dtype="int16")[0].tolist()
    )
    links = [
        value
        for _, attrs in Elements(text).found
        for key, value in attrs.items()
        if key in ("src", "href")
    ]
    assert all(link.startswith("data:") for link in links) and not {"script", "link", "iframe"} & {
        t for t, _ in Elements(text).found
    }


def test_prompts_are_text_and_never_markup(tmp_path: Path) -> None:
    before, after = folders(tmp_path, count=1)
    evil = '<script>alert(1)</script> & "quotes"'
    for folder in (before, after):
        (entry,) = json.loads((folder / "samples.json").read_text())
        (folder / "samples.json").write_text(
            json.dumps([{**entry, "text": evil, "negative": "<b>hiss"}])
        )
    text = comparison_page(read_pairs(before, after), "<i>score", [0.1], [0.2], "</title><script>")
    assert html.escape(evil) in text and "not: &lt;b&gt;hiss" in text
    assert not {"script", "b", "i"} & {tag for tag, _ in Elements(text).found}


def test_the_summary_in_words() -> None:
    found = paired_difference(["a", "b"], [0.1, 0.2], [0.3, 0.3])
    first, second = summary_lines("clap/x", found)
    assert first.startswith(
        "clap/x, mean over n = 2 prompts (2 pairs of clips): original 0.150, fine-tuned 0.300,"
        " change +0.150"
    )
    assert "95 % interval -0.485 to +0.785" in first and second == "2 prompts went up, 0 down"
    assert (
        "no interval from one prompt"
        in summary_lines("x", paired_difference(["a"], [0.0], [1.0]))[0]
    )


def test_the_command_from_folders_to_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before, after = folders(tmp_path, count=3)
    words = [
        "page",
        "--before",
        str(before),
        "--after",
        str(after),
        "--scorer",
        "embedded/clap",
        "--out",
        str(tmp_path / "p.html"),
    ]
    assert reported(command, [*words, "--count", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"clap/\S+, mean over n = 2 prompts", out) and str(tmp_path / "p.html") in out
    assert (tmp_path / "p.html").read_text().count("<audio") == 4
    assert reported(command, words) == 2 and "exists; give another --out" in capsys.readouterr().err
    (tmp_path / ".p.999999999.part.html").touch()  # of a killed call
    assert reported(command, [*words, "--overwrite"]) == 0
    assert not (tmp_path / ".p.999999999.part.html").exists()
    assert (tmp_path / "p.html").read_text().count("<audio") == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["page", "--out", "{tmp}/p.txt", "--scorer", "embedded/clap"],
            "expected a file that ends in .html",
        ),
        (
            ["page", "--out", "{tmp}/p.html", "--scorer", "embedded/clop"],
            "did you mean 'embedded/clap'",
        ),
        (
            ["page", "--out", "{tmp}/p.html", "--scorer", "embedded/music"],
            "which has no scores; name a reward",
        ),
        (
            ["page", "--out", "{tmp}/p.html", "--scorer", "x", "--count", "9"],
            "there are 2 pairs; give 1 to 2",
        ),
        (
            ["page", "--out", "{tmp}/before/samples.json/p.html", "--scorer", "no/such"],
            "cannot be written here",
        ),
        (["blind", "--answers", "{tmp}/a.txt"], "ends in .csv or .jsonl"),
        (
            ["blind", "--answers", "{tmp}/a.csv", "--host", "nowhere"],
            "invalid host 'nowhere': expected localhost",
        ),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    if words[0] == "blind":
        pytest.importorskip(
            "gradio", reason="the listening page needs gradio (extra app), which is not installed"
        )
    before, after = folders(tmp_path, count=2)
    words = [
        words[0],
        "--before",
        str(before),
        "--after",
        str(after),
        *(word.format(tmp=tmp_path) for word in words[1:]),
    ]
    assert reported(command, words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "after",
        "before",
    ], "nothing was written"


def test_a_test_whose_answers_cannot_be_saved_does_not_open(tmp_path: Path) -> None:
    from zoo.listening.trials import listening_test

    pairs = read_pairs(*folders(tmp_path, 2)).pairs
    with pytest.raises(OSError, match="cannot be written here .*a.csv"):
        listening_test(pairs, pairs[0].first.path / "a.csv", NAMES)


def test_summary_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert reported(command, ["summary", str(tmp_path / "a.csv")]) == 2
    assert "there is no such file of answers" in capsys.readouterr().err
    from zoo.listening.trials import give_answer, listening_test

    test = listening_test(read_pairs(*folders(tmp_path, 2)).pairs, tmp_path / "a.csv", NAMES)
    give_answer(test, "ann", 1, "none")
    assert reported(command, ["summary", str(tmp_path / "a.csv")]) == 0
    assert f"test {test.name}: 1 answers (n) of 1 listeners to 1 pairs" in capsys.readouterr().out


def test_the_tool_names_its_command() -> None:
    source = (ROOT / "tools" / "listen.py").read_text()
    assert (
        "zoo.commands.listen import main" in source
        and "sys.path[0] = str(Path(__file__).resolve().parents[1])" in source
    )
