"""Variants and mistakes at the command line: accepted, or answered with the right spelling."""

from __future__ import annotations

from dataclasses import fields

import pytest

from zoo.command_line import ROOT_KEYS, normalized
from zoo.configuration import Run
from zoo.errors import did_you_mean


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["configs/x.yaml", "seed=1"], ["--config", "configs/x.yaml", "seed=1"]),
        (["-c", "x.yml", "y.YAML"], ["--config", "x.yml", "--config", "y.YAML"]),
        (["--config=x.yaml", "--dry-run"], ["--config=x.yaml", "--dry-run"]),
        (["data.file=prompts.yaml"], ["data.file=prompts.yaml"]),
        (
            ["module.reward={_target_: zoo.load, name: x}"],
            ["module.reward={_target_: zoo.load, name: x}"],
        ),
    ],
)
def test_unambiguous_variants_are_accepted(words, meant):
    assert normalized(words) == meant


QUOTED = "module.reward={_target_: zoo.load, name: embedded/mood}"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--module.lr", "1"], "module.lr=1"),
        (["--module.lr=1"], "module.lr=1"),
        (["—seed", "3"], "seed=3"),
        (["--resume"], "resume=true"),
        (["--out_dir", "runs/x"], "out_dir=runs/x"),
        (["module.learning_rate", "1e-4"], "module.learning_rate=1e-4"),
        (["seed", "3"], "seed=3"),
        (["seed", "=", "3"], "seed=3"),
        (["seed", "=3"], "seed=3"),
        (["seed=", "3"], "seed=3"),
        (QUOTED.split(), f"'{QUOTED}'"),
        (
            ["module.reward=_target_:zoo.load", "module.reward=name:x"],
            "in quotes",
        ),  # braces expanded by bash
        (["seed="], "seed=VALUE"),
        (["data.negative="], "data.negative=null"),
        (["+module.x=1"], "without '\\+'"),
        (["--dry_run"], "did you mean '--dry-run'"),
        (["--fast"], "no option --fast; choose from --config"),
        (["--config"], "--config needs a YAML file"),
        (["-c", "--dry-run"], "-c needs a YAML file"),
    ],
)
def test_each_mistake_gets_a_helpful_line(words, advice):
    with pytest.raises(
        ValueError, match=advice.replace("{", r"\{") if advice[0] == "'" else advice
    ):
        normalized(words)


def test_the_advice_works_when_followed():
    assert normalized([QUOTED]) == [QUOTED] and normalized(
        ["data.negative=null", "data.negative=''"]
    )
    assert set(ROOT_KEYS) == {field.name for field in fields(Run)} - {"provenance"}


def test_abbreviations_find_their_setting():
    names = ["learning_rate", "lora_rank", "lora_targets", "sample_batch_size", "train_batch_size"]
    assert did_you_mean("lr", names) == "did you mean 'learning_rate' or 'lora_rank'?"
    assert did_you_mean("rank", names) == "did you mean 'lora_rank'?"
    assert did_you_mean("batch", names) == "did you mean 'sample_batch_size' or 'train_batch_size'?"
