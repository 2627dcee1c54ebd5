"""Ctrl-C and SIGTERM print one line that says how to continue, at any moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_run
from lightning.pytorch import Callback

from lightning_modules import run
from zoo.commands import generate
from zoo.errors import Stopped, UserError, reported
from zoo.generation import generate_each

ROOT = Path(__file__).resolve().parents[1]


class StopAt(Callback):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step = step
        self.number = number

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def stopped_fit(tmp_path, step, number):
    node = f"{{_target_: {__name__}.StopAt, step: {step}, number: {int(number)}}}"
    settings = toy_run.load(tmp_path, f"trainer.callbacks=[{node}]")
    return reported(lambda argv: run.fit(settings), [])


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_fit_names_the_checkpoint_and_resume(tmp_path, capsys, importable, number, status):
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    assert stopped_fit(tmp_path, 6, number) == status  # in the second epoch of four steps
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("stopped") and "resume=true" in line and "last.ckpt" in line
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed = run.fit(toy_run.load(tmp_path, "resume=true"))
    assert resumed.trainer.global_step == 8


def test_before_the_first_checkpoint_the_line_says_so(tmp_path, capsys, importable):
    assert stopped_fit(tmp_path, 2, signal.SIGINT) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no checkpoint" in line and "resume=true" in line
    assert run.fit(toy_run.load(tmp_path, "resume=true")).trainer.global_step == 8
    assert "config.yaml" in os.listdir(tmp_path / "run")


def test_a_stop_elsewhere_is_one_line(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert reported(main, []) == 130
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_an_error_stays_an_error(capsys):
    def main(argv):
        raise UserError("wrong")

    assert reported(main, []) == 2 and capsys.readouterr().err == "error: wrong\n"


def test_generate_says_what_was_written(tmp_path, capsys, monkeypatch):
    calls = []

    def some(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate_each(*arguments)

    monkeypatch.setattr("zoo.generation.generate_each", some)
    words = ["embedded/music", "a", "b", "c", "--steps", "1", "--batch-size", "1"]
    words += ["--seconds", ".2", "--out", str(tmp_path / "g")]
    with pytest.raises(Stopped, match=r"2 of 3 samples .*--overwrite"):
        generate.main(words, lambda *_: ())
    assert len(list((tmp_path / "g").glob("*.wav"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["fit", "generate", "listen"])
def test_a_stop_while_importing_is_one_line(tool, tmp_path):
    """A tool that is stopped during its start prints no traceback."""
    arguments = {
        "fit": ["--config", "configs/ddpo/quickstart_smoke.yaml", "--print-config"],
        "generate": ["embedded/music", "a", "--out", str(tmp_path / "g"), "--steps", "500"],
        "listen": ["summary", str(tmp_path / "none.csv")],
    }[tool]
    program = subprocess.Popen(
        [sys.executable, f"tools/{tool}.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.0)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=100)
    if program.returncode == 130:  # it was not done before
        assert errors.strip().splitlines()[-1].startswith("stopped")
    assert "Traceback" not in errors
