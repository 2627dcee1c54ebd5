"""JSON has no NaN: it is written as null or refused, by every writer."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path

import pytest
import torch

from lightning_modules.audio_samples import played, write_samples
from lightning_modules.rl.rollouts import ScoredSamples
from zoo.files import finite
from zoo.generations import read_samples, write_index
from zoo.types import Prompt

ROOT = Path(__file__).resolve().parents[1]


def _dumps_that_allow_nan(source: str) -> list[int]:
    """Lines that call json.dump(s) without allow_nan=False, except for text that is only hashed."""
    tree = ast.parse(source)
    hashing: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and re.search(
            "sha256[(]|digest", ast.get_source_segment(source, node)
        ):
            hashing.update(range(node.lineno, node.end_lineno + 1))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.lineno not in hashing
    ]
    calls = [node for node in calls if ast.unparse(node.func) in ("json.dump", "json.dumps")]
    return [
        node.lineno for node in calls if "allow_nan=False" not in map(ast.unparse, node.keywords)
    ]


@pytest.mark.long
def test_every_writer_of_json_refuses_nan():
    assert _dumps_that_allow_nan("json.dumps(1)\njson.dump(1, f, allow_nan=False)") == [1]
    files = [
        path
        for folder in ("zoo", "datamodules", "lightning_modules", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*.py")
    ]
    bad = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := _dumps_that_allow_nan(path.read_text()))
    }
    assert not bad


def _refused(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_a_score_that_is_nan_is_null_in_an_index(tmp_path):
    prompts = (Prompt("a", "rain", labels={"level": math.inf}), Prompt("b", "wind"))
    waves = torch.zeros(2, 1, 800)
    samples = ScoredSamples(
        prompts, torch.tensor([math.nan, 0.5]), {}, None, waves, 0.0, 0.0, 0.0, {}
    )
    folder = write_samples(tmp_path / "after", played(samples), 8000)
    rows = json.loads((folder / "samples.json").read_text(), parse_constant=_refused)
    assert [row["score"] for row in rows] == [None, 0.5] and rows[0]["labels"] == {"level": None}
    again = read_samples(folder)
    assert [sample.score for sample in again] == [None, 0.5]
    write_index(folder, again)
    json.loads((folder / "samples.json").read_text(), parse_constant=_refused)


def test_numbers_that_are_not_finite_become_null_everywhere():
    assert finite(
        {"a": [1.0, (math.nan, -math.inf)], "b": {"c": math.inf, "d": "nan", "e": 3}}
    ) == {"a": [1.0, [None, None]], "b": {"c": None, "d": "nan", "e": 3}}
