"""Tables that people write: line ends, cells, and errors with file and row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.audiocaps import caption_prompts, is_audiocaps
from datamodules.prompt_sources import file_prompts
from datamodules.tables import Record, decode, lines, read_table
from zoo.files import JSON_DEPTH, parsed_json

NOT_LINE_ENDS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def cells(path: Path, *columns: str) -> list[tuple[int, dict]]:
    return [(record.line, record.cells) for record in read_table(path, *columns).rows]


@pytest.mark.parametrize("mark", NOT_LINE_ENDS)
def test_lines_end_at_line_ends_only(tmp_path: Path, mark: str) -> None:
    text = f"rain{mark}on a roof"
    row = json.dumps({"text": text}, ensure_ascii=False)
    assert cells(written(tmp_path, "a.jsonl", f'{row}\n{{"text": "dog"}}\n'), "text") == [
        (1, {"text": text}),
        (2, {"text": "dog"}),
    ]
    assert cells(written(tmp_path, "a.txt", f"{text}\ndog\n"), "text")[0] == (1, {"text": text})
    assert cells(written(tmp_path, "a.csv", f"text\n{text}\ndog\n"), "text")[1] == (
        3,
        {"text": "dog"},
    )
    header = "audiocap_id,youtube_id,start_time,caption"
    path = written(tmp_path, "val.csv", f"{header}\n1,x,0,{text}\n")
    assert is_audiocaps(path) and caption_prompts(path)[0].text == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_counts(tmp_path: Path, end: str) -> None:
    for name, content in (
        ("a.txt", ["rain", "", "dog", ""]),
        ("a.csv", ["text", "rain", "", "dog", ""]),
        ("a.jsonl", ['{"text": "rain"}', "", '{"text": "dog"}', ""]),
    ):
        table = read_table(written(tmp_path, name, end.join(content)), "text")
        first = 2 if name == "a.csv" else 1
        assert [(row.line, row.text("text")) for row in table.rows] == [
            (first, "rain"),
            (first + 2, "dog"),
        ]
        assert table.empty == 1
    header = "audiocap_id,youtube_id,start_time,caption"
    path = written(tmp_path, "val.csv", end.join([header, "1,x,0,rain", ""]))
    assert [prompt.text for prompt in file_prompts(path)] == ["rain"]


def test_cells_of_any_size_and_with_line_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "rain " * 40_000
    path = written(tmp_path, "a.csv", f'text,mood\n"{long}",sad\n"one\r\ntwo",calm\nlast,sad\n')
    assert cells(path, "text") == [
        (2, {"text": long.strip(), "mood": "sad"}),
        (3, {"text": "one\r\ntwo", "mood": "calm"}),
        (5, {"text": "last", "mood": "sad"}),
    ]
    assert "a.csv, line 3: 1 rows have a cell of several lines" in caplog.text
    header = "audiocap_id,youtube_id,start_time,caption"
    path = written(tmp_path, "val.csv", f"{header}\n1,x,0,{long}\n")
    assert caption_prompts(path)[0].text == long.strip()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", 'text,mood\nrain,sad\n"dog barks,happy\ncat,sad\n', "q.csv, line 3: .*quotes"),
        ("q.tsv", 'text\tmood\nrain\tsad\n"dog\thappy\ncat\tsad\n', "q.tsv, line 3: .*quotes"),
        ("q.csv", 'text,mood\n"dog" barks,happy\n', "q.csv, line 2: .*quotes"),
        ("d.csv", "text,mood,mood\nrain,sad,happy\n", "d.csv: .*names mood twice"),
        (
            "d.jsonl",
            '{"text": "a"}\n{"text": "a", "text": "b"}\n',
            "d.jsonl, line 2: .*'text' .*twice",
        ),
        (
            "d.jsonl",
            '{"text": "a", "labels": {"m": 1, "m": 2}}\n',
            "d.jsonl, line 1: .*'m' .*twice",
        ),
        ("n.jsonl", '{"text": ' + "[" * 100_000 + "\n", "n.jsonl, line 1: .*nested"),
        ("n.jsonl", '{"text": ' + "[" * 99 + "]" * 99 + "}\n", "n.jsonl, line 1: .*nested"),
        ("h.jsonl", '{"text": "\\ud800"}\n', "h.jsonl, line 1: .*surrogate"),
        ("i.jsonl", '{"text": "a", "seed": ' + "9" * 5000 + "}\n", "i.jsonl, line 1: "),
        ("c.csv", "text;mood\nrain;sad\n", "c.csv: .*separated by ';'"),
        ("e.jsonl", "{}\n", "e.jsonl, line 1: .*'text'"),
        ("w.csv", b"\xff\xfet\x00e\x00x", "w.csv is not a text file"),
        ("w.csv", b"\xff\xfe\x00\x00t\x00\x00\x00", "w.csv is not a text file"),
        ("two.csv", "prompt,caption\nrain,a\n", "two.csv: 'prompt' or 'caption' could be .*'text'"),
        ("two.csv", "Text,TEXT\nrain,a\n", "two.csv: 'Text' or 'TEXT'"),
    ],
)
def test_unreadable_rows_are_named_by_file_and_row(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path, name, content), "text")


@pytest.mark.parametrize("name", ["text", "prompt", "caption", "Caption", "TEXT"])
def test_common_column_names_are_accepted(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "a.csv", f"{name},mood\nrain,sad\n")
    (prompt,) = file_prompts(path)
    assert (prompt.text, prompt.labels) == ("rain", {"mood": "sad"})
    path = written(tmp_path, "a.jsonl", json.dumps({name: "rain", "mood": "sad"}))
    assert file_prompts(path) == (prompt,)


def test_the_exact_column_name_comes_first(tmp_path: Path) -> None:
    (prompt,) = file_prompts(written(tmp_path, "a.csv", "caption,text\nold,new\n"))
    assert (prompt.text, prompt.labels) == ("new", {"caption": "old"})
    path = written(tmp_path, "b.csv", "file_name,Text,\na.wav,rain,7\n")
    assert cells(path, "file", "caption") == [(2, {"file": "a.wav", "caption": "rain"})]


def test_a_txt_has_one_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a.txt: .* one column; .*file, caption"):
        read_table(written(tmp_path, "a.txt", "rain\n"), "file", "caption")


def test_cells_are_read_by_kind() -> None:
    values = {
        "t": " rain ",
        "e": "",
        "n": None,
        "b": True,
        "l": ["a"],
        "o": {"a": 1},
        "i": 3,
        "f": "2.5",
        "g": 4.0,
    }
    record = Record(Path("a.jsonl"), 7, values)
    assert (record.text("t"), record.text("e"), record.words("t")) == ("rain", "", "rain")
    assert [record.name(key) for key in ("t", "e", "n", "absent", "i", "g")] == [
        "rain",
        "",
        "",
        "",
        "3",
        "4.0",
    ]
    assert [record.number(key) for key in ("e", "n", "absent", "i", "f")] == [
        None,
        None,
        None,
        3.0,
        2.5,
    ]
    assert [record.whole_number(key) for key in ("e", "i", "g")] == [None, 3, 4]
    assert (record.mapping("o"), record.mapping("n"), record.mapping("absent")) == (
        {"a": 1},
        {},
        {},
    )
    wrong = [
        (record.text, "nbloi"),
        (record.words, "enblo"),
        (record.name, "blo"),
        (record.number, "tblo"),
    ]
    for ask, keys in [*wrong, (record.whole_number, "tblof"), (record.mapping, "tbli")]:
        for key in keys:
            with pytest.raises(ValueError, match="a.jsonl, line 7: "):
                ask(key)
    assert record.others("t", "e", "n", "b", "l", "o") == {"i": 3, "f": "2.5", "g": 4.0}


def test_json_is_strict() -> None:
    assert parsed_json("[" * JSON_DEPTH + "1" + "]" * JSON_DEPTH)
    assert parsed_json('"\\ud83d\\ude00"') == "😀"
    with pytest.raises(ValueError, match="nested more than 64"):
        parsed_json("[" * (JSON_DEPTH + 1) + "]" * (JSON_DEPTH + 1))
    with pytest.raises(ValueError, match="not valid JSON"):
        parsed_json('{"a": 1')


def test_encodings() -> None:
    assert decode("é".encode(), "x") == ("é", "utf-8")
    assert decode(b"\xe9", "x") == ("é", "latin-1")
    assert decode("é".encode("utf-16"), "x") == ("é", "utf-16")
    assert lines("a\r\nb\rc\n\nd") == [(1, "a"), (2, "b"), (3, "c"), (4, ""), (5, "d")]
