"""The SLURM recipe is valid shell and starts a valid run that divides among its processes."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from datamodules.prompts import PromptDataModule
from lightning_modules import run
from zoo.configuration import Run, read_configuration

SCRIPT = "configs/slurm/ddpo_node.sh"
GPUS = 4


def directives(text: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", text, re.MULTILINE))


def started(
    root: Path, folder: Path, *arguments: str, gpus: int = GPUS, **variables: str
) -> list[str]:
    """The command that the script passes to ``srun``, run by bash with a stand-in."""
    stand_in = folder / "srun"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_NTASKS_PER_NODE": str(gpus),
        **variables,
    }
    finished = subprocess.run(
        ["bash", SCRIPT, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines()


def config_of(root: Path, command: list[str]) -> Run:
    assert command[:2] == ["python", "tools/fit.py"] and (root / command[1]).is_file()
    files = [root / command[i + 1] for i, word in enumerate(command) if word == "--config"]
    return read_configuration(files, [word for word in command if "=" in word])


def test_it_is_valid_shell_and_asks_for_a_process_a_gpu(project_root):
    subprocess.run(["bash", "-n", SCRIPT], cwd=project_root, check=True)
    asked = directives((project_root / SCRIPT).read_text("utf-8"))
    assert (
        asked["nodes"] == "1"
        and asked["ntasks-per-node"] == asked["gpus-per-node"] == str(GPUS)
        and "requeue" in asked
    )


def test_it_is_started_by_sbatch_only(project_root):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM")
    }
    finished = subprocess.run(
        ["bash", SCRIPT], cwd=project_root, env=environment, capture_output=True, text=True
    )
    assert finished.returncode != 0 and "start me with sbatch" in finished.stderr


@pytest.mark.parametrize(("gpus", "more"), [(2, []), (GPUS, []), (8, ["data.val_repeats=26"])])
def test_what_it_starts_loads_and_its_rounds_divide(project_root, tmp_path, gpus, more):
    config = config_of(project_root, started(project_root, tmp_path, *more, gpus=gpus))
    assert all(advice in (project_root / SCRIPT).read_text("utf-8") for advice in more)
    module, data, trainer = config.module, config.data, config.trainer
    assert (
        trainer["strategy"] == "ddp"
        and trainer["devices"] == gpus
        and trainer["num_nodes"] == 1
        and config.resume
    )
    samples = data["prompts_per_round"] * data["repeats"]
    own, left = divmod(samples, gpus)
    assert left == 0 and own % module["sampler"]["batch_size"] == 0
    assert own % (module["update"]["batch_size"] * module["update"]["per_round"]) == 0
    prompts = PromptDataModule(**{key: value for key, value in data.items() if key != "_target_"})
    assert (len(prompts.validation_prompts) * data["val_repeats"]) % gpus == 0


def test_other_runs_and_knobs_go_through(project_root, tmp_path):
    command = started(
        project_root,
        tmp_path,
        "module.optimizer.learning_rate=1e-5",
        CONFIG="configs/ddpo/quickstart.yaml",
        OUT="runs/other",
        MEMORY="configs/ddpo/quickstart_smoke.yaml",
    )
    config = config_of(project_root, command)
    assert config.module["optimizer"]["learning_rate"] == 1e-5 and config.out_dir == "runs/other"


@pytest.mark.long
def test_it_builds_on_small_models(project_root, tmp_path, small_zoo):
    config = config_of(project_root, [*started(project_root, tmp_path), "trainer.accelerator=cpu"])
    built = run.build(config)
    assert (
        type(built.trainer.strategy).__name__ == "DDPStrategy" and built.trainer.num_devices == GPUS
    )
    assert built.module.memory.text_encoders == "offload"
