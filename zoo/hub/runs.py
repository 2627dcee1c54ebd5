"""Run folders: their settings, the model that they hold, and their newest checkpoint.

Checkpoints are read as plain data (``torch.load(weights_only=True)``): nothing of the trainer is
needed to use one.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError, parsing
from zoo.hub.artifact import CONFIG_FILE, read_config
from zoo.hub.sampling_settings import PartialSampling
from zoo.hub.untrusted import check_safetensors_header
from zoo.moved_names import with_current_names


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it has a config.yaml, and is not a model itself."""
    return (folder / "config.yaml").is_file() and not (folder / CONFIG_FILE).is_file()


def code_named_by(folder: Path) -> str | None:
    """The first ``_target_`` below a run's module.backbone that is not ``zoo.load``, or None."""
    node = _module_of(run_settings(folder)).get("backbone")
    return next(
        (str(target) for target in _targets(node) if target != "zoo.load"),
        None,
    )


def _module_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    module = settings.get("module")
    return module if isinstance(module, dict) else {}


def _targets(node: Any) -> Iterator[Any]:
    values: Iterable[Any] = ()
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        values = node.values()
    elif isinstance(node, list):
        values = node
    for value in values:
        yield from _targets(value)


def refuse_downloaded(folder: Path) -> None:
    """Raises ``UserError`` for a run that was downloaded: its configuration may name code."""
    from zoo.hub.store import is_downloaded

    if is_downloaded(folder):
        raise UserError(
            f"{folder} was downloaded and has a config.yaml, which may name code; only runs of "
            "your own are opened"
        )


def backbone_of_run(
    folder: Path, adapter: str | Path | None = None
) -> tuple[Any, list[tuple[Path, float]]]:
    """The backbone of a run without an exported model, and (folder, strength) of its adapter.

    ``adapter`` takes the place of the run's own; a run that trained all weights has none.
    Raises ``UserError`` where the run has left nothing.
    """
    whole = folder / "backbone.safetensors"
    denoiser = folder / "denoiser.safetensors"
    own = folder / "adapter"
    if adapter is None and not own.is_dir() and not whole.is_file() and not denoiser.is_file():
        raise UserError(
            f"the run in {folder} has neither adapter/ nor model/; has it finished? "
            "(resume=true continues it)"
        )
    model = built_from(run_settings(folder), "backbone", folder)
    if whole.is_file():
        load_weights(model, whole)
    elif denoiser.is_file():
        load_weights(model.denoiser, denoiser)
    if adapter is None and not own.is_dir():
        return model, []
    return model, [(Path(own if adapter is None else adapter), 1.0)]


def run_settings(folder: str | Path) -> dict[str, Any]:
    """The configuration of a run folder as plain values, ``{}`` where there is no config.yaml."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        return {}
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # YAML errors of several kinds
        raise UserError(f"{path} cannot be read: {error}") from error
    return with_current_names(config) if isinstance(config, dict) else {}


def recorded_sampling(folder: str | Path) -> PartialSampling:
    """How the run sampled that a model folder was exported from; it states nothing for others."""
    path = Path(folder) / CONFIG_FILE
    sampling = read_config(folder).get("sampling") if path.is_file() else None
    if not isinstance(sampling, dict):
        return PartialSampling()
    return PartialSampling.read(sampling, str(path))


def built_from(settings: Mapping[str, Any], role: str, folder: Path) -> Any:
    """The ``backbone`` or ``reward`` of a run's configuration, built as the run built it.

    Raises ``UserError``.
    """
    from zoo.instantiate import check, instantiate

    refuse_downloaded(folder)
    node = _module_of(settings).get(role)
    if node is None:
        what = "generator" if role == "backbone" else role
        raise UserError(
            f"{folder / 'config.yaml'} has no module.{role}: this run trained no {what}"
        )
    check(node, f"module.{role}")
    return instantiate(node, f"module.{role}")


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Every tensor of the file into ``module``, none left over. Raises ``UserError``."""
    from safetensors.torch import load_file

    from zoo.hub.weights import refuse_wrong_numbers

    check_safetensors_header(path)
    state = load_file(str(path))
    refuse_wrong_numbers(state, module.state_dict(), str(path))
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"the tensors in {path} do not fit the backbone of config.yaml: {error}"
        ) from error


FINISHED = ("adapter/adapter_model.safetensors", "denoiser.safetensors", "model/config.json")


@dataclass(frozen=True)
class Checkpoint:
    """``state``: name -> tensor of what learned.

    ``average``: averages of trained weights in order, None without an EMA. ``base_sha256``: hashes
    of the base at training time (``base_hashes``), ``{}`` where the run is older than they are.
    """

    path: Path
    step: int
    state: Mapping[str, Tensor] = field(repr=False)
    average: Sequence[Tensor] | None = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    base_sha256: Mapping[str, str]


