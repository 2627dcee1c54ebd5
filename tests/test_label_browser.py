"""The labelling page in a real browser (headless Chromium): raters, keys, a killed server."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from toy_browser import Browser, Page, browser, chromium
from toy_study import EVENTS, command, generations

from datamodules.preferences.dialects import read_labels
from datamodules.preferences.votes import aggregate, krippendorff_alpha
from zoo.generations import Sample, read_samples, write_index
from zoo.listening.items import Item
from zoo.listening.study_trials import Trial, trial_from
from zoo.listening.vote_results import read_study
from zoo.listening.vote_store import open_store
from zoo.types import Prompt

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("starlette", reason="the labelling page needs the extra app")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium()
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


class Server:
    """``tools/listen.py label`` as its own process, at a port that stays the same."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.words = words
        self.port = 0
        self.start()

    def start(self) -> None:
        words = [sys.executable, "tools/listen.py", "label", *self.words, "--port", str(self.port)]
        words += ["--votes", str(self.folder / "votes.sqlite")]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for line in self.process.stdout:
            if found := re.fullmatch(r"open (http://127\.0\.0\.1:(\d+)/)\n", line):
                self.address = found[1]
                self.port = int(found[2])
                return
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)
        self.process.stdout.close()


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Server]:
    server = Server(folder, *words)
    try:
        yield server
    finally:
        server.kill()


def ready(page: Page) -> dict[str, Any]:
    """Waits for a trial with its sounds and returns what the server said of it."""
    page.wait(
        "view && !waiting && (view.stage !== 'trial' ||"
        " (players.length && players.every((one) => !one.button.disabled)))"
    )
    return page.value("view")


def enter(page: Page, name: str) -> None:
    page.wait("document.body.dataset.stage === 'door'")
    page.value("document.querySelector('#name').value = ''")
    page.type(name)
    page.key("Enter")


def hear_and_answer(page: Page, keys: Callable[[dict[str, Any]], str]) -> None:
    """Plays every sound of the trial on the page and answers, all by the keyboard."""
    view = ready(page)
    for side in range(len(view["sounds"])):
        page.key(" ")
        page.wait(f"players[{side}].heard")
    for key in keys(view):
        page.key(key)
    if view["fields"][0]["many"] or len(view["fields"]) > 1:
        page.key("Enter")
    page.wait(f"view.key !== {view['key']!r} && !waiting")


def asked(votes: Path, key: str) -> tuple[Trial, Item]:
    """What a trial on the page is about; the page itself is not told."""
    store = open_store(votes)
    with store.reading() as connection:
        row = connection.execute("SELECT * FROM trials WHERE key = ?", (key,)).fetchone()
    return trial_from(row), read_study(store).items[row["item"]]


# the votes: 1 1 1 / 1 1 1 / 0 0 1 / 0 0 1
_OBSERVED = (0 + 0 + 2 / 3 + 2 / 3) / 4  # mean squared difference within clips
_EXPECTED = 2 * 4 * 8 / (12 * 11)  # and between all twelve votes, four of which are 0
ALPHA = 1 - _OBSERVED / _EXPECTED


