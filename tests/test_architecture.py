"""Layers, file sizes and forbidden habits."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("zoo", "datamodules", "lightning_modules")
LINES, TOOL_LINES = 450, 60

# importer -> what it may import of ours (a prefix allows all below it); lightning_modules reaches
# data modules only through three doors, so that modules know no data sets.
SERVICES = (
    "zoo.types",
    "zoo.language",
    "zoo.errors",
    "zoo.files",
    "zoo.audio_files",
    "zoo.audio_files.folders",
    "zoo.audio_files.resampling",
)
ALLOWED = {
    "zoo": ("zoo",),
    "datamodules": ("datamodules", *SERVICES),
    "lightning_modules": (
        "lightning_modules",
        "zoo",
        "datamodules.batches",
        "datamodules.cache",
        "datamodules.simulation",
    ),
    "tools": OURS,
    "benchmarks": OURS,
}
FOREIGN = {
    "zoo": ("lightning", "pytorch_lightning", "tools", "benchmarks"),
    "datamodules": ("tools", "benchmarks"),
    "lightning_modules": ("tools", "benchmarks"),
}


# Rooms of zoo, from the ground up: room -> rooms that it may import, all of them above it in this
# table. The package itself (zoo/__init__.py) is
# the door to all rooms; from within, only its version is taken.
GROUND = ("versions", "secrets", "errors", "files", "audio_files", "types")
ROOMS: dict[str, tuple[str, ...]] = {
    "versions": (),
    "secrets": (),
    "errors": ("versions", "secrets"),
    "files": ("errors",),
    "audio_files": ("errors", "files"),
    "types": ("errors", "audio_files"),
    "command_line": GROUND,
    "moved_names": (),
    "signatures": GROUND,
    "instantiate": (*GROUND, "moved_names", "signatures"),
    "configuration": (*GROUND, "command_line", "moved_names"),
    "diffusion": GROUND,
    "statistics": GROUND,
    "language": GROUND,
    "conditioners": GROUND,
    "html_pages": GROUND,
    "backbones": (*GROUND, "diffusion", "conditioners"),
    "rewards": (*GROUND, "signatures", "instantiate", "statistics", "conditioners", "backbones"),
    "hub": (
        *GROUND,
        "moved_names",
        "signatures",
        "instantiate",
        "diffusion",
        "language",
        "backbones",
        "rewards",
    ),
    "importers": (*GROUND, "conditioners", "backbones", "rewards", "hub"),
    "loading": (
        *GROUND,
        "signatures",
        "instantiate",
        "conditioners",
        "backbones",
        "rewards",
        "hub",
        "importers",
    ),
    "rendering": (*GROUND, "diffusion", "backbones"),
    "generation": (*GROUND, "signatures", "diffusion", "backbones", "loading", "rendering"),
    "generations": (*GROUND, "hub"),
    "evaluation": (
        *GROUND,
        "moved_names",
        "instantiate",
        "configuration",
        "diffusion",
        "statistics",
        "html_pages",
        "hub",
        "loading",
        "generation",
        "generations",
    ),
    "listening": (*GROUND, "statistics", "html_pages", "generation", "generations"),
    "commands": (
        *GROUND,
        "diffusion",
        "hub",
        "loading",
        "generation",
        "generations",
        "evaluation",
        "listening",
    ),
}


def python_files(*folders: str) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "golden" not in path.parts
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also inside functions and relative ones.

    ``from a import b`` gives ``a.b``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join(
                    [
                        *package[: len(package) - node.level + 1],
                        *([node.module] if node.module else []),
                    ]
                )
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and _called(node).split(".")[-1] in ("import_module", "__import__")
            and node.args
        ):
            if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def broken_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    layer = module.split(".")[0]
    wrong = []
    for line, name in imported(source, module, is_package):
        if _under(name, OURS) and not _under(name, ALLOWED[layer]):
            wrong.append(
                f"{module}:{line} imports {name}; {layer} may import {', '.join(ALLOWED[layer])}"
            )
        if _under(name, FOREIGN.get(layer, ())):
            wrong.append(f"{module}:{line} imports {name}, which is not for {layer}")
    return wrong


def file_of(name: str, files: Collection[str]) -> str:
    """The module of an imported name, or "" if it is not in ``files``."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def broken_walls(source: str, module: str, files: Collection[str]) -> list[str]:
    """Imports of a module of zoo that its room may not make."""
    if module == "zoo":
        return []
    room = module.split(".")[1]
    wrong = []
    for line, name in imported(source, module, f"{module}.__init__" in files):
        if not _under(name, ("zoo",)) or name == "zoo.__version__":
            continue
        found = file_of(name, files).split(".")
        other = found[1] if len(found) > 1 else "zoo itself"
        if other not in (room, *ROOMS[room]):
            wrong.append(f"{module}:{line} imports {name}, but zoo.{room} may not import {other}")
    return wrong


def circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Files that import each other in a ring; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def import_graph() -> dict[str, set[str]]:
    """Every file of the three packages -> the files of them that it imports."""
    files = {module_name(path): path for path in python_files(*OURS)}
    return {
        module: {
            file_of(name, files)
            for _, name in imported(path.read_text("utf-8"), module, path.name == "__init__.py")
            if _under(name, OURS)
        }
        - {module, ""}
        for module, path in files.items()
    }


def forbidden(source: str) -> list[str]:
    """Calls that hide errors. Blind excepts, pickles and heavy imports are for ruff.toml."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = _called(node)
            keywords = {key.arg: ast.unparse(key.value) for key in node.keywords}
            if called == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(f"line {node.lineno}: torch.load without weights_only=True")
            if keywords.get("strict") == "False" and called != "zip":
                wrong.append(
                    f"line {node.lineno}: {called} with strict=False keeps random weights in"
                    " silence"
                )
    return wrong


PACKAGE_FILES = python_files(*OURS)
SCRIPTS = python_files("tools", "benchmarks")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_files_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in PACKAGE_FILES} == set(OURS)


@pytest.mark.parametrize("path", PACKAGE_FILES + SCRIPTS, ids=relative)
def test_imports_follow_the_arrows(path: Path) -> None:
    assert (
        broken_arrows(path.read_text("utf-8"), module_name(path), path.name == "__init__.py") == []
    )


@pytest.mark.parametrize("path", PACKAGE_FILES + SCRIPTS, ids=relative)
def test_file_is_short_and_forbids_nothing(path: Path) -> None:
    source = path.read_text("utf-8")
    lines = source.splitlines()
    limit = TOOL_LINES if path.parent.name == "tools" else LINES
    assert len(lines) <= limit, (
        f"{relative(path)} has {len(lines)} lines; split it by subject below {limit}"
    )
    assert path.stem not in (
        "utils",
        "util",
        "helpers",
        "misc",
        "common",
    ), "name a file after what it is about"
    assert forbidden(source) == []


def test_the_rooms_of_zoo_are_those_of_the_table_and_each_stands_on_those_above_it() -> None:
    there = {
        path.stem
        for path in (ROOT / "zoo").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert there - {"__init__"} == set(ROOMS)
    order = list(ROOMS)
    for room, others in ROOMS.items():
        assert set(others) <= set(order[: order.index(room)]), room


def test_imports_keep_within_the_walls_of_zoo() -> None:
    files = {module_name(path): path for path in python_files("zoo")}
    wrong = []
    for module, path in files.items():
        known = {*files, *([f"{module}.__init__"] if path.name == "__init__.py" else [])}
        wrong += broken_walls(path.read_text("utf-8"), module, known)
    assert wrong == []


def test_no_files_import_each_other_in_a_ring() -> None:
    assert circle(import_graph()) == []


def test_a_ring_and_a_broken_wall_are_seen() -> None:
    assert set(circle({"a": ["b"], "b": ["c"], "c": ["a"], "d": []})) == {"a", "b", "c"}
    files = ("zoo", "zoo.hub", "zoo.hub.pull", "zoo.loading", "zoo.rewards.clap", "zoo.types")
    for module, source in (
        ("zoo.hub.pull", "def f():\n    from zoo.loading import load"),
        ("zoo.rewards.clap", "from zoo.hub import pull"),
        ("zoo.types", "from zoo import load"),
        ("zoo.types", "import zoo"),
    ):
        assert len(broken_walls(source, module, files)) == 1
    assert broken_walls("from zoo import __version__", "zoo.hub.pull", files) == []
    assert broken_walls("from zoo.rewards import clap", "zoo.loading", files) == []


def test_no_package_marker_in_tests() -> None:
    """A top-level package ``tests`` would collide with the one that laion-clap installs."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zoo.types", "import lightning"),
        ("zoo.types", "def f():\n    from lightning_modules.rl.ddpo import DDPO"),
        ("zoo.types", "import importlib\nimportlib.import_module('datamodules.prompts')"),
        ("datamodules.prompts", "from zoo.diffusion import rollout"),
        ("datamodules.prompts", "def f():\n    import zoo.backbones.tiny"),
        ("datamodules.prompts", "from zoo import diffusion"),
        ("lightning_modules.rl.ddpo", "from datamodules.prompts import PromptDataModule"),
        ("lightning_modules.rl.ddpo", "from datamodules import prompts"),
        ("zoo.backbones.tiny", "from ...lightning_modules import ddpo"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str) -> None:
    assert len(broken_arrows(source, module)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "x.load_state_dict(s, strict=False)",
    ],
)
def test_a_forbidden_habit_is_seen(source: str) -> None:
    assert len(forbidden(source)) == 1


def test_what_is_allowed_is_not_reported() -> None:
    assert forbidden("torch.load(p, weights_only=True)\nzip(a, b, strict=False)") == []
    assert (
        broken_arrows(
            "from datamodules.batches import PromptBatch\nimport zoo\nimport torch",
            "lightning_modules.rl.ddpo",
        )
        == []
    )
