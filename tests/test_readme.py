"""The README: its Python runs, and its files and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import zoo
from zoo.backbones.lora import add_lora
from zoo.hub.adapters import save_adapter

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.S | re.M)


@pytest.mark.long
def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = zoo.load("embedded/music")
    add_lora(backbone, rank=2)
    save_adapter(backbone, tmp_path / "my_adapter")
    monkeypatch.chdir(tmp_path)
    assert BLOCKS
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))))
def test_its_links_exist(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize(
    "script", sorted(set(re.findall(r"python ((?:tools|benchmarks)/\w+\.py)", README)))
)
def test_its_commands_exist(script: str) -> None:
    assert (ROOT / script).is_file()
