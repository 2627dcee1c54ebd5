"""The pages name things of this project: every path, dotted name, command and knob on them exists,
so that a page cannot go stale unseen.
"""

from __future__ import annotations

import dataclasses
import html
import importlib
import inspect
import re
import shlex
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from test_architecture import ROOMS

from zoo.configuration import read_configuration
from zoo.errors import UserError
from zoo.instantiate import check, locate

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "hub_cards").glob("*.md"),
    ]
)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SUFFIXES = (
    "py",
    "md",
    "yaml",
    "png",
    "svg",
    "sh",
    "txt",
    "tsv",
    "toml",
    "cfg",
    "yml",
    "ini",
    "cff",
)
# what a run, an export, a pull, another project or the reader's own folder holds
ELSEWHERE = {
    "__init__.py", "config.yaml", "report.html", "curve.png", "README.md",
    "requirements.txt", "few.csv",
    "whistles.py", "whistles.yaml", "brightness.py", "weather.py", "best_takes.py",
    "best_takes.yaml",
}  # fmt: skip
TOOL_SOURCES = {
    "fit": ["tools/fit.py", "zoo/command_line.py"],
    "generate": ["zoo/commands/generate.py"],
    "evaluate": ["zoo/commands/evaluate.py", "zoo/evaluation/options.py"],
    "listen": ["zoo/commands/listen.py", "zoo/commands/label.py"],
    "zoo": ["zoo/commands/zoo.py"],
    "sounds": ["datamodules/sounds/fetch.py"],
    "piano_demo": ["datamodules/music/piano_command.py"],
    "labels": ["datamodules/preferences/command.py"],
    "annotate": ["lightning_modules/annotation_command.py", "zoo/commands/generate.py"],
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FOLDERS = (
    "zoo", "datamodules", "lightning_modules", "configs", "tools", "hub_cards", "benchmarks",
    "docs", "tests", "constraints", ".ci", ".github",
)  # fmt: skip


@cache
def tracked() -> frozenset[str]:
    """Files and folders of the project; not those that a run or a tool has left in a checkout."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    found = {name(path) for path in files if "__pycache__" not in path.parts}
    folders = {parent.as_posix() for file in found for parent in Path(file).parents}
    return frozenset(found | folders)


def code_of(text: str) -> Iterator[tuple[str, str]]:
    """(token, its line) of everything in single backticks outside fenced blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    for line in text.splitlines():
        for token in re.findall(r"`([^`]+)`", line):
            yield token, line


def is_path(token: str) -> bool:
    if not re.fullmatch(r"[\w./*-]+", token) or token.startswith(("/", "-")):
        return False
    return token.rpartition(".")[2] in SUFFIXES or token.endswith("/")


def folders_named_on(line: str) -> set[str]:
    """The folders of all paths in backticks on a line: a bare name beside a path lies beside it."""
    found = {"", "configs", "docs"}
    for token in re.findall(r"`([\w./-]+)`", line):
        found.add(token.rstrip("/") if token.endswith("/") else Path(token).parent.as_posix())
    return found


def exists(token: str, line: str) -> bool:
    token = token.rstrip("/")
    if "*" in token:
        return any(Path(file).match(token) for file in tracked())
    return any(f"{folder}/{token}".lstrip("/") in tracked() for folder in folders_named_on(line))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_paths_exist(page: Path) -> None:
    gone = []
    for token, line in code_of(page.read_text("utf-8")):
        planned = "planned" in line.split(f"`{token}`")[0]
        starts_here = token.split("/")[0] in tracked() or "/" not in token
        if planned or not is_path(token) or not starts_here or token in ELSEWHERE:
            continue
        if not exists(token, line):
            gone.append(token)
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(((?!https?:|mailto:)[^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_picture_is_on_a_page() -> None:
    pages = "".join(page.read_text("utf-8") for page in PAGES)
    pictures = [path.name for path in (ROOT / "docs/images").iterdir()]
    assert [picture for picture in pictures if f"images/{picture})" not in pages] == []


def drawn_names(drawing: str) -> list[str]:
    """The names in the code font of a drawing, from top to bottom; several may share a row."""
    text = (ROOT / "docs/images" / drawing).read_text("utf-8")
    return [
        html.unescape(found).replace("\u00a0", " ")
        for found in re.findall(r"<text [^>]*font-family='ui-monospace[^>]*>([^<]+)</text>", text)
    ]


def test_the_drawing_of_the_floors_agrees_with_the_walls() -> None:
    """A room imports from rows below its own only, and no room of zoo's main line is forgotten."""
    rows = [row.split() for row in drawn_names("floors.svg")]
    rows = rows[next(i for i, row in enumerate(rows) if row == ["zoo/"]) + 1 :]
    floor = {room: len(rows) - i for i, row in enumerate(rows) for room in row}
    assert floor.keys() <= ROOMS.keys()
    wrong = [
        (room, lower)
        for room, allowed in ROOMS.items()
        for lower in allowed
        if room in floor and floor.get(lower, -1) > floor[room]
    ]
    assert wrong == []
    packages = {path.name for path in (ROOT / "zoo").iterdir() if (path / "__init__.py").is_file()}
    assert packages <= floor.keys()


def test_the_drawing_of_a_round_names_files_that_exist() -> None:
    files = [name for row in drawn_names("round.svg") for name in row.split(", ")]
    assert len(files) >= 7
    for file in files:
        assert any((ROOT / folder / file).is_file() for folder in ("", "lightning_modules")), file


def dotted_exists(dotted: str) -> bool:
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_dotted_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    found = set(re.findall(r"\b((?:zoo|datamodules|lightning_modules)(?:\.[A-Za-z_]\w*)+)", text))
    found = {dotted for dotted in found if dotted.rpartition(".")[2] not in SUFFIXES}
    assert sorted(dotted for dotted in found if not dotted_exists(dotted)) == []


def commands(text: str) -> list[str]:
    """Every command that starts a tool or a benchmark, continued lines and open quotes joined."""
    text = re.sub(r"(?m)^#\s?", "", text)
    text = re.sub(r"\\\n\s*", "", text)
    text = re.sub(r'"[^"\n]*\n[^"\n]*"(?= *$)', _one_line, text, flags=re.M)
    found = []
    for line in text.splitlines():
        for start in re.finditer(r"python (?:ATTUNE/)?(?=(?:tools|benchmarks)/\w+\.py)", line):
            rest = re.split(r"[`;|()]|\s{2,}|\s#\s|, then|, or ", line[start.end() :])[0]
            found.append(re.sub(r"(?<!\.)[.,:]$", "", rest.strip()))
    return found


def _one_line(quoted: re.Match[str]) -> str:
    return " ".join(quoted[0].split())


def problems(command: str) -> list[str]:
    """What does not exist of a command such as "tools/fit.py --config configs/x.yaml seed=1"."""
    script, *words = shlex.split(command.replace("'", ""))
    if not (ROOT / script).is_file():
        return [f"no {script}"]
    stem = Path(script).stem
    sources = [script] if script.startswith("benchmarks") else TOOL_SOURCES[stem]
    source = "".join((ROOT / each).read_text("utf-8") for each in sources)
    if script.startswith("benchmarks"):
        source += (ROOT / "benchmarks/evaluation.py").read_text("utf-8")
    wrong = [
        f"{script} has no {word.split('=')[0]}"
        for word in words
        if word.startswith("--") and word != "--help" and f'"{word.split("=")[0]}"' not in source
    ]
    if stem in ("zoo", "listen", "sounds") and words and f'"{words[0]}"' not in source:
        wrong.append(f"{script} has no command {words[0]}")
    if script == "tools/fit.py":
        wrong += run_problems(words)
    return wrong


def run_problems(words: list[str]) -> list[str]:
    """Whether the configuration of a tools/fit.py command has all the knobs that it sets."""
    files = [
        word for flag, word in zip(words, words[1:], strict=False) if flag in ("-c", "--config")
    ]
    files = [file.removeprefix("ATTUNE/") for file in files]
    if not all(file.startswith("configs/") for file in files):
        return []  # the reader's own
    if gone := [file for file in files if not (ROOT / file).is_file()]:
        return [f"no {file}" for file in gone]
    overrides = [
        word for word in words if re.match(r"[\w.]+=", word) and "..." not in word
    ]  # "..." is for the reader to fill in
    theirs = re.compile(r"_target_: (brightness|weather)\.")
    overrides = [word for word in overrides if not theirs.search(word)]
    try:
        run = read_configuration([ROOT / file for file in files], overrides)
        check(run.module, "module")
        check(run.data, "data")
    except UserError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_commands_name_what_is_there(page: Path) -> None:
    assert [wrong for each in commands(page.read_text("utf-8")) for wrong in problems(each)] == []


def head(config: Path) -> str:
    """The comment at the top of a YAML."""
    return re.match(r"(?:#.*\n)*", config.read_text("utf-8"))[0]


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_the_head_of_a_config_says_what_it_is_for_and_how_to_start_it(config: Path) -> None:
    found = commands(head(config))
    assert [wrong for each in found for wrong in problems(each)] == []
    assert any(name(config) in each for each in found), "no command that names this file"
    assert not re.match(r"# *(Start: *)?python ", head(config)), "the purpose comes first"


def test_every_config_belongs_to_a_family_of_the_table() -> None:
    table = (ROOT / "configs/README.md").read_text("utf-8")
    cells = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", table, flags=re.M)
    families = [family for cell in cells for family in re.findall(r"`([^`]+)`", cell)]
    assert len(families) >= 8
    files = [path.relative_to(ROOT / "configs").as_posix() for path in CONFIGS]
    lost = [file for file in files if not any(Path(file).match(family) for family in families)]
    empty = [family for family in families if not any(Path(f).match(family) for f in files)]
    assert (lost, empty) == ([], [])


def constructor_knobs(target: typing.Any, prefix: str) -> Iterator[str]:
    """Parameters, and the fields of those that are settings (dataclasses), as dotted keys."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for parameter in inspect.signature(target).parameters:
        yield f"{prefix}.{parameter}"
        hint = hints.get(parameter)
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind):
                yield from (
                    f"{prefix}.{parameter}.{field.name}" for field in dataclasses.fields(kind)
                )


def flat_keys(node: typing.Any, prefix: str) -> Iterator[str]:
    yield prefix
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flat_keys(value, f"{prefix}.{key}")
        if isinstance(node.get("_target_"), str):
            yield from constructor_knobs(locate(node["_target_"]), prefix)


@cache
def knobs() -> frozenset[str]:
    """Every key that a shipped configuration has or could have."""
    found = {f"trainer.{parameter}" for parameter in inspect.signature(Trainer).parameters}
    for path in CONFIGS:
        run = read_configuration([path], ["resume=false"])
        for part in ("module", "data", "trainer"):
            node = getattr(run, part)
            found |= set(flat_keys(OmegaConf.to_container(OmegaConf.create(node or {})), part))
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_knobs_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    named = set(re.findall(r"(?<![\w./])((?:module|data|trainer)\.[a-z_][\w.]*\w)(?==)", text))
    named |= {t for t, _ in code_of(text) if re.fullmatch(r"(module|data|trainer)(\.\w+)+", t)}
    assert sorted(named - knobs()) == []
