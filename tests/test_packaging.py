"""The files of an installed copy, and equal versions in all places."""

from __future__ import annotations

import configparser
import fnmatch
import re
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

import zoo

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(value: str) -> list[str]:
    return [
        line.strip()
        for line in value.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


def test_every_folder_with_code_is_a_package_that_is_found(
    setup: configparser.ConfigParser,
) -> None:
    found = set(find_packages(str(ROOT), include=lines(setup["options.packages.find"]["include"])))
    folders = {
        path.parent
        for top in ("zoo", "datamodules", "lightning_modules")
        for path in (ROOT / top).rglob("*.py")
    }
    assert {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders} <= found
    assert not any(name.startswith(("tests", "tools", "benchmarks")) for name in found)


def test_every_embedded_file_is_package_data(setup: configparser.ConfigParser) -> None:
    globs = lines(setup["options.package_data"]["zoo"])
    assert {"embedded/*/*.json", "embedded/*/*.safetensors", "embedded/*/*.md"} <= set(globs)
    files = [
        path
        for folder in ("zoo/embedded", "zoo/listening/label_page")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    left_out = [
        path.name
        for path in files
        if not any(
            fnmatch.fnmatch(path.relative_to(ROOT / "zoo").as_posix(), glob) for glob in globs
        )
    ]
    assert left_out == []


def test_the_version_is_the_same_everywhere(setup: configparser.ConfigParser) -> None:
    assert setup["metadata"]["version"] == "attr: zoo.__version__"
    version = zoo.__version__
    citation = re.search(
        r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE
    )
    assert citation and citation[1].strip("\"'") == version
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    released = re.search(
        r"^date-released: (\d{4}-\d\d-\d\d)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M
    )
    assert released and sections[:2] == ["Unreleased", f"{version} ({released[1]})"]


def test_the_licence_is_the_same_everywhere(setup: configparser.ConfigParser) -> None:
    assert setup["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    assert re.search(
        r"^license: Apache-2.0$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE
    )


def test_every_requirement_has_its_reason(setup: configparser.ConfigParser) -> None:
    reasons = (ROOT / "docs" / "dependencies.md").read_text("utf-8").lower().replace("_", "-")
    names = [
        re.match(r"[A-Za-z0-9_.-]+", line)[0]
        for line in lines(setup["options"]["install_requires"])
    ]
    assert len(names) >= 15
    assert [name for name in names if f"| {name.lower().replace('_', '-')} |" not in reasons] == []


def test_the_oldest_set_is_the_lower_bounds(setup: configparser.ConfigParser) -> None:
    """CI installs constraints/oldest.txt, so the lower bounds in setup.cfg are tested."""
    wanted = [*lines(setup["options"]["install_requires"])]
    wanted += lines(setup["options.extras_require"]["dev"])
    bounds = {}
    for line in wanted:
        name, low = re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", line).groups()
        bounds[name.lower().replace("_", "-")] = low
    pinned = {}
    for line in lines((ROOT / "constraints" / "oldest.txt").read_text("utf-8")):
        name, version = line.split("==")
        pinned[name.lower().replace("_", "-")] = version
    assert pinned.keys() == bounds.keys()
    assert [
        name for name in bounds if not (pinned[name] + ".").startswith(bounds[name] + ".")
    ] == []


def test_no_requirement_is_one_version_only(setup: configparser.ConfigParser) -> None:
    """A pin of one release stops resolving when another package moves on."""
    pins = [
        line for line in lines(setup["options"]["install_requires"]) if "==" in line.split(";")[0]
    ]
    assert pins == []


def test_pyproject_only_names_the_build_system() -> None:
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))) == {"build-system"}
