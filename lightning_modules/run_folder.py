"""The files of a run (config.yaml, checkpoints/, metrics.csv), and how a resumed run reads them.

Every file is written beside its place and then moved, so that the last good state survives a kill
or a full disk at any moment.
"""

from __future__ import annotations

import csv
import errno
import importlib.metadata
import subprocess
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from omegaconf import OmegaConf

from lightning_modules.resume_settings import Change, changes, may_change, released_by
from zoo import __version__
from zoo.errors import UserError, parsing
from zoo.files import written_beside
from zoo.secrets import masked, masked_command

_NAMED = 8  # settings that a message names
_PACKAGES = ("torch", "torchaudio", "lightning", "diffusers", "transformers", "peft")
# what Lightning needs to resume (a checkpoint of weights only lacks some of it)
_STATE = {
    "state_dict": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
}


def provenance(
    command_line: Sequence[str], checkpoint: Path | None, changed: Sequence[Change] = ()
) -> dict[str, Any]:
    """Versions, git commit and command line of this start; ``None`` where unknown.

    ``changed``: the settings that differ from the previous start.
    """
    versions: dict[str, str | None] = {"attune": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "git_sha": _git_sha(Path(__file__).resolve().parents[1]),
        "command_line": masked_command(command_line),
        "resumed_from": None if checkpoint is None else checkpoint.name,
        "changed": [str(change) for change in changed],
    }


def _git_sha(folder: Path) -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout

    try:
        is_dirty = git("status", "--porcelain", "-uno").strip()
        return git("rev-parse", "HEAD").strip() + ("-dirty" if is_dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_config(
    out_dir: Path, config: Mapping[str, Any], command_line: Sequence[str], checkpoint: Path | None
) -> None:
    """Writes ``out_dir/config.yaml``: the resolved configuration and the provenance of all starts.

    Secrets are masked.
    """
    earlier = []
    changed = []
    if (out_dir / "config.yaml").exists():
        earlier = _read_config(out_dir / "config.yaml").get("provenance") or []
        changed = changed_settings(out_dir, config)
    record = provenance(command_line, checkpoint, changed)
    content = masked(dict(config)) | {"provenance": [*earlier, record]}
    with written_beside(out_dir / "config.yaml") as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with parsing(path, "YAML"):
            read = OmegaConf.create(path.read_text(encoding="utf-8"))
            content = OmegaConf.to_container(read, resolve=False)
    except UserError as error:
        raise UserError(f"{error}; choose another out_dir or fix the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not the configuration of a run; choose another out_dir")
    return content


def changed_settings(out_dir: Path, config: Mapping[str, Any]) -> list[Change]:
    """The settings that differ between ``out_dir/config.yaml`` and ``config``, except secrets."""
    return changes(_read_config(out_dir / "config.yaml"), masked(dict(config)))


def _listed(released: Collection[str]) -> str:
    return "".join(f", module.{name}" for name in sorted(released))


def check_place(out_dir: str) -> None:
    """Raises ``UserError`` for a path that cannot be a run folder."""
    if not out_dir.strip() or Path(out_dir).resolve() == Path(out_dir).resolve().parent:
        raise UserError(f"invalid out_dir {out_dir!r}: name a folder for the run, such as runs/one")


def moved(state: Mapping[str, Any], dirpath: str) -> dict[str, Any]:
    """Adapts the state of a ``ModelCheckpoint`` to the new place ``dirpath`` of its folder.

    Missing files are dropped. Without this Lightning would forget all files and never delete old
    checkpoints.
    """
    old = state["dirpath"]

    def new_path(path: str) -> str:
        inside = bool(path) and Path(path).is_relative_to(old)
        return str(Path(dirpath) / Path(path).relative_to(old)) if inside else path

    kept = {new_path(path): score for path, score in state["best_k_models"].items()}
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    return {
        **state,
        **{name: new_path(state[name]) for name in names},
        "dirpath": dirpath,
        "best_k_models": {path: score for path, score in kept.items() if Path(path).exists()},
    }


def holds_run(out_dir: Path) -> bool:
    return (out_dir / "config.yaml").exists() or bool(checkpoints(out_dir))


def starting_point(
    out_dir: Path, config: Mapping[str, Any], resume: bool
) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from (``None``: start at the beginning) and notes for the user.

    Raises ``UserError`` when ``out_dir`` is a file, or holds a run without ``resume`` or one with
    another module, data or seed.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"out_dir={out_dir} is a file; name a folder")
    if not holds_run(out_dir):
        return None, [f"{out_dir} holds no run yet: starting at the beginning"] if resume else []
    if not resume:
        raise UserError(
            f"{out_dir} already holds a run; use another out_dir=..., or resume=true to continue"
            " that one"
        )
    notes = []
    if (out_dir / "config.yaml").exists():
        changed = changed_settings(out_dir, config)
        released = released_by(config.get("module") or {})
        fixed = [str(change) for change in changed if not may_change(change.key, released)]
        if fixed:
            more = f" and {len(fixed) - _NAMED} more" if len(fixed) > _NAMED else ""
            raise UserError(
                f"resume=true, but the run in {out_dir} was started with other values of "
                f"{', '.join(fixed[:_NAMED])}{more}; use the old values, or another out_dir for a "
                f"new run. These settings may change: trainer{_listed(released)}"
            )
        notes += [f"resuming with changed {', '.join(map(str, changed))}"] if changed else []
    candidates = checkpoints(out_dir)
    damaged = []
    for path in candidates:
        why = why_unusable(path)
        if why is None:
            if damaged:
                notes.append(f"{'; '.join(damaged)}: continuing from the older {path}")
            return path, notes
        damaged.append(f"{path} {why}")
    if damaged:
        raise UserError(
            f"no checkpoint in {out_dir / 'checkpoints'} is intact: {'; '.join(damaged)}; start a"
            " new run in another out_dir"
        )
    return None, [*notes, f"{out_dir} holds no checkpoint yet: starting at the beginning"]


