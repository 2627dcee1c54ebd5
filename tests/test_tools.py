"""What all command lines in ``tools/`` have in common."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
HEAVY = {
    "torch",
    "torchaudio",
    "lightning",
    "transformers",
    "diffusers",
    "peft",
    "numpy",
    "scipy",
    "omegaconf",
    "soundfile",
}

# All tools are asked for help in one process, some for that of a subcommand as well. It tells the
# first line of each, and all that was imported.
ASK = """
import contextlib, io, json, runpy, sys
said, more = {}, {"listen": "blind", "zoo": "export", "sounds": "fetch"}
for tool in sys.argv[1:]:
    for words in ([], [more[tool]]) if tool in more else ([],):
        sys.argv = [tool, *words, "--help"]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            runpy.run_path(f"tools/{tool}.py", run_name="__main__")
        said[" ".join([tool, *words])] = out.getvalue().split("\\n")[0]
print(json.dumps({"said": said, "imported": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def asked() -> dict[str, object]:
    told = subprocess.run(
        [sys.executable, "-c", ASK, *TOOLS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout)


def test_help_needs_no_heavy_import(asked) -> None:
    assert HEAVY & set(asked["imported"]) == set()


def test_all_tools_name_themselves_as_they_are_called(asked) -> None:
    assert len(asked["said"]) == len(TOOLS) + 3
    for words, line in asked["said"].items():
        tool, *command = words.split()
        assert line.startswith(" ".join([f"usage: python tools/{tool}.py", *command, "["])), line
