"""Files damaged by a person or a killed process are named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules.report import read_rows, write_report
from lightning_modules.run_folder import RunCSV
from lightning_modules.run_summary import run_summary
from zoo.evaluation.scores import open_scorers
from zoo.hub.cards import check_card
from zoo.hub.push import _front_matter
from zoo.hub.runs import held_out_numbers

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
        with pytest.raises(ValueError, match=r"samples\.json") as told:
            reader()
        assert "\n" not in str(told.value)


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
        with pytest.raises(ValueError, match=r"README\.md") as told:
            reader()
        assert "\n" not in str(told.value)


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
