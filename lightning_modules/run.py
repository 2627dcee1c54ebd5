"""Runs a configuration: builds module, data and trainer, then trains, predicts or only checks.

The configuration is plain data (``Run``); ``module``, ``data``, loggers and callbacks are
``_target_`` trees that ``zoo.instantiate`` checks and builds. Nothing is written before everything
is built and the data is set up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.batches import PromptSource
from lightning_modules import run_folder
from lightning_modules.callbacks import default_callbacks, write_results
from lightning_modules.progress import quieten_lightning
from lightning_modules.run_summary import run_summary
from lightning_modules.start_checks import check_data, check_trainer
from zoo.configuration import Run
from zoo.errors import Stopped, UserError, is_disk_full
from zoo.files import clear_after_killed
from zoo.hub.run_facts import stated_facts, write_facts
from zoo.instantiate import check, instantiate, locate
from zoo.signatures import bind


@dataclass(frozen=True)
class Built:
    module: LightningModule
    data: LightningDataModule | None
    trainer: Trainer


class _WriteConfig(Callback):
    """Writes config.yaml just before the first batch, so that a refused start writes nothing.

    Before that it removes the half-written files of a killed run.
    """

    def __init__(self, run: Run, command_line: Sequence[str], checkpoint: Path | None) -> None:
        self.run = run
        self.command_line = command_line
        self.checkpoint = checkpoint
        self.has_trained = False
        self.has_written = False

    def write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not self.has_written:
            self.has_written = True
            out_dir = Path(self.run.out_dir)
            for folder in (out_dir, out_dir / "checkpoints", out_dir / "audio"):
                clear_after_killed(folder)
            write_facts(out_dir, stated_facts(self.run.to_dict()))
            run_folder.write_config(out_dir, self.run.to_dict(), self.command_line, self.checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint["callbacks"]
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
                state = states[callback.state_key]
                states[callback.state_key] = run_folder.moved(state, str(callback.dirpath))

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)
        self.has_trained = True


def build(run: Run, first: Sequence[Callback] = (), records: bool = True) -> Built:
    """Seeds everything, checks every key, and then builds module, data and trainer.

    With ``records`` the trainer writes metrics, samples and checkpoints to the run folder. The
    callbacks in ``first`` come before others. Raises ``UserError``, which names the key.
    """
    settings = dict(run.trainer)
    parts = {name: settings.pop(name, None) for name in ("logger", "callbacks", "plugins")}
    bind(Trainer, {**check(settings, "trainer"), **dict.fromkeys(parts)}, "trainer")
    for where, node in {
        "module": run.module,
        "data": run.data,
        **{f"trainer.{k}": v for k, v in parts.items()},
    }.items():
        if where in ("module", "data") and node is not None and "_target_" not in node:
            raise UserError(
                f"{where} needs a _target_, the class to build, such as"
                " lightning_modules.rl.ddpo.DDPO"
            )
        check(node, where)
    check_trainer(settings, locate(run.module["_target_"], "module._target_"))
    run_folder.check_place(run.out_dir)
    quieten_lightning()
    seed_everything(run.seed, workers=True, verbose=False)
    module = instantiate(run.module, "module")
    data = instantiate(run.data, "data")
    if not isinstance(module, LightningModule):
        raise UserError(f"module: {run.module['_target_']} is not a LightningModule")
    if data is not None and not isinstance(data, LightningDataModule):
        raise UserError(f"data: {run.data['_target_']} is not a LightningDataModule")
    built = {
        name: [] if node in (None, True, False) else instantiate(node, f"trainer.{name}")
        for name, node in parts.items()
    }
    loggers, callbacks, plugins = (
        value if isinstance(value, list) else [value] for value in built.values()
    )
    for name, kind, objects in (("logger", Logger, loggers), ("callbacks", Callback, callbacks)):
        for found in objects:
            if not isinstance(found, kind):
                raise UserError(
                    f"trainer.{name}: expected nodes such as {{_target_: package.Class, ...}}, got"
                    f" {found!r}"
                )
    out_dir = Path(run.out_dir)
    if not records:
        settings = {"enable_checkpointing": False, **settings}
    elif hasattr(module, "evaluate"):  # it can render its prompts: audio, curve and report
        callbacks = [*callbacks, *default_callbacks(out_dir)]
        settings = {"enable_progress_bar": False, **settings}
    else:
        loggers = [run_folder.RunCSV(out_dir), *loggers]
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(out_dir / "checkpoints")
    if settings.get("enable_checkpointing", True) and not any(
        isinstance(c, ModelCheckpoint) for c in callbacks
    ):
        callbacks.append(run_folder.every_epoch(out_dir))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins = [*plugins, run_folder.AtomicCheckpointIO()]
    settings = {"default_root_dir": str(out_dir), **instantiate(settings, "trainer")}
    try:
        arguments = bind(Trainer, settings, "trainer")
        trainer = Trainer(
            **arguments, logger=loggers or False, callbacks=[*first, *callbacks], plugins=plugins
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise UserError(f"trainer: {error}") from error
    return Built(module, data, trainer)


def fit(run: Run, command_line: Sequence[str] = ()) -> Built:
    """Trains (with ``resume`` from the last intact checkpoint), then tests and exports.

    The test runs where module and data have one, and ``module.export(out_dir)`` where it exists.
    Raises ``UserError`` before anything is written when ``out_dir`` holds another run, and
    ``OSError`` when the disk is full.
    """
    out_dir = Path(run.out_dir)
    start = _WriteConfig(run, command_line, None)
    built = build(run, [start])
    check_data(built.module, built.data)
    checkpoint, notes = run_folder.starting_point(out_dir, run.to_dict(), run.resume)  # comes last
    start.checkpoint = checkpoint
    for logger in built.trainer.loggers:
        if checkpoint and isinstance(logger, run_folder.RunCSV):
            logger.resumed_step = run_folder.logged_steps(checkpoint)
    for note in notes:
        rank_zero_info(note)
    try:
        built.trainer.fit(
            built.module, datamodule=built.data, ckpt_path=checkpoint and str(checkpoint)
        )
        if checkpoint and not start.has_trained:
            start.write(built.trainer)
            rank_zero_info(
                f"{out_dir} was already trained to its end; its results are written again"
                " (raise trainer.max_epochs to train longer)"
            )
            write_results(built.trainer, built.module)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except (KeyboardInterrupt, SystemExit) as ended:  # Lightning turns Ctrl-C into an exit
        if isinstance(ended, SystemExit) and not built.trainer.interrupted:
            raise
        raise Stopped(run_folder.how_to_continue(out_dir)) from ended
    except Exception as error:
        if (
            checkpoint
            and not start.has_trained
            and str(error).startswith("Error(s) in loading state_dict")
        ):
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{checkpoint} does not fit the model of this configuration ({reason}); use another"
                " out_dir"
            ) from error
        if not is_disk_full(error):
            raise
        raise run_folder.disk_full(out_dir) from error
    if (
        built.data is not None
        and is_overridden("test_step", built.module)
        and is_overridden("test_dataloader", built.data)
    ):
        built.trainer.test(built.module, datamodule=built.data)
    if hasattr(built.module, "export") and built.trainer.is_global_zero:
        built.module.export(out_dir)
    for line in run_summary(out_dir, built.module) if built.trainer.is_global_zero else ():
        print(line, flush=True)
    return built


def predict(run: Run) -> Any:
    """The results of ``module.predict_step`` for the data's ``predict_dataloader``.

    Uses the weights of the last intact checkpoint if ``out_dir`` holds one. It writes nothing
    itself (a ``BasePredictionWriter`` among ``trainer.callbacks`` may).
    """
    checkpoint = run_folder.newest_intact(Path(run.out_dir))
    built = build(run, records=False)
    return built.trainer.predict(
        built.module, datamodule=built.data, ckpt_path=checkpoint and str(checkpoint)
    )


def dry_run(run: Run) -> str:
    """Builds everything, trains and writes nothing, and describes what a run would need.

    Raises as ``fit`` does.
    """
    built = build(run)
    check_data(built.module, built.data)
    if hasattr(built.data, "check_files"):  # a data module whose setup reads files and no more
        built.data.check_files()
    run_folder.starting_point(Path(run.out_dir), run.to_dict(), run.resume)
    parameters = list(built.module.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in parameters) / 2**20
    state = trained * 12 / 2**20  # float32 gradient and two moments
    backbone = getattr(built.module, "backbone", None)
    prompts = built.data.all_prompts() if isinstance(built.data, PromptSource) else ()
    seconds = prompts[0].seconds if prompts else getattr(built.data, "seconds", None) or 4.096
    shape = tuple(backbone.latent_shape(seconds)) if hasattr(backbone, "latent_shape") else None
    lines = [
        f"parameters        {total:,}",
        f"trainable         {trained:,} ({trained / max(total, 1):.2%})",
        (
            f"latent shape      {shape} for {seconds} s"
            if shape
            else "latent shape      none (the module has no backbone)"
        ),
        (
            f"memory estimate   {weights + state:.1f} MB per process: {weights:.1f} weights +"
            f" {state:.1f} gradients and Adam moments; activations are not included"
        ),
        f"run folder        {run.out_dir} (nothing was written)",
    ]
    return "\n".join(lines)
