"""The README: its Python runs, and its files and commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.backbones.lora import add_lora
from zoo.hub.adapters import save_adapter

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.long
@pytest.mark.parametrize("page", ["README.md", "docs/zoo.md"])
def test_its_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = zoo.load("embedded/music")
    add_lora(backbone, rank=2)
    save_adapter(backbone, tmp_path / "my_adapter")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


@pytest.mark.slow
def test_its_commands_work_one_after_another(tmp_path: Path) -> None:
    """As a reader types them, in a folder beside the checkout; the quickstart is the short one."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    fit = "python tools/fit.py --config configs/ddpo/quickstart_smoke.yaml"
    texts = [re.sub(r"\\\n\s*", "", block) for block in re.findall(r"(?:^    .*\n)+", README, re.M)]
    later = [
        line.strip()
        for text in texts
        for line in text.splitlines()
        if re.match(r"\s+python tools/(generate|listen|evaluate|zoo)\.py", line)
    ]
    assert {line.split()[1] for line in later} >= {"tools/generate.py", "tools/zoo.py"}
    assert len(later) >= 4
    for line in [f"{fit} out_dir=runs/ddpo_quickstart", *later]:
        few = " --samples 2" if "evaluate.py" in line else ""
        words = shlex.split(line + few)
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    for made in ("mine", "page.html", "evaluation/report.html", "my_adapter/README.md"):
        assert (tmp_path / made).exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))))
def test_its_links_exist(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize(
    "script", sorted(set(re.findall(r"python ((?:tools|benchmarks)/\w+\.py)", README)))
)
def test_its_commands_exist(script: str) -> None:
    assert (ROOT / script).is_file()
