"""Prompts from templates and files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from datamodules.prompt_sources import file_prompts, prompt_id, template_prompts

TEMPLATE = "A recording of a {word} {instrument} solo, high quality"
WORDS = {"happy": ["happy", "joyful"], "sad": ["sad", "mournful"]}
INSTRUMENTS = ["piano", "guitar"]


def test_template_gives_every_word_with_every_instrument() -> None:
    prompts = template_prompts(TEMPLATE, WORDS, INSTRUMENTS, "noise", 2.0)
    assert len(prompts) == 8 and len({prompt.id for prompt in prompts}) == 8
    assert prompts[2].text == "A recording of a joyful piano solo, high quality"
    assert prompts[2].labels == {"mood": "happy", "word": "joyful", "instrument": "piano"}
    assert {(prompt.negative, prompt.seconds) for prompt in prompts} == {("noise", 2.0)}


def test_mood_is_a_field_too() -> None:
    prompts = template_prompts("{mood}: {instrument}", {"sad": ["mournful"]}, ["piano"])
    assert [prompt.text for prompt in prompts] == ["sad: piano"]


def test_ids_are_stable_and_tell_requests_apart() -> None:
    assert (
        prompt_id("A calm Piano!", "", 4.0)
        == prompt_id("A calm Piano!", "", 4)
        == "a-calm-piano-3778d7e2"
    )
    assert (
        len(
            {
                prompt_id("a", "", 4),
                prompt_id("a", "b", 4),
                prompt_id("a", "", 5),
                prompt_id("A", "", 4),
            }
        )
        == 4
    )
    assert prompt_id("悲", "", 4) != prompt_id("喜", "", 4)


@pytest.mark.parametrize(
    ("template", "words", "instruments", "message"),
    [
        ("a {mod} solo", WORDS, INSTRUMENTS, "did you mean 'mood'"),
        ("a {mood} {instrument}", WORDS, INSTRUMENTS, "two prompts have the text 'a happy piano'"),
        (TEMPLATE, {}, INSTRUMENTS, "must not be empty"),
        (TEMPLATE, {"sad": []}, INSTRUMENTS, "must not be empty"),
        (TEMPLATE, WORDS, [], "must not be empty"),
        ("a {word", WORDS, INSTRUMENTS, "expected '}'"),
    ],
)
def test_bad_templates_are_named(
    template: str, words: dict, instruments: list, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        template_prompts(template, words, instruments)


def test_text_file_with_mark_and_empty_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffrain\r\n\r\n  thunder, far away \nrain\n\n".encode())
    with caplog.at_level(logging.WARNING):
        prompts = file_prompts(path, "hiss", 3.0)
    assert [(p.text, p.negative, p.seconds) for p in prompts] == [
        ("rain", "hiss", 3.0),
        ("thunder, far away", "hiss", 3.0),
    ]
    assert "2 prompts, dropped 2 empty and 1 repeated" in caplog.text


def test_latin_1_and_utf_16_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("café\n".encode("utf-16"))
    with caplog.at_level(logging.WARNING):
        assert (
            file_prompts(tmp_path / "a.txt")[0].text
            == file_prompts(tmp_path / "b.txt")[0].text
            == "café"
        )
    assert caplog.text.count("read as Latin-1") == 1


def test_table_columns_override_and_become_labels(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('\ntext,seconds,mood,negative\n"rain, soft",2.5,sad,\n\n,,,\nwind,,happy,hum\n')
    first, second = file_prompts(path, "hiss", 4.0)
    assert (first.text, first.seconds, first.negative, first.labels) == (
        "rain, soft",
        2.5,
        "hiss",
        {"mood": "sad"},
    )
    assert (second.seconds, second.negative, second.labels) == (4.0, "hum", {"mood": "happy"})
    (tmp_path / "p.tsv").write_text("text\tmood\nrain\tsad\n")
    assert file_prompts(tmp_path / "p.tsv")[0].labels == {"mood": "sad"}


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        json.dumps({"text": "rain", "id": "r1", "labels": {"events": ["a", "b"]}, "mood": "sad"})
        + "\n\n"
    )
    (prompt,) = file_prompts(path)
    assert prompt.id == "r1" and prompt.labels == {"events": ["a", "b"], "mood": "sad"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "holds no prompt .2 empty lines"),
        ("p.txt", b"a\x00b", "not a text file"),
        ("p.md", b"rain", "ends in .txt"),
        ("p.csv", b"words\nrain\n", "must name a column 'text'.*prompt.* it has 'words'"),
        ("p.csv", b"text,mood\nrain, soft, sad\n", "line 2: more cells"),
        ("p.csv", b"text,seconds\nrain,long\n", "line 2: seconds must be a number, got 'long'"),
        ("p.csv", b"text,seconds\nrain,-1\n", "line 2: .*seconds must be positive"),
        ("p.csv", b"text,seconds\n,3\n", "line 2: expected words under 'text'"),
        ("p.jsonl", b'{"text": "rain"}\n{"text": }\n', "line 2: not valid JSON"),
        ("p.jsonl", b"[1]\n", "line 1: expected a JSON object, got list"),
        ("p.jsonl", b'{"text": "rain", "labels": "sad"}\n', "labels must be an object"),
        ("p.jsonl", b'{"words": "rain"}\n', "line 1: .*'text'.*it has 'words'"),
        ("p.jsonl", b'{"text": null}\n', "line 1: expected words under 'text', got None"),
        ("p.jsonl", b'{"text": "a", "id": ["b"]}\n', "line 1: id must be text or a number"),
        ("p.jsonl", b'{"text": "a", "negative": false}\n', "line 1: negative must be text"),
        (
            "p.jsonl",
            b'{"text": "rain", "seconds": true}\n',
            "line 1: seconds must be a number, got True",
        ),
        (
            "p.jsonl",
            b'{"text": "rain", "seconds": Infinity}\n',
            "line 1: .*seconds must be positive and finite",
        ),
        (
            "p.jsonl",
            b'{"text": "a", "id": 0}\n{"text": "b", "id": 0}\n',
            "line 2: the id '0' is already used",
        ),
        (
            "p.jsonl",
            b'{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}\n',
            "line 2: the id 'x' is already used",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        file_prompts(tmp_path / name)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        file_prompts(tmp_path / "nothing.txt")