def newest_result(run: Path) -> Path | Checkpoint:
    """The finished result of a run, or its newest readable checkpoint if that is newer.

    The result is ``adapter``, ``denoiser.safetensors`` or ``model``. A newer checkpoint means that
    the run was resumed and has not finished.

    Raises ``UserError`` when there is neither.
    """
    finished = [run / name for name in FINISHED if (run / name).is_file()]
    saved = [path for path in (run / "checkpoints").glob("*.ckpt") if path.is_file()]
    saved.sort(key=lambda path: (path.stat().st_mtime_ns, path.name == "last.ckpt"), reverse=True)
    done = max(finished, key=lambda path: path.stat().st_mtime_ns, default=None)
    damaged = []
    for path in saved:
        if done is not None and path.stat().st_mtime_ns <= done.stat().st_mtime_ns:
            break
        try:
            return read_checkpoint(path)
        except (UserError, OSError) as error:
            damaged.append(str(error))
    if done is not None:
        return done if done.name == "denoiser.safetensors" else done.parent
    if damaged:
        raise UserError(
            f"no checkpoint in {run / 'checkpoints'} can be read ({'; '.join(damaged[:3])}); let"
            " the run write another one (resume=true)"
        )
    raise UserError(
        f"the run in {run} has nothing to export yet: no adapter/, no model/, no checkpoint; "
        "let it finish one round or epoch"
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights and settings of a run's checkpoint, on the CPU.

    Raises ``UserError`` naming the file and what is wrong: damaged, no plain data, or not the
    state of a run. ``OSError`` where it cannot be opened.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # RuntimeError, UnpicklingError, EOFError and more, by what is wrong
        message = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be read as a checkpoint of plain data: it is damaged (an interrupted "
            f"write?) or holds code ({type(error).__name__}: {message})"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} is not the checkpoint of a run: it has no state_dict")
    try:
        content = {**_old_keys(content), **content}
        ema = content.get("ema")
        return Checkpoint(
            path,
            int(content.get("global_step", 0)),
            content["state_dict"],
            None if ema is None else ema["average"],
            content.get("hyper_parameters") or {},
            content.get("base_sha256") or {},
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the state of a run: a part of it is not what a run writes ({error})"
        ) from error


def _old_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """What checkpoints of 0.1.0-dev kept at other places: averages and hashes of the base."""
    exported = (content.get("callbacks") or {}).get("AdapterExport") or {}
    ema = (content.get("ddpo") or {}).get("ema")
    return {"ema": ema, "base_sha256": exported.get("base_sha256")}


@torch.no_grad()
def fill(
    module: nn.Module, checkpoint: Checkpoint, prefix: str, trained: Sequence[str], *, whole: bool
) -> None:
    """Copies the weights of a checkpoint into ``module``, averages instead of trained ones.

    Args:
        module: the model.
        checkpoint: a run's.
        prefix: what the module's names begin with in the checkpoint ("backbone.").
        trained: names of the trained weights, in order.
        whole: whether the checkpoint holds every tensor of the module; else only the trained ones,
            on a base that the configuration names.

    Raises: ``UserError`` for tensors that are missing, left over or of another shape.
    """
    stored = {
        name.removeprefix(prefix): value
        for name, value in checkpoint.state.items()
        if name.startswith(prefix)
    }
    own = {**dict(module.named_parameters()), **module.state_dict(keep_vars=True)}
    wanted = module.state_dict().keys() if whole else set(trained)
    differing = sorted(wanted ^ stored.keys()) or [
        name for name in stored if stored[name].shape != own[name].shape
    ]
    if differing:
        raise UserError(
            f"{checkpoint.path} does not fit the model of config.yaml: {differing[0]} differs"
        )
    for name, value in stored.items():
        own[name].copy_(value)
    if checkpoint.average is None:
        return
    shapes = [tuple(value.shape) for value in checkpoint.average]
    if shapes != [tuple(own[name].shape) for name in trained]:
        raise UserError(
            f"the averaged weights in {checkpoint.path} are of other parameters than config.yaml"
            " trains"
        )
    for name, value in zip(trained, checkpoint.average, strict=True):
        own[name].copy_(value)


def metrics_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv; empty cells are left out. An absent file is no rows.

    Raises ``UserError`` naming a file that is not a table of numbers.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file, parsing(path, "metrics.csv"):
        rows = list(csv.DictReader(file))
        if any(None in row for row in rows):
            raise UserError("a row has more cells than there are columns")
        return [{name: float(cell) for name, cell in row.items() if name and cell} for row in rows]


def held_out_numbers(run: Path, step: int | None) -> dict[str, dict[str, float]]:
    """Name -> {"before", "after"} of held-out numbers in metrics.csv, up to ``step`` (None: all).

    ``before`` is there when the run was evaluated before training. Without a file, or without
    held-out numbers: ``{}``.
    """
    rows = metrics_rows(run / "metrics.csv")
    rows = [row for row in rows if math.isfinite(row.get("held_out/mean", math.nan))]
    rows = [row for row in rows if step is None or row.get("step", 0) <= step]
    if not rows:
        return {}
    names = sorted(
        name for name in rows[-1] if name.startswith("held_out/") and name.endswith("/mean")
    )
    before = rows[0] if rows[0].get("round") == 0 and len(rows) > 1 else {}
    return {
        name: ({"before": before[name]} if name in before else {}) | {"after": rows[-1][name]}
        for name in names
    }
