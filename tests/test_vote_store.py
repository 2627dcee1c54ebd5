"""The file of votes: nothing is lost or doubled, whatever happens to the server or the file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from toy_study import Clock, listen, small_study

from zoo.errors import UserError
from zoo.listening import vote_store
from zoo.listening.study import join, vote
from zoo.listening.study_views import next_view
from zoo.listening.vote_store import Busy, VoteStore, create_store, open_store, served_alone

ROOT = Path(__file__).resolve().parents[1]


def rows(store: VoteStore, table: str) -> list[dict]:
    with store.reading() as connection:
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def test_a_new_file_is_in_wal_mode_and_synced(tmp_path: Path) -> None:
    store = create_store(tmp_path / "new" / "votes.sqlite")
    with store.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert create_store(store.path) == open_store(store.path) == store
    with pytest.raises(UserError, match="no such file"):
        open_store(tmp_path / "other.sqlite")
    assert not (tmp_path / "other.sqlite").exists()


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    text = tmp_path / "notes.sqlite"
    text.write_text("these are my notes, and no database at all\n" * 40)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE study (key TEXT, value TEXT)")
    connection.close()
    strange = tmp_path / "strange.sqlite"
    with sqlite3.connect(strange) as connection:
        connection.execute("CREATE TABLE things (a)")
    connection.close()
    for path in (text, other, strange):
        before = path.read_bytes()
        with pytest.raises(UserError, match=path.name):
            create_store(path)
        assert path.read_bytes() == before
    with pytest.raises(UserError, match="not a file"):
        create_store(tmp_path)


def test_a_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    store = create_store(tmp_path / "votes.sqlite")
    with pytest.raises(RuntimeError), store.writing() as connection:
        connection.execute("INSERT INTO study VALUES ('half', '1')")
        raise RuntimeError
    assert [row["key"] for row in rows(store, "study")] == ["format"]


def test_a_locked_file_is_said_to_be_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vote_store, "BUSY_S", 0.05)
    store = create_store(tmp_path / "votes.sqlite")
    with store.writing(), pytest.raises(Busy) as caught:
        create_store(store.path)
    assert caught.value.errno == errno.EBUSY and caught.value.filename == str(store.path)
    assert create_store(store.path) == store


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="asks for the rights of POSIX")
def test_a_read_only_file_is_refused_before_anyone_listens(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp())  # a folder that another user may enter
    try:
        create_store(folder / "votes.sqlite")
        for name in ("votes.sqlite", "missing.sqlite"):
            folder.chmod(0o555)
            if (folder / name).exists():
                (folder / name).chmod(0o444)
            script = (
                "import os, sys; from zoo.listening.vote_store import create_store\n"
                "os.geteuid() or os.setuid(65534)\n"  # root may write everywhere
                "try: create_store(sys.argv[1])\n"
                "except OSError as error: print(error.errno, error.filename)"
            )
            run = subprocess.run(
                [sys.executable, "-c", script, str(folder / name)],
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
            assert run.stdout.split() == [str(errno.EROFS), str(folder / name)], run.stderr
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_two_servers_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    script = "import sys; from zoo.listening.vote_store import served_alone\n"
    script += "with served_alone(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, str(path)]
    other = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {other.pid}"), served_alone(path):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    with served_alone(path):  # a killed server holds nothing
        pass


def test_twenty_raters_click_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rater has one vote, although every click is sent three times."""
    study = small_study(tmp_path, repeats=0, negatives=0)
    clock = Clock(monkeypatch)
    names = [f"rater {i}" for i in range(20)]
    keys = {}
    for name in names:
        view = next_view(study, join(study, name))
        listen(study, clock, view)
        keys[name] = view["key"]
    failures: list[Exception] = []
    gate = threading.Barrier(60)

    def click(name: str) -> None:
        try:
            gate.wait()
            vote(study, keys[name], f"click of {name}", {"quality": "4"})
        except (OSError, UserError, sqlite3.Error) as error:
            failures.append(error)

    threads = [threading.Thread(target=click, args=(name,)) for name in names * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(row["trial"] for row in rows(study.store, "votes")) == sorted(keys.values())
    assert [row["what"] for row in rows(study.store, "history")] == ["vote"] * 20


_VOTERS = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import pytest
from toy_study import Clock, listen, small_study
from zoo.listening.study import join, vote
from zoo.listening.study_views import next_view

def click_for_ever(number):
    study = small_study(Path(sys.argv[1]), repeats=0, negatives=0)
    clock = Clock(pytest.MonkeyPatch())
    join(study, "ann", resume=True)
    while True:
        for at in range(8):
            view = next_view(study, "ann", at)
            if not all(view["heard"]):
                listen(study, clock, view)
            for _ in range(5):
                number += 1
                click = f"click {{number:06d}}"
                vote(study, view["key"], click, {{"quality": str(1 + number % 5)}})
                print(view["key"], click, flush=True)  # acknowledged

for line in sys.stdin:  # every line starts a process of its own
    child = os.fork()
    if not child:
        print(os.getpid(), flush=True)
        click_for_ever(int(line))
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_server_that_is_killed_in_mid_click_loses_nothing(tmp_path: Path) -> None:
    """A real process is killed (SIGKILL) eight times while it saves clicks without a pause."""
    kills = 8
    script = _VOTERS.format(tests=str(ROOT / "tests"))
    voters = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    acknowledged: list[str] = []
    for number in range(kills):
        voters.stdin.write(f"{10_000 * number}\n")
        voters.stdin.flush()
        process = int(voters.stdout.readline())
        lines = [voters.stdout.readline() for _ in range(3 + 4 * number)]
        os.kill(process, signal.SIGKILL)
        while (line := voters.stdout.readline()) != "ended\n":
            lines.append(line.removesuffix("ended\n"))
            if line.endswith("ended\n"):
                break
        acknowledged += [line.strip() for line in lines if line.endswith("\n")]
    voters.communicate()
    study = small_study(tmp_path, repeats=0, negatives=0)
    history = rows(study.store, "history")
    saved = [f"{row['trial']} {row['click']}" for row in history]
    assert len(acknowledged) >= kills * 3 and set(acknowledged) <= set(saved)
    # what was saved and not acknowledged any more: at most one click for each kill
    assert len(saved) - len(set(acknowledged)) <= kills and len(set(saved)) == len(saved)
    last = {row["trial"]: json.loads(row["answer"]) for row in history}
    votes = {row["trial"]: json.loads(row["answer"]) for row in rows(study.store, "votes")}
    assert votes == last, "the vote of a trial is its last click"
    with study.store.reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    trial, _, click = acknowledged[-1].partition(" ")
    vote(study, trial, click, {"quality": "1"})  # sent again after the restart
    assert rows(study.store, "history") == history


def test_the_file_itself_refuses_a_second_vote(tmp_path: Path) -> None:
    """Whatever a server does: one trial per rater and item, and one vote per trial."""
    study = small_study(tmp_path, repeats=0, negatives=0)
    join(study, "ann")
    add = (
        "INSERT INTO trials SELECT 'other', rater, 99, item, ?, swapped, decoy FROM trials LIMIT 1"
    )
    with study.store.writing() as connection:
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(add, ("item",))
        connection.execute(add, ("repeat",))
        save = "INSERT INTO votes VALUES ('other', '{}', NULL, '')"
        connection.execute(save)
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(save)
