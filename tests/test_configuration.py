"""Configuration files, overrides, ``_target_`` trees and the command; messages for mistakes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import yaml
from toy_run import ROOT, config, load
from toys import ToyBackbone, ToyReward

from lightning_modules import run
from zoo import files
from zoo.configuration import read_configuration
from zoo.errors import UserError, describe, did_you_mean, is_disk_full, reported
from zoo.instantiate import instantiate, locate
from zoo.rewards.mood import EmotionReward
from zoo.signatures import bind
from zoo.types import Backbone, Reward

if TYPE_CHECKING:
    from fractions import Fraction as Unseen  # an annotation that is not there at run time


def test_overrides_come_before_interpolation_and_later_files_win(tmp_path):
    second = tmp_path / "second.yaml"
    second.write_text("seed: 5\nmodule: {learning_rate: 1e-3}")
    loaded = read_configuration(
        [config(tmp_path), second],
        ["module.width=6", "trainer.callbacks=[{a: 1}]", "trainer.callbacks.0.a=2"],
    )
    assert loaded.seed == 5 and loaded.data["width"] == 6 and loaded.module["learning_rate"] == 1e-3
    assert loaded.trainer["callbacks"] == [{"a": 2}]
    assert run.build(load(tmp_path, "module.width=5")).data.points.shape[1] == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed"], r"'seed' is not of the form key=value.*did you mean seed=VALUE"),
        (["--fast"], "'--fast' is not of the form key=value"),
        (["modul.width=3"], "unknown key 'modul.width'; did you mean 'module'"),
        (["seed=abc"], "override 'seed=abc': seed: Value 'abc'"),
        (["module=text"], "override 'module=text': module: Cannot assign str"),
        (["seed=[1,"], "the shell has split the value of seed"),
        (["seed=[1,]]"], "override 'seed=.1,..': "),
        (["module.width=" + "[" * 150 + "]" * 150], "override .*nested too deeply"),
        (["width=3"], "unknown key 'width'; did you mean data.width or module.width"),
        (["trainer=[1]"], "override 'trainer=.1.': trainer"),
        (["out_dir=???"], "out_dir is missing; set it in a --config file or as out_dir="),
        (["data.width=${module.wid}"], "module.wid' not found"),
        (["module.widht=3"], "module.widht: Line takes no 'widht'; did you mean 'width'"),
        (["module.width=four"], "module.width: Line expects int, got 'four'"),
        (["module.width=true"], "module.width: Line expects int, got True"),
        (["module.kind=c"], "module.kind: Line expects .*Literal.*, got 'c'"),
        (["module.width=null"], "module.width: Line expects int, got None"),
        (["module.width=0"], r"module \(toy_run.Line\): width must be at least 1, got 0"),
        (
            ["module._target_=toy_run.Lina"],
            "module._target_: toy_run has no 'Lina'; did you mean 'Line'",
        ),
        (["module._target_=Line"], "module._target_: 'Line' is not a dotted path such as"),
        (
            ["module._target_=lightning_modules.rl.ddop.DDPO"],
            "lightning_modules.rl has no 'ddop'; did you mean 'ddpo'",
        ),
        (
            ["module._target_=lightning_module.ddpo.DDPO"],
            "no package 'lightning_module'.*did you mean 'lightning_modules'",
        ),
        (["module._target_=toy_run.ROOT"], "toy_run.ROOT is not a class or function"),
        (
            ["module._target_=toy_run.WithoutLoop"],
            "takes no 'width'; there is nothing to",
        ),
        (["data._target_=toy_run.Line"], "data: toy_run.Line is not a LightningDataModule"),
        (
            ["trainer.max_epoch=3"],
            "trainer.max_epoch: Trainer takes no 'max_epoch'; did you mean 'max_epochs'",
        ),
        (["trainer.max_epochs=many"], "trainer.max_epochs: Trainer expects .*int.*, got 'many'"),
        (["trainer.accelerator=cpus"], "trainer: .*accelerator"),
        (["trainer.accelerator=tpu"], "trainer: .*torch_xla"),
        (
            ["trainer.logger=wandb"],
            "trainer.logger: expected nodes such as {_target_: .*, got 'wandb'",
        ),
        (["trainer.callbacks=[timer]"], "trainer.callbacks: expected nodes .*, got 'timer'"),
        (
            ["data={_target_: toy_run.needs_more}"],
            r"data \(toy_run.needs_more\): No module named 'not_installed_here'",
        ),
        (["trainer.strategy=dpp"], "trainer: .*strategy"),
        (
            ["trainer.logger={_target_: lightning.pytorch.loggers.CSVLoger}"],
            "trainer.logger._target_: .*did you mean 'CSVLogger'",
        ),
        (
            ["trainer.callbacks=[{_target: lightning.pytorch.callbacks.Timer}]"],
            "trainer.callbacks.0._target: did you mean '_target_'",
        ),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run.fit(load(tmp_path, *overrides))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold keys such as module:"),
        (b"- 1\n- 2\n", "must hold keys"),
        (b"just words", "must hold keys"),
        (b"module: [", "is not valid YAML"),
        (b"seed: 1\nseed: 2\n", "is not valid YAML.*duplicate"),
        ("seed: 1 # größe".encode("latin-1"), "is not valid YAML"),
        (b"sead: 1", "unknown key 'sead'; did you mean 'seed'"),
        (b"trainer: 3", "trainer"),
        (b"42", "must hold keys"),
        (b"true", "must hold keys"),
        (b"trainer: [1]\nseed: 1", "bad.yaml: trainer must hold .*list"),
        (
            b"module: " + b"{a: " * 150 + b"1" + b"}" * 150,
            "bad.yaml is not valid YAML: .*nested too deeply",
        ),
        (b"module: " + b"[" * 5000 + b"]" * 5000, "bad.yaml is not valid YAML: "),
        (b"out_dir: ???\nmodule: {_target_: toy_run.Line}", "out_dir is missing"),
        (b"seed: ${seed}\nmodule: {a: 1}\nout_dir: x", "seed: Recursive interpolation"),
        (b"seed: 1", "module is missing"),
        (b"module: {width: 3}\nout_dir: x", "module needs a _target_"),
        (
            b"module: {_target_: toy_run.WithoutLoop}\nout_dir: x",
            "module: toy_run.WithoutLoop is not a LightningModule",
        ),
        (
            b"module: {_target_: toy_run.Line}\nout_dir: x",
            "module: Line needs module.width, which is not given",
        ),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run.build(read_configuration([path]))


def test_a_missing_file_names_its_neighbour(tmp_path):
    config(tmp_path, name="quickstart.yaml")
    with pytest.raises(FileNotFoundError, match=r"quickstrat\.yaml.*'quickstart\.yaml'"):
        read_configuration([tmp_path / "quickstrat.yaml"])
    (tmp_path / "based.yaml").write_text("base: ???")
    with pytest.raises(FileNotFoundError, match=r"the base of .*based.yaml"):
        read_configuration([tmp_path / "based.yaml"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_configuration([tmp_path / "nowhere" / "x.yaml"])


def of_many_types(
    a: float,
    b: tuple[int, ...],
    c: Path,
    d: torch.nn.Module,
    e: dict[str, int],
    f: Callable,
    g: list[float] | None,
    h: torch.device | str = "cpu",
    i: Unseen = 0,
    j: tuple[int, int] = (1, 2),
) -> None:
    """A function with annotations of every kind."""


def test_types_of_plain_values():
    module = torch.nn.Linear(1, 1)
    text = str
    good = {
        "a": 1,
        "b": [1, 2],
        "c": "x",
        "d": module,
        "e": {"k": 1},
        "f": text,
        "g": None,
        "h": "cuda",
        "i": "any",
        "j": [3, 4],
    }
    bound = bind(of_many_types, good, "x")
    assert bound["b"] == (1, 2) and bound["j"] == (3, 4) and bound["a"] == 1
    for key, wrong in {
        "a": True,
        "b": [1.5],
        "c": 3,
        "d": "net",
        "e": {"k": "one"},
        "f": "print",
        "g": ["x"],
        "h": 1.5,
        "j": [1, 2, 3],
    }.items():
        with pytest.raises(ValueError, match=rf"x\.{key}: of_many_types expects"):
            bind(of_many_types, good | {key: wrong}, "x")
    assert instantiate({"items": [{"_target_": "toy_run.WithoutLoop"}, 1]}, "x")["items"][1] == 1


@pytest.mark.parametrize(
    "wrong", ["embedded/mood", ["embedded/mood"], {"name": "embedded/mood"}, 3]
)
def test_a_plain_value_does_not_play_a_role(wrong):
    def scored_by(reward: Reward, other: Reward | None = None):
        return reward

    assert bind(scored_by, {"reward": ToyReward(), "other": None}, "x")["other"] is None
    for key in ("reward", "other"):
        with pytest.raises(
            ValueError,
            match=rf"x\.{key}: .* expects .*Reward.*, got .*; an object is built by a node",
        ):
            bind(scored_by, {"reward": ToyReward(), key: wrong}, "x")


def test_an_object_without_its_members_does_not_play_a_role():
    def made(
        backbone: Backbone, reward: Reward | None = None, watched: EmotionReward | None = None
    ):
        return backbone

    whole = {"backbone": ToyBackbone(), "reward": ToyReward()}
    assert bind(made, whole, "x") == whole
    wrong = {"backbone": ToyReward(), "reward": torch.nn.Identity(), "watched": ToyBackbone()}
    for key, value in wrong.items():
        expected = rf"x\.{key}: .* expects .*, got {type(value).__name__}($|, which has no )"
        with pytest.raises(ValueError, match=expected):
            bind(made, whole | {key: value}, "x")


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_here")
    (tmp_path / "broken_import.py").write_text("from os import not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'not_installed_here'"):
        locate("needs_more.Thing")
    with pytest.raises(ValueError, match="cannot be imported: .*not_there"):
        locate("broken_import.Thing")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.path.insert(0, "tools")
    scope: dict = {"__file__": str(ROOT / "tools" / "fit.py"), "__name__": "fit"}
    exec(compile((ROOT / "tools" / "fit.py").read_text(), "fit.py", "exec"), scope)
    assert sys.path[0] == str(ROOT)  # a bare checkout works
    path = str(config(tmp_path))
    assert (
        reported(
            scope["main"], ["--config", path, "seed=9", "--print-config", "data.token=hf_abcd"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["seed"] == 9 and "hf_abcd" not in printed
    assert reported(scope["main"], ["seed=9", "--config", path, "--dry-run"]) == 0
    assert "trainable" in capsys.readouterr().out
    assert reported(scope["main"], ["--config", path, "module.widht=9"]) == 2
    captured = capsys.readouterr()
    assert (
        captured.err == "error: module.widht: Line takes no 'widht'; did you mean 'width'?\n"
        and captured.out.startswith("starting Line of ")
    )
    assert reported(scope["main"], ["--config", path, "trainer.max_epochs=1"]) == 0
    assert (tmp_path / "run" / "config.yaml").is_file()
    monkeypatch.setenv("ATTUNE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="already holds a run"):
        reported(scope["main"], ["--config", path])


def test_a_value_refused_by_a_library_is_named_and_our_bugs_are_not_hidden(monkeypatch):
    """torch refuses arguments with ``ValueError``; from our own code it is a bug."""
    node = {"_target_": "torch.nn.Conv1d", "in_channels": 3, "out_channels": 4}
    with pytest.raises(UserError, match=r"^x \(torch\.nn\.Conv1d\): .*groups"):
        instantiate({**node, "kernel_size": 1, "groups": 2}, "x")

    def broken():
        return np.zeros(2) + np.zeros(3)

    broken.__module__ = "zoo.files"
    monkeypatch.setattr(files, "broken", broken, raising=False)
    with pytest.raises(ValueError, match="broadcast") as caught:
        instantiate({"_target_": "zoo.files.broken"}, "x")
    assert not isinstance(caught.value, UserError)
    with pytest.raises(ValueError, match="broadcast"):  # and a command shows its traceback
        reported(lambda argv: instantiate({"_target_": "zoo.files.broken"}, "x"), [])


def test_nearest_names():
    assert did_you_mean("Quikstart", ["quickstart", "other"]) == "did you mean 'quickstart'?"
    assert did_you_mean("zzz", ["b", "a"]) == "choose from a, b"
    assert did_you_mean("zzz", [], 2) == "there is nothing to choose from"
    assert did_you_mean("zzz", ["a", "b", "c"], 2) == "choose from a, b and 1 more"


def test_descriptions():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.wav")
    assert describe(full) == "No space left on device: x.wav; free some space and start again"
    assert (
        describe(FileNotFoundError("no file")) == "no file"
        and describe(ValueError()) == "ValueError"
    )
    outer = RuntimeError("writer failed")
    outer.__cause__ = full
    assert (
        is_disk_full(outer)
        and not is_disk_full(RuntimeError())
        and not is_disk_full(OSError(errno.ENOENT, "x"))
    )


def test_written_beside_keeps_the_old_file_on_any_error(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with files.written_beside(path) as part:
        part.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with files.written_beside(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def of_nested_tuples(
    pairs: list[tuple[str | Path, float]],
    box: tuple[tuple[int, int], ...] = (),
    named: dict[str, tuple[int, int]] | None = None,
) -> None: ...


def test_lists_become_tuples_inside_other_types_too():
    given = {"pairs": [["runs/one/adapter", 1]], "box": [[1, 2], [3, 4]], "named": {"a": [1, 2]}}
    wanted = {"pairs": [("runs/one/adapter", 1)], "box": ((1, 2), (3, 4)), "named": {"a": (1, 2)}}
    assert bind(of_nested_tuples, given, "x") == wanted
    from zoo.generation import load as load_model

    bound = bind(
        load_model, {"name": "embedded/music", "adapters": [["runs/one/adapter", 1.0]]}, "x"
    )
    assert bound["adapters"] == [("runs/one/adapter", 1.0)]
    for key, wrong in (
        ("pairs", [["a"]]),
        ("pairs", [[1.0, "a"]]),
        ("box", [[1, 2, 3]]),
        ("named", {"a": ["b", 1]}),
    ):
        with pytest.raises(ValueError, match=f"x.{key}"):
            bind(of_nested_tuples, {"pairs": [], key: wrong}, "x")


def test_a_missing_user_module_says_how_it_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text("class Reward: ...")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"mine_here.*PYTHONPATH=\."):
        locate("mine_here.Reward")
    monkeypatch.syspath_prepend(".")  # what PYTHONPATH=. does
    assert locate("mine_here.Reward").__name__ == "Reward"
    with pytest.raises(ValueError, match="did you mean 'datamodules'"):
        locate("datamodule.Reward")
