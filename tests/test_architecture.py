"""The layering and the manners that a machine can hold: who may import whom, file sizes, forbidden
habits.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("zoo", "datamodules", "lightning_modules")
LINES, TOOL_LINES = 480, 60

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
# Importing a package of ours must stay light, and laion_clap's import reaches for the network:
# imported inside the functions that use them.
HEAVY = (
    "diffusers",
    "transformers",
    "peft",
    "laion_clap",
    "gradio",
    "huggingface_hub",
    "matplotlib",
    "wandb",
)
ONLY_INSIDE_FUNCTIONS = ("laion_clap", "gradio", "wandb")


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
    """(line, dotted name) of every import, inside functions too; ``from a import b`` gives ``a.b``,
    also for relative ones.
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


def forbidden(source: str) -> list[str]:
    """Habits that hide errors: (line, what) as text."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            is_silent = all(isinstance(line, ast.Pass) or _is_print(line) for line in node.body)
            if node.type is None:
                wrong.append(f"line {node.lineno}: a bare except")
            elif caught in ("Exception", "BaseException") and is_silent:
                wrong.append(f"line {node.lineno}: every exception is swallowed")
        if isinstance(node, ast.Call):
            called, keywords = (
                _called(node),
                {key.arg: ast.unparse(key.value) for key in node.keywords},
            )
            if called == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(f"line {node.lineno}: torch.load without weights_only=True")
            if called in ("pickle.load", "pickle.loads", "dill.load", "joblib.load"):
                wrong.append(f"line {node.lineno}: {called} runs code from a file")
            if keywords.get("strict") == "False" and called != "zip":
                wrong.append(
                    f"line {node.lineno}: {called} with strict=False keeps random weights in"
                    " silence"
                )
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if "pickle" in names:
                wrong.append(f"line {node.lineno}: pickle")
    return wrong


def _is_print(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and _called(node.value) == "print"
    )


PACKAGE_FILES = python_files(*OURS)
SCRIPTS = python_files("tools", "benchmarks")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check() -> None:
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


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=relative)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    is_package = path.name == "__init__.py"
    tree = ast.parse(path.read_text("utf-8"))
    top = "\n".join(
        ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
    )
    heavy = HEAVY if is_package else ONLY_INSIDE_FUNCTIONS
    assert [
        name for _, name in imported(top, module_name(path), is_package) if _under(name, heavy)
    ] == []


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
        "try:\n    f()\nexcept:\n    raise",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept Exception as e:\n    print(e)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "x.load_state_dict(s, strict=False)",
        "import pickle",
        "pickle.load(f)",
    ],
)
def test_a_forbidden_habit_is_seen(source: str) -> None:
    assert len(forbidden(source)) == 1


def test_what_is_allowed_is_not_reported() -> None:
    assert forbidden("torch.load(p, weights_only=True)\nzip(a, b, strict=False)") == []
    assert forbidden("try:\n    f()\nexcept ValueError:\n    pass") == []
    assert (
        broken_arrows(
            "from datamodules.batches import PromptBatch\nimport zoo\nimport torch",
            "lightning_modules.rl.ddpo",
        )
        == []
    )
