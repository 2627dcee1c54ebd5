"""Files damaged by a person or a killed process are named in one line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from datamodules.sounds.bank import load_rules
from datamodules.sounds.clips import BankClip, read_cache
from lightning_modules.report import read_rows, write_report
from lightning_modules.run_folder import RunCSV, changed_settings
from lightning_modules.run_summary import run_summary
from zoo.errors import UserError
from zoo.evaluation.scores import open_scorers
from zoo.hub.cards import check_card
from zoo.hub.push import _front_matter
from zoo.hub.runs import held_out_numbers
from zoo.importers.yamnet import read_class_names

DAMAGED = [
    "[" * 100_000,
    '[{"file": "a.wav", ',
    '{"file": 1}',
    "\x00\x01\x02",
    "7",
    "- [1, {a: &x 2, b: *y}",
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda text: repr(text[:8]))
def test_an_index_of_samples(tmp_path: Path, content: str) -> None:
    index = tmp_path / "audio" / "before" / "samples.json"
    index.parent.mkdir(parents=True)
    index.write_text(content)
    for reader in (lambda: write_report(tmp_path), lambda: run_summary(tmp_path, None)):
        with pytest.raises(ValueError, match=r"samples\.json") as caught:
            reader()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["round,held_out/mean\n1,abc\n", "a,b\n1,2,3\n", "round\n\x001\n"]
)
def test_a_table_of_metrics(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    for reader in (lambda: read_rows(path), lambda: held_out_numbers(tmp_path, None)):
        with pytest.raises(ValueError, match=r"metrics\.csv"):
            reader()


@pytest.mark.parametrize("content", ["[" * 5000, "a: [1", "a: *b", "!!python/object:os.x {}"])
def test_headers_and_settings_in_yaml(tmp_path: Path, content: str) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"reward\.yaml"):
        open_scorers([str(path)], None, "cpu")
    card = tmp_path / "README.md"
    card.write_text(f"---\n{content}\n---\nbody\n")
    for reader in (lambda: _front_matter(card), lambda: check_card(card.read_text(), str(card))):
        with pytest.raises(ValueError, match=r"README\.md") as caught:
            reader()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["step,loss\n0,1\n1,2,3\n", "round,loss\n0,1\n", "step,loss\n0\n1,2\n", "step,loss\n0,\xff\n"],
)
def test_a_resumed_run_keeps_a_table_that_it_cannot_read(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"metrics\.csv"):
        _ = RunCSV(tmp_path, resumed_step=5).experiment
    assert path.read_bytes() == content.encode("latin-1")


def test_a_row_cut_off_by_a_kill_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("loss,step\n1,0\n2,1\n3")
    _ = RunCSV(tmp_path, resumed_step=5).experiment
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["loss,step", "1,0", "2,1"]


@pytest.mark.parametrize("content", ["[" * 5000, "a: [1\nb: 2", "a: *b", "7", "\x00"])
def test_the_configuration_of_a_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml.*another out_dir") as caught:
        changed_settings(tmp_path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b'a,"\nb' + b"c" * 200_000, b""])
def test_tables_that_come_with_models_and_rules(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table"
    path.write_bytes(content)
    for reader in (load_rules, read_class_names):
        with pytest.raises(UserError, match="table"):
            reader(path)


def test_a_class_without_a_name(tmp_path: Path) -> None:
    rows = [f"{i},/m/{i},{'' if i == 7 else 'x'}\n" for i in range(521)]
    (tmp_path / "map.csv").write_text("index,mid,display_name\n" + "".join(rows))
    with pytest.raises(UserError, match="class 7 "):
        read_class_names(tmp_path / "map.csv")


CLIP = asdict(BankClip("a/b", "dog", "a dog", "animal", ("Dog",), "MIT", "", "both", 1.0, False))


@pytest.mark.parametrize(
    "changes",
    [
        {"clips": [CLIP, CLIP]},
        {"clips": [{**CLIP, "unknown": 1}]},
        {"clips": ["text"]},
        {"clips": 7},
        {"lengths": [2, 2]},
        {"lengths": "ab"},
        {"quarantined": 3},
        {"quarantined": ["ab", 1]},
        None,
    ],
    ids=str,
)
def test_a_cache_of_sounds(tmp_path: Path, changes: dict | None) -> None:
    path = tmp_path / "bank.safetensors"
    about = {"clips": [CLIP], "lengths": [4], "quarantined": {"c": "is silent"}}

    def write(about: object) -> None:
        metadata = None if about is None else {"bank": json.dumps(about)}
        save_file({"samples": torch.zeros(4)}, str(path), metadata=metadata)

    write(about)
    assert read_cache(path).quarantined == {"c": "is silent"}
    write(None if changes is None else about | changes)
    with pytest.raises(UserError, match=r"bank\.safetensors.*delete the file"):
        read_cache(path)
