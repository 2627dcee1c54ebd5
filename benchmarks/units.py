"""Long benchmarks as units of work: each leaves a file, and what is there is not made again.

Units run in ``jobs`` processes, in the order of their list as soon as what they need is there. A
benchmark that was stopped goes on where it stopped when it is started again.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from zoo.errors import UserError


@dataclass(frozen=True)
class Unit:
    """``work(*arguments)`` writes ``file`` as its last act.

    - ``needs``: the files that must be there before.
    """

    file: Path
    work: Callable[..., None]
    arguments: tuple
    needs: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return "/".join(self.file.parts[-2:])

    def is_done(self) -> bool:
        return self.file.exists()


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the folder for this benchmark. Raises ``UserError`` while another one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
        except BlockingIOError as error:
            raise UserError(f"another benchmark is at work in {folder}; wait for it") from error
        yield


def ready(units: Sequence[Unit], running: Sequence[Unit]) -> Unit | None:
    """The first unit that is neither done nor running and has what it needs."""
    for unit in units:
        if unit not in running and not unit.is_done() and all(p.exists() for p in unit.needs):
            return unit
    return None


def run_units(units: Sequence[Unit], jobs: int, say: Callable[[str], None]) -> None:
    """Runs the units that are not done.

    Args:
        units: in the order in which they should run.
        jobs: processes; torch has one thread in each.
        say: gets a line about each unit that ends.

    Raises:
        UserError: for units that need files which nothing makes.
        Exception: of the first unit that fails, when those that run beside it have ended.
    """
    open_units = [unit for unit in units if not unit.is_done()]
    say(f"{len(units) - len(open_units)} of {len(units)} units are done")
    if not open_units:
        return
    running: dict[Future, tuple[Unit, float]] = {}
    failed: BaseException | None = None
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_one_thread) as pool:
        while True:
            unit = None
            if failed is None and len(running) < jobs:
                unit = ready(open_units, [unit for unit, _ in running.values()])
            if unit is not None:
                running[pool.submit(unit.work, *unit.arguments)] = (unit, time.monotonic())
                continue
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit, start = running.pop(future)
                failed = failed or future.exception()
                how = "failed" if future.exception() else "done"
                say(f"{unit.name} {how} in {time.monotonic() - start:.0f} s")
    if failed is not None:
        raise failed
    left = [unit for unit in open_units if not unit.is_done()]
    if left:
        lacking = next(path for path in left[0].needs if not path.exists())
        raise UserError(f"{left[0].name} needs {lacking}, which nothing makes")


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
