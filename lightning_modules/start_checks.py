"""Checks before a run or ``--dry-run`` what its first round would refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from zoo.errors import UserError
from zoo.signatures import argument_names

_OURS = {  # trainer's setting -> (parameter of modules that have their own setting, what to use)
    "gradient_clip_val": ("max_grad_norm", "module.{key}"),
    "gradient_clip_algorithm": ("max_grad_norm", "module.{key}, which cuts the norm"),
    "accumulate_grad_batches": ("per_round", "module.update.batch_size and module.{key}"),
}


def check_trainer(settings: Mapping[str, Any], target: Any) -> None:
    """Raises ``UserError`` for settings of ``lightning.Trainer`` that do not work here.

    They train nothing, need a device that is missing, or have no effect because ``target``, the
    module's class, has its own setting.
    """
    for name in ("max_epochs", "max_steps"):
        value = settings.get(name)
        if isinstance(value, int) and (value == 0 or value < -1):
            raise UserError(
                f"invalid trainer.{name} {value}: expected at least 1, or -1 for no end"
            )
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):
        value = settings.get(name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"invalid trainer.{name} {value}: expected at least 1")
    if settings.get("limit_train_batches") == 0:
        raise UserError("invalid trainer.limit_train_batches 0: nothing would be trained")
    own = {name.rpartition(".")[2]: name for name in argument_names(target)}
    for name, (parameter, advice) in _OURS.items():
        value = settings.get(name)
        is_default = value is None or (name == "accumulate_grad_batches" and value == 1)
        if not is_default and parameter in own:
            use = advice.format(key=own[parameter])
            raise UserError(f"trainer.{name} has no effect on {target.__name__}; use {use}")
    precision = str(settings.get("precision"))
    is_full = precision == "64" or (precision.endswith("-true") and precision != "32-true")
    if is_full and hasattr(target, "batch_types"):
        raise UserError(
            f"trainer.precision={precision}: {target.__name__} keeps trained weights in float32; "
            "use 32-true, 16-mixed or bf16-mixed"
        )
    _check_accelerator(settings.get("accelerator"))


def _check_accelerator(name: Any) -> None:
    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    found = {"gpu": cuda or mps, "cuda": cuda, "mps": mps}
    if found.get(name, True):
        return
    why = ""
    if not torch.version.cuda and name != "mps":
        why = " (the installed torch is built without CUDA)"
    raise UserError(
        f"trainer.accelerator={name}: this machine has no such device{why}; "
        "use trainer.accelerator=cpu, or auto for the best available one"
    )


def check_data(module: LightningModule, data: LightningDataModule | None) -> None:
    """Raises ``UserError`` when ``module`` has no data, or data of a kind that it does not take.

    Compares ``batch_types`` of the module with ``batch_type`` of the data module, and then calls
    the module's ``check_first_round(data)``.
    """
    if data is None and not is_overridden("train_dataloader", module):
        kind = type(module).__name__
        raise UserError(f"data is missing: {kind} needs a data module; set data: {{_target_: ...}}")
    wanted = getattr(module, "batch_types", None)
    given = getattr(data, "batch_type", None)
    if wanted and given and not issubclass(given, wanted):
        names = " or ".join(kind.__name__ for kind in wanted)
        raise UserError(
            f"data: {type(data).__name__} yields {given.__name__}, but {type(module).__name__} "
            f"trains on {names}; use another data module"
        )
    if hasattr(module, "check_first_round"):
        module.check_first_round(data)
