"""Configurations that say only what they change:

``base:``, its order, overlays, and what is refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_run import config

from zoo.configuration import read_all, read_configuration


def written(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_file_changes_its_base_and_overrides_change_both(tmp_path: Path) -> None:
    config(tmp_path, name="whole.yaml")
    written(
        tmp_path,
        rows__one="base: ../whole.yaml\nmodule: {width: 6}",
        rows__two="base: one.yaml\nseed: 7",
    )
    loaded = read_configuration([tmp_path / "rows" / "two.yaml"], ["module.learning_rate=0.5"])
    assert (
        loaded.module == {"_target_": "toy_run.Line", "width": 6, "learning_rate": 0.5}
        and loaded.seed == 7
    )
    assert loaded.data["width"] == 6, "interpolations see the last value"
    assert "base" not in loaded.to_dict()


def test_an_overlay_on_the_same_base_changes_only_its_own_keys(tmp_path: Path) -> None:
    config(tmp_path, name="whole.yaml")
    written(
        tmp_path,
        row="base: whole.yaml\nmodule: {width: 6}",
        overlay="base: whole.yaml\nmodule: {learning_rate: 0.5}",
    )
    loaded = read_configuration([tmp_path / "row.yaml", tmp_path / "overlay.yaml"])
    assert (loaded.module["width"], loaded.module["learning_rate"]) == (6, 0.5)
    assert read_configuration([tmp_path / "overlay.yaml"]).module["width"] == 4, (
        "and is a configuration of its own"
    )
    written(tmp_path, both="base: [row.yaml, overlay.yaml]\nseed: 1")
    assert read_configuration([tmp_path / "both.yaml"]).module == loaded.module
    assert [Path(name).stem for name, _ in read_all([tmp_path / "both.yaml"])] == [
        "whole",
        "row",
        "overlay",
        "both",
    ]


def test_another_target_replaces_the_node_with_its_arguments(tmp_path: Path) -> None:
    timer = "{_target_: lightning.pytorch.callbacks.Timer, duration: '00:01:00:00'}"
    written(
        tmp_path,
        first=f"module: {{_target_: toy_run.Line, width: 3, kind: b}}\nout_dir: x\ndata: {timer}",
        second=(
            "base: first.yaml\nmodule: {_target_: toy_run.Line, width: 4}\ndata: {_target_:"
            " toy_run.Points, width: 2}"
        ),
    )
    loaded = read_configuration([tmp_path / "second.yaml"])
    assert loaded.module == {
        "_target_": "toy_run.Line",
        "width": 4,
        "kind": "b",
    }, "the same target: merged"
    assert loaded.data == {
        "_target_": "toy_run.Points",
        "width": 2,
    }, "another target: nothing of the old node is left"


def test_a_target_on_the_command_line_replaces_the_node(tmp_path: Path) -> None:
    """As the README has it:

    ``module.reward={_target_: my_package.MyReward}`` on a run whose reward has arguments, and
    ``data={_target_: datamodules.prompts.PromptDataModule, file: prompts.csv}`` on one whose
    prompts are of a template.
    """
    reward = "{_target_: zoo.load, name: embedded/mood}"
    written(
        tmp_path, a=f"module: {{_target_: toy_run.Line, width: 3, reward: {reward}}}\nout_dir: x"
    )
    mine = "{_target_: my_package.MyReward, depth: 2}"
    expected = {"_target_": "my_package.MyReward", "depth": 2}
    assert (
        read_configuration([tmp_path / "a.yaml"], [f"module.reward={mine}"]).module["reward"]
        == expected
    )
    assert (
        read_configuration([tmp_path / "a.yaml"], [f"module={{reward: {mine}}}"]).module["reward"]
        == expected
    )
    same = read_configuration(
        [tmp_path / "a.yaml"], ["module.reward={_target_: zoo.load, device: cpu}", "module.width=4"]
    ).module
    assert same["reward"] == {"_target_": "zoo.load", "device": "cpu"} and same["width"] == 4
    added = read_configuration([tmp_path / "a.yaml"], ["module.reward={device: cpu}"]).module
    assert added["reward"] == {
        "_target_": "zoo.load",
        "name": "embedded/mood",
        "device": "cpu",
    }, "no target: merged"


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (
            {"a": "base: b.yaml", "b": "base: a.yaml\nseed: 1"},
            ValueError,
            r"its own base: \S*a.yaml -> \S*b.yaml -> \S*a.yaml",
        ),
        ({"a": "base: a.yaml"}, ValueError, "cannot be its own base"),
        (
            {"a": "base: bb.yaml", "b": "seed: 1"},
            FileNotFoundError,
            r"bb.yaml, the base of \S*a.yaml; did you mean 'b.yaml'",
        ),
        ({"a": "base: 3\nseed: 1"}, ValueError, "base must be a file, or a list of files"),
        ({"a": "base: []\nseed: 1"}, ValueError, "base must be a file"),
        ({"a": "base: [b.yaml, null]\nseed: 1", "b": "seed: 1"}, ValueError, "base must be a file"),
        (
            {"a": "base: b.yaml", "b": "sead: 1"},
            ValueError,
            r"b.yaml: unknown key 'sead'; did you mean 'seed'",
        ),
    ],
)
def test_bad_bases_are_named(
    tmp_path: Path, files: dict[str, str], error: type[Exception], message: str
) -> None:
    written(tmp_path, **files)
    with pytest.raises(error, match=message):
        read_configuration([tmp_path / "a.yaml"])
