"""Shows the progress of a run: bars in a terminal, lines in a file.

``quieten_lightning`` filters messages of Lightning that do not help users.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PHASES = ("rollout", "reward", "update")
LINE_EVERY_S = 30.0  # within a round or an evaluation, where there are no bars
HELD_OUT = "held-out "  # before the phases of an evaluation

_NOISE = re.compile(
    r"litlogger|litmodels|Tip:|TPU available|HPU available|graceful shutdown|Received SIGTERM"
)
_WARNINGS = (
    r".*module\(s\) in eval mode at the start of training",  # as rewards and frozen parts should be
    r".*You have overridden `transfer_batch_to_device`",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*does not have many workers",
    r".*exists and is not empty",  # a resumed run's checkpoints
)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _NOISE.search(record.getMessage())


def quieten_lightning() -> None:
    """Filters Lightning's advertisements and warnings about intended states; may be repeated."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        for logger in (logging.getLogger(name), *_loggers_below(name)):
            if not any(isinstance(one, _Filter) for one in logger.filters):
                logger.addFilter(_Filter())
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _loggers_below(name: str) -> list[logging.Logger]:
    known = logging.root.manager.loggerDict
    below = [one for key, one in known.items() if key.startswith(f"{name}.")]
    return [one for one in below if isinstance(one, logging.Logger)]


class RoundProgress(Callback):
    """Shows rounds, and rollout, reward and update within a round; labels evaluations separately.

    In a terminal these are bars. In a file, a pipe or the log of a batch system, every round and
    every evaluation is a line, and a long one has a line every 30 seconds. Only the first process
    shows progress.

    Args:
        console: where to write; by default the standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._rounds: int | None = None
        self._first = 0
        self._started = 0.0
        self._round_started = 0.0
        self._last_line = 0.0
        self._is_evaluating = False
        self._is_on = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)
        self._first = _done(trainer)
        self._rounds = _rounds(trainer)
        self._started = time.monotonic()
        self._round_started = self._started
        if self._bars is not None:
            self._bars.reset(self._tasks["round"], total=self._rounds, completed=self._first)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self._is_on:
            return
        mean = trainer.callback_metrics.get("reward/mean")
        done = _done(trainer)
        reward = "" if mean is None else f"   reward {float(mean):+.3f}"
        if self._bars is not None:
            self._bars.update(self._tasks["round"], completed=done, description=f"round{reward}")
        else:
            self._say_round(done, reward)
        self._round_started = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_evaluating = True
        if self._is_on and self._bars is None and trainer.sanity_checking:
            self._say("held-out prompts before training ...")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_evaluating = False
        if not self._is_on:
            return
        if self._bars is not None:
            for phase in PHASES:
                self._bars.update(self._tasks[HELD_OUT + phase], visible=False)
            return
        mean = getattr(pl_module, "held_out", {}).get("held_out/mean")
        score = "" if mean is None else f"   reward {mean:+.3f}"
        when = "before training" if trainer.sanity_checking else f"after round {_done(trainer)}"
        self._say(f"held-out prompts {when}{score}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_on or not trainer.is_global_zero or not hasattr(pl_module, "report"):
            return
        self._is_on = True
        self._last_line = time.monotonic()
        console = self.console or Console()
        self.console = console
        pl_module.report = self._report
        if not console.is_terminal:
            return
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        add = self._bars.add_task
        self._tasks = {"round": add("round", total=None)}
        for phase in (*PHASES, *(HELD_OUT + phase for phase in PHASES)):
            self._tasks[phase] = add(f"  {phase}", total=None, visible=phase in PHASES)
        self._bars.start()

    def _report(self, phase: str, done: int, total: int) -> None:
        name = HELD_OUT + phase if self._is_evaluating else phase
        if self._bars is None:
            if self._is_on and time.monotonic() - self._last_line > LINE_EVERY_S:
                self._say(f"  {name} {done}/{total}")
            return
        task = self._bars.tasks[self._tasks[name]]
        if done < task.completed or task.finished:  # the next round starts at 0
            self._bars.reset(self._tasks[name], total=total)
        self._bars.update(self._tasks[name], completed=done, total=total, visible=True)

    def _say_round(self, done: int, reward: str) -> None:
        now = time.monotonic()
        seconds = now - self._round_started
        total = ""
        left = ""
        if self._rounds is not None:
            seconds_per_round = (now - self._started) / max(done - self._first, 1)
            total = f"/{self._rounds}"
            left = f"   about {_clock(seconds_per_round * max(self._rounds - done, 0))} left"
        self._say(f"round {done}{total}{reward}   {seconds:.1f} s{left}")

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
        self.console.file.flush()
        self._last_line = time.monotonic()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._is_on = False


def _done(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def _rounds(trainer: Trainer) -> int | None:
    """The total number of rounds of the run; None where it is limited by time or steps."""
    epochs = trainer.max_epochs
    batches = trainer.num_training_batches
    if trainer.max_steps != -1 or not epochs or epochs < 0 or batches in (0, float("inf")):
        return None
    return int(batches) * epochs


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
