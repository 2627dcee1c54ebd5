"""Common properties of all command lines in ``tools/``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.configuration import Run, announcement

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

# All tools are asked for help in one process, some for that of a subcommand as well; then a
# configuration is printed, and a run is started where Lightning cannot be imported. The process
# tells the first line of each, and all that was imported.
ASK = """
import contextlib, io, json, runpy, sys
said, more = {}, {"listen": "blind", "zoo": "export", "sounds": "fetch", "labels": "split"}
for tool in sys.argv[1:]:
    for words in ([], [more[tool]]) if tool in more else ([],):
        sys.argv = [tool, *words, "--help"]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            runpy.run_path(f"tools/{tool}.py", run_name="__main__")
        said[" ".join([tool, *words])] = out.getvalue().split("\\n")[0]
helped = sorted(sys.modules)

def fit(*words):
    sys.argv = ["fit", "--config", "configs/ddpo/quickstart.yaml", *words]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit, ModuleNotFoundError):
        runpy.run_path("tools/fit.py", run_name="__main__")
    return out.getvalue()

printed = fit("--print-config")
configured = sorted(sys.modules)
sys.modules["lightning"] = None
started = fit("out_dir=runs/somewhere")
facts = {"said": said, "imported": helped, "printed": printed, "started": started}
print(json.dumps(facts | {"imported_to_print": configured}))
"""


@pytest.fixture(scope="module")
def asked() -> dict[str, object]:
    told = subprocess.run(
        [sys.executable, "-c", ASK, *TOOLS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout)


def test_help_needs_no_heavy_import(asked) -> None:
    assert HEAVY & set(asked["imported"]) == set()


def test_a_configuration_is_printed_without_heavy_imports(asked) -> None:
    assert "_target_: lightning_modules.rl.ddpo.DDPO" in asked["printed"]
    assert HEAVY & set(asked["imported_to_print"]) == {"omegaconf"}


def test_a_run_says_what_it_starts_before_heavy_imports(asked) -> None:
    (line,) = asked["started"].splitlines()
    assert "DDPO" in line and "configs/ddpo/quickstart.yaml" in line and "runs/somewhere" in line


def test_only_the_first_of_several_processes_says_what_starts(monkeypatch) -> None:
    run = Run({"_target_": "a.B"}, out_dir="runs/https://me:hunter22@host")
    assert announcement(run, []) == "starting B; the run folder is runs/https://me:********@host\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert announcement(run, []) == ""


def test_all_tools_name_themselves_as_they_are_called(asked) -> None:
    assert len(asked["said"]) == len(TOOLS) + 4
    for words, line in asked["said"].items():
        tool, *command = words.split()
        assert line.startswith(" ".join([f"usage: python tools/{tool}.py", *command, "["])), line