def checkpoints(out_dir: Path) -> list[Path]:
    """The checkpoints of a run, ``last.ckpt`` first, then from new to old; no hidden files."""
    paths = [
        path
        for path in (out_dir / "checkpoints").glob("[!.]*.ckpt")
        if path.exists() or path.is_symlink()
    ]
    return sorted(
        paths, key=lambda path: (path.name == "last.ckpt", path.lstat().st_mtime_ns), reverse=True
    )


def is_intact(path: Path) -> bool:
    """Whether a run can resume from a checkpoint file (see ``why_unusable``)."""
    return why_unusable(path) is None


def why_unusable(path: Path) -> str | None:
    """Why a run cannot resume from a checkpoint file; None where it can.

    A usable file has valid checksums and is plain data with everything that the trainer needs. A
    folder (a sharded checkpoint) is not checked.
    """
    if path.is_dir():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return "is damaged (an interrupted write?)"
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return "is damaged (an interrupted write?)"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 torch.load raises anything for a bad file
        return f"is not a checkpoint of plain data ({' '.join(str(error).split())[:120]})"
    if not isinstance(state, dict):
        return f"holds a {type(state).__name__}, not the state of a run"
    missing = [key for key, kind in _STATE.items() if not isinstance(state.get(key), kind)]
    return f"is not the state of a run: it has no {', '.join(missing)}" if missing else None


def logged_steps(checkpoint: Path) -> int | None:
    """The logging steps before a checkpoint; later rows of metrics.csv will be rewritten."""
    if checkpoint.is_dir():
        return None
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    loop = state.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    return loop.get("_batches_that_stepped", state.get("global_step"))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams checkpoints to a file next to their place, then moves it.

    Lightning's own class goes through memory and ``/tmp``.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        with written_beside(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def newest_intact(out_dir: Path) -> Path | None:
    """The checkpoint from which a run would resume, or None."""
    return next(filter(is_intact, checkpoints(out_dir)), None)


def disk_full(out_dir: Path) -> OSError:
    """The error of a run whose disk is full; it says how to continue."""
    path = newest_intact(out_dir)
    kept = "no checkpoint was written yet" if path is None else f"{path} is intact"
    return OSError(
        errno.ENOSPC, f"the disk is full: {kept}; free some space and continue with resume=true"
    )


def how_to_continue(out_dir: Path) -> str:
    """How to continue a run that was stopped."""
    kept = newest_intact(out_dir)
    if kept is None:
        return (
            f"no checkpoint was written yet: the same command with resume=true starts {out_dir}"
            " again"
        )
    return f"{kept} is kept: the same command with resume=true continues from it"


class RunCSV(CSVLogger):
    """Writes ``out_dir/metrics.csv``.

    A resumed run keeps the rows before ``resumed_step``, which Lightning's class would delete.
    """

    def __init__(self, out_dir: str | Path, resumed_step: int | None = None) -> None:
        super().__init__(save_dir=str(out_dir), name="", version="", flush_logs_every_n_steps=1)
        self._file = Path(out_dir) / "metrics.csv"
        self.resumed_step = resumed_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            rows, header = self._kept_rows()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                writer = CSVLogger.experiment.fget(self)
            if rows:
                writer.metrics_keys = header
                with (
                    written_beside(self._file) as temporary,
                    temporary.open("w", newline="", encoding="utf-8") as file,
                ):
                    table = csv.DictWriter(file, fieldnames=header)
                    table.writeheader()
                    table.writerows(rows)
        return self._experiment

    def _kept_rows(self) -> tuple[list[dict[str, str]], list[str]]:
        if not self._file.exists() or self.resumed_step is None:
            return [], []
        what = "a metrics.csv (move it away, then resume=true starts a new one)"
        with self._file.open(newline="", encoding="utf-8") as file, parsing(self._file, what):
            reader = csv.DictReader(file)
            rows = list(reader)
            header = list(reader.fieldnames or [])
            if rows and None in rows[-1].values():  # cut off by a kill: its step runs again
                rows.pop()
            if header and "step" not in header:
                raise UserError("it has no column 'step'")
            if any(None in row or None in row.values() for row in rows):
                raise UserError("a row has more or fewer cells than the header")
            kept = [row for row in rows if row["step"].isdecimal()]
            return [row for row in kept if int(row["step"]) < self.resumed_step], header


def every_epoch(out_dir: Path) -> ModelCheckpoint:
    """Saves a checkpoint after every epoch and keeps three; ``last.ckpt`` links to the newest."""
    return ModelCheckpoint(
        dirpath=out_dir / "checkpoints",
        monitor="step",
        mode="max",
        save_top_k=3,
        save_last="link",
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