def test_three_raters_label_and_the_server_is_killed_in_between(
    chrome: Browser, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Ann and Ben hear what is there; Cem ticks everything. Agreement and files are right."""
    generations(tmp_path, count=4)
    votes = tmp_path / "votes.sqlite"
    words = [str(tmp_path / "base"), "--task", "integrity", "--repeats", "1", "--negatives", "1"]
    complete = {0, 1}  # items in which both sounds are there, in this test

    def honest(view: dict[str, Any]) -> str:
        trial, item = asked(votes, view["key"])
        assert view["text"] == item.prompt and list(item.events) == list(
            view["fields"][0]["options"]
        )
        if trial.kind == "negative":
            return ""
        return "12" if trial.item in complete else "1"

    with serving(tmp_path, *words, "--headphones", "off") as server:
        pages = {name: chrome.page(server.address) for name in ("ann", "ben", "cem")}
        for name, page in pages.items():
            enter(page, name)
            assert ready(page)["total"] == 6
        hear_and_answer(pages["ann"], honest)
        hear_and_answer(pages["ann"], honest)
        hear_and_answer(pages["ben"], honest)
        hear_and_answer(pages["cem"], lambda view: "12")

        # the server dies under a click; the page sends it again until it is saved
        view = ready(pages["ben"])
        pages["ben"].key(" ")
        pages["ben"].wait("players[0].heard")
        for key in honest(view):
            pages["ben"].key(key)
        server.kill()
        pages["ben"].key("Enter")
        pages["ben"].wait("!document.getElementById('notice').hidden")
        assert pages["ben"].value("view.key") == view["key"]
        server.start()
        pages["ben"].wait(f"view.key !== {view['key']!r}")
        assert pages["ben"].value("view.done") == 2
        assert pages["ben"].value("document.getElementById('notice').hidden")

        # ann continues in another window, under her name
        again = chrome.page(server.address)
        enter(again, "ann")
        again.wait("document.getElementById('ask').open")
        again.click("#ask-yes")
        assert ready(again)["done"] == 2
        pages["ann"] = again
        for name, page in pages.items():
            while ready(page)["stage"] == "trial":
                hear_and_answer(page, honest if name != "cem" else lambda view: "12")
            page.wait("document.body.dataset.stage === 'questions'")
            page.value(
                "document.querySelectorAll('fieldset').forEach((one) =>"
                " one.querySelector('button').click())"
            )
            page.click("#next")
            page.wait("!!document.getElementById('code')")
        codes = {name: page.value("view.code") for name, page in pages.items()}

    result = read_study(open_store(votes))
    raters = {rater.name: rater for rater in result.raters}
    assert {name: rater.code for name, rater in raters.items()} == codes
    assert [(one.passed, one.agreed) for one in raters.values()] == [(1, 1), (1, 1), (0, 1)]
    assert raters["ann"].about["device"] == "headphones"
    with open_store(votes).reading() as connection:
        kinds = connection.execute("SELECT what, COUNT(*) FROM history GROUP BY what").fetchall()
    assert [tuple(row) for row in kinds] == [("vote", 18)], "nothing was lost or doubled"

    out = tmp_path / "labels.jsonl"
    command(["export", str(votes), "--out", str(out)])
    records = read_labels(out).checked()
    assert len(records) == 4 and {record.task for record in records} == {"integrity"}
    for number, record in enumerate(records):
        given = {vote.rater: vote.value for vote in record.votes}
        truth = float(number in complete)
        assert given == {"ann": truth, "ben": truth, "cem": 1.0}
        assert record.audio == f"base/{number:02d}_seed1.wav"
        assert all(vote.time_ms > 0 for vote in record.votes)
    assert krippendorff_alpha(records) == pytest.approx(ALPHA)
    command(["export", str(votes), "--out", str(out), "--min-passed", "1"])
    careful = read_labels(out).checked()
    assert {vote.rater for record in careful for vote in record.votes} == {"ann", "ben"}
    assert krippendorff_alpha(careful) == 1.0
    capsys.readouterr()
    command(["results", str(votes), "--out", str(tmp_path / "results.html")])
    said = capsys.readouterr().out
    assert f"{ALPHA:.3f}" in said and codes["cem"] in said
    labels = [record.label for record in aggregate(records, "majority")[0]]
    assert labels == [1.0, 1.0, 0.0, 0.0]


def test_a_pair_by_keys_back_and_corrected(chrome: Browser, tmp_path: Path) -> None:
    generations(tmp_path, "base", count=2)
    generations(tmp_path, "tuned", count=2, hz=500.0)
    words = [str(tmp_path / "base"), str(tmp_path / "tuned"), "--task", "pairwise"]
    words += ["--headphones", "off", "--no-questionnaire", "--repeats", "0", "--negatives", "0"]
    with serving(tmp_path, *words) as server:
        page = chrome.page(server.address + "?rater=Dora")
        page.wait("document.body.dataset.stage === 'door'")
        assert page.value("document.getElementById('name').value") == "Dora"
        page.click("#start")
        first = ready(page)
        page.key("1")  # nothing was heard yet
        assert page.value("document.querySelectorAll('.option:disabled').length") == 4
        page.key("b")
        page.wait("players[1].heard")
        page.key("1")
        assert page.value("view.done") == 0, "one of two sounds is not enough"
        page.key("a")
        page.wait("players[0].heard")
        page.key("4")
        page.wait("view.done === 1")
        page.key("ArrowLeft")
        page.wait(f"view.key === {first['key']!r}")
        ready(page)
        chosen = "document.querySelector('[aria-checked=true]').dataset.value"
        assert page.value(chosen) == "both_bad"
        page.key("2")
        page.wait(f"view.key !== {first['key']!r}")
        hear_and_answer(page, lambda view: "3")
        page.wait("!!document.getElementById('code')")
        assert page.value("view.done") == 2
        page.click("#restart")
        page.click("#ask-yes")
        assert ready(page)["done"] == 0
        assert not page.value("players.some((one) => one.heard)"), "all is heard again"
    store = open_store(tmp_path / "votes.sqlite")
    with store.reading() as connection:
        history = connection.execute("SELECT what, answer FROM history ORDER BY id").fetchall()
    assert [tuple(row) for row in history] == [
        ("vote", '{"better": "both_bad"}'),
        ("correction", '{"better": "b"}'),
        ("vote", '{"better": "tie"}'),
        ("withdrawn", None),
        ("withdrawn", None),
    ]
    assert read_study(store).given == ()


def test_text_is_never_markup_and_a_lost_clip_is_passed_over(
    chrome: Browser, tmp_path: Path
) -> None:
    folder = generations(tmp_path, count=2)
    samples = list(read_samples(folder))
    evil = "<img src=x onerror=\"document.title='owned'\"> & <b>rain</b>"
    events = ["<i>dog</i>", EVENTS[0][1]]
    samples[0] = Sample(samples[0].path, Prompt("p0", evil, seconds=0.2, labels={"events": events}))
    write_index(folder, samples)
    words = [str(folder), "--task", "integrity", "--headphones", "off", "--no-questionnaire"]
    with serving(tmp_path, *words, "--repeats", "0", "--negatives", "0") as server:
        page = chrome.page(server.address)
        enter(page, "<script>alert(1)</script>")
        page.wait("!document.getElementById('notice').hidden")
        assert page.value("document.body.dataset.stage") == "door"
        enter(page, "Eva")
        seen = []
        ready(page)
        if page.value("view.text") != evil:
            hear_and_answer(page, lambda view: "1")
            ready(page)
        assert page.value("document.querySelector('blockquote').textContent") == evil
        assert page.value("document.querySelectorAll('#stage img, #stage b, #stage i').length") == 0
        assert page.value("document.title") == "Listening study"
        seen = page.value("[...document.querySelectorAll('.option span')].map(s => s.textContent)")
        assert seen == events
        samples[0].path.unlink()
        page.go(server.address)
        enter(page, "Eva")
        page.wait("document.getElementById('ask').open")
        page.click("#ask-yes")
        page.wait("view && view.missing === 1")
        while ready(page)["stage"] == "trial":
            hear_and_answer(page, lambda view: "1")
        page.wait("document.body.dataset.stage === 'done'")
        assert "1 sounds could not be played" in page.value("document.body.innerText")


def test_headphones_are_asked_about_first(chrome: Browser, tmp_path: Path) -> None:
    folder = generations(tmp_path, count=1)
    words = [str(folder), "--task", "quality", "--headphones", "require", "--repeats", "0"]
    with serving(tmp_path, *words, "--negatives", "0") as server:
        page = chrome.page(server.address)
        enter(page, "Fay")
        for attempt in range(2):
            for number in range(6):
                page.wait(f"document.body.innerText.includes('{number + 1} of 6')")
                page.wait("!players[0].button.disabled")
                page.value("players[0].audio.playbackRate = 8")  # a rater cannot; this saves time
                page.key(" ")
                page.click(".option")
            if not attempt:
                page.wait("document.body.innerText.includes('not reliable')")
        page.wait("document.body.dataset.stage === 'refused'")
    assert read_study(open_store(tmp_path / "votes.sqlite")).raters[0].headphones is False
