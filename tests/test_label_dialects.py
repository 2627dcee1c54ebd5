"""Label files of every dialect: round trips of odd content, and errors that name the place."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.preferences.baton import caption_of
from datamodules.preferences.dialects import DIALECTS, Labels, read_labels, write_labels
from datamodules.preferences.pairs import pairs_within_prompts, turned
from zoo.errors import UserError
from zoo.types import Preference, Vote

PROMPTS = (
    "a dog barks, then a car passes.",
    'she says "hello", twice',
    '"quoted" first',
    "under_scores_everywhere_1",
    "an owl 🦉 and 雷",
    "=1+2; {not json} [at all]\t| 100 % <b>",
    "two\nlines\u2028or three",
    "0001_looks like a name_2.wav",
    "long " * 2000 + "end",
)
SINGLE = ("integrity", "temporal", "quality", "relevance")


def share(draw: random.Random) -> float:
    return draw.choice((0.0, 1.0, 0.5, round(draw.random(), 4)))


def votes(draw: random.Random, values: tuple[float, ...] = ()) -> tuple[Vote, ...]:
    made = []
    for rater in draw.sample(("anna", "b@c.org", "7", 'o"x, y', "é_1"), draw.randint(1, 4)):
        value = draw.choice(values) if values else share(draw)
        both_bad = bool(values) and value == 0.5 and draw.random() < 0.5
        made.append(Vote(rater, value, both_bad, draw.choice((None, 1250.0, 3.5))))
    return tuple(made)


def clip(prompt: str, number: int, sample: int) -> str:
    return f"{number:04d}_{prompt.replace('/', ' ')}_{sample}.wav"


def singles(draw: random.Random, **fixed: object) -> list[Preference]:
    """Several clips for every prompt, each with a random task and nothing said of it."""
    task = draw.choice(SINGLE)
    return [
        Preference(**{"prompt": prompt, "audio": clip(prompt, i, n), "task": task, **fixed})
        for i, prompt in enumerate(PROMPTS)
        for n in range(draw.randint(1, 3))
    ]


def compared(draw: random.Random) -> list[Preference]:
    """Pairs without an opinion."""
    return [
        Preference(prompt, f"one/{i}_{n}.wav", "pairwise", f"two/{i}_{n}.flac")
        for i, prompt in enumerate(PROMPTS)
        for n in range(draw.randint(1, 3))
    ]


def labelled(draw: random.Random, source: str = "HD") -> list[Preference]:
    field = "score" if source == "RD" else "label"
    return [
        replace(one, source=source, audio=f"some folder/{one.audio}", **{field: share(draw)})
        for one in singles(draw)
    ]


def full(draw: random.Random) -> list[Preference]:
    made = []
    for one in (*singles(draw), *compared(draw)):
        is_pair = one.task == "pairwise"
        made.append(
            replace(
                one,
                votes=draw.choice(((), votes(draw, (0.0, 0.5, 1.0) if is_pair else ()))),
                label=draw.choice((None, share(draw))),
                score=draw.choice((None, share(draw))),
                source=draw.choice(("HD", "RD", "PD")),
                split=draw.choice(("", "train", "held_out")),
                model=draw.choice(("", "tango")),
                other_model="sao" if is_pair else "",
                seconds=draw.choice((None, 10.0, 10.24)),
            )
        )
    return made


def arena(draw: random.Random) -> list[Preference]:
    return [
        replace(
            one,
            votes=votes(draw, (0.0, 0.5, 1.0)),
            model="tango",
            other_model=draw.choice(("sao", "")),
            split=draw.choice(("", "test")),
        )
        for one in compared(draw)
    ]


def listened(draw: random.Random) -> list[Preference]:
    return [replace(one, votes=votes(draw), split="val") for one in singles(draw)]


WHAT_EACH_HOLDS = {
    "attune": full,
    "labelstudio": full,
    "listeners": listened,
    "arena": arena,
    "trl": lambda draw: [replace(one, label=1.0, source="RD") for one in compared(draw)],
    "tangoflux": lambda draw: [
        replace(one, label=1.0, source="RD", seconds=draw.choice((10.0, 9.97)))
        for one in compared(draw)
    ],
    "grouped": lambda draw: singles(draw, task="integrity", label=share(draw)),
    "pages": lambda draw: singles(draw, task="integrity", label=share(draw)),
    "scores": lambda draw: singles(draw, task="integrity", score=share(draw), source="RD"),
    "baton_ra": lambda draw: labelled(draw, "RD"),
    "baton_finetune": lambda draw: labelled(draw, "HD") + labelled(draw, "RD"),
    "baton_ha": labelled,
    "tangoflux_sft": lambda draw: singles(draw, task="integrity", source="PD", seconds=9.5),
    "audiocaps": lambda draw: singles(draw, source="PD"),
    "table": lambda draw: [
        replace(one, split=draw.choice(("", "train")), model="tango", seconds=9.5)
        for one in (
            labelled(draw)
            + labelled(draw, "RD")
            + [replace(one, votes=votes(draw)) for one in singles(draw, source="HD")]
        )
    ],
}


def test_a_table_by_names_that_people_give_its_columns(tmp_path: Path) -> None:
    text = "File,Caption,label,Listener\na.wav,rain,1,ann\na.wav,rain,0.5,bob\nb.wav,rain,0,\n"
    labels = read_labels(written(tmp_path, "3label.csv", text))
    rain = Preference("rain", "b.wav", "temporal", label=0.0)
    both = (Vote("ann", 1.0), Vote("bob", 0.5))
    assert labels.checked() == (rain, replace(rain, audio="a.wav", label=None, votes=both))
    # an exact name comes first, other columns do not matter, and neither need labels be there
    text = "file\taudio\tprompt\tmood\nx\ta.wav\train\tsad\n"
    labels = read_labels(written(tmp_path, "x.tsv", text))
    assert labels.checked() == (Preference("rain", "a.wav", "relevance", source="PD"),)
    lines = '{"path": "a.wav", "text": "rain", "label": 0.25}\n'
    labels = read_labels(written(tmp_path, "x.jsonl", lines))
    assert labels.checked() == (Preference("rain", "a.wav", "relevance", label=0.25),)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("b.wav,rain,,,", "label"),
        ("b.wav,rain,1.01,,", "label"),
        ("b.wav,rain,-0.1,,", "label"),
        ("b.wav,rain,nan,,", "label"),
        ("b.wav,rain,yes,,", "label"),
        ("b.wav,,1,,", "prompt"),
        (",rain,1,,", "audio"),
        ("b.wav,rain,1,c.wav,", "other"),
        ("b.wav,rain,1,,first", "group"),
    ],
)
def test_a_bad_row_of_a_table_is_named(row: str, field: str, tmp_path: Path) -> None:
    text = f"file,prompt,label,other,group\na.wav,rain,1,,\n{row}\n"
    assert places(read_labels(written(tmp_path, "x.csv", text))) == [("line 3", field)]


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def places(labels: Labels) -> list[tuple[str, str]]:
    return [(problem.place, problem.field) for problem in labels.problems]


def test_every_dialect_has_a_round_trip() -> None:
    assert set(WHAT_EACH_HOLDS) == set(DIALECTS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_what_is_written_is_read_again(dialect: str, seed: int, tmp_path: Path) -> None:
    if dialect == "trl":
        pytest.importorskip("pyarrow")
    records = WHAT_EACH_HOLDS[dialect](random.Random(seed))
    for suffix in DIALECTS[dialect].suffixes:
        path = tmp_path / f"some_2label{suffix}"
        assert write_labels(records, path, dialect) == {}
        labels = read_labels(path)
        assert labels.problems == ()
        assert labels.dialect == dialect
        assert list(labels.records) == records
        assert len(labels.places) == len(records)


ROW = {"dataset": "2label_HA", "location": "a/0001_rain_0.wav", "captions": "rain", "feedback": 1}


@pytest.mark.parametrize("form", ["array", "lines", "commas", "pretty"])
def test_containers_are_told_by_their_content(form: str, tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "location": "a/0001_rain_1.wav", "feedback": 0}]
    text = {
        "array": json.dumps(rows),
        "lines": "\n".join(map(json.dumps, rows)),
        "commas": "".join(json.dumps(row) + ",\r\n" for row in rows),
        "pretty": json.dumps(rows, indent=4),
    }[form]
    labels = read_labels(written(tmp_path, "labels.json", text))
    assert labels.problems == ()
    assert [one.label for one in labels.records] == [1.0, 0.0]
    assert {(one.task, one.source, one.prompt) for one in labels.records} == {
        ("integrity", "HD", "rain")
    }
    lines = {"array": ("line 1", "line 1"), "pretty": ("line 2", "line 8")}
    assert labels.places == lines.get(form, ("line 1", "line 2"))


def test_rows_of_a_reward_model_point_at_their_own_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {
        "dataset": "3label_RA",
        "location": "./2label_Integrity_RD_Audio/0300_a then b then c_0.wav",
        "captions": "a then b then c",
        "SED": 0.4131,
    }
    labels = read_labels(written(tmp_path, "x.json", json.dumps(row)))
    assert labels.records == (
        Preference(
            "a then b then c",
            "./3label_Temporal_RD_Audio/0300_a then b then c_0.wav",
            "temporal",
            score=0.4131,
            source="RD",
        ),
    )
    assert "2label_Integrity_RD_Audio" in caplog.text


def test_older_scores_may_be_nested(tmp_path: Path) -> None:
    rows = [{"audio": "0001_rain, wind._3.wav", "pre_score": [[0.25]]}]
    labels = read_labels(written(tmp_path, "3label.json", json.dumps(rows)))
    assert [(one.prompt, one.score, one.task) for one in labels.records] == [
        ("rain, wind.", 0.25, "temporal")
    ]


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("x/0012_a dog, a cat. and a cow._4.wav", "a dog, a cat. and a cow."),
        ("0012_with_an underscore_0.flac", "with_an underscore"),
        ("0012_no suffix_10", "no suffix"),
    ],
)
def test_captions_stand_between_the_first_and_the_last_underscore(name: str, caption: str) -> None:
    assert caption_of(name) == caption


@pytest.mark.parametrize("name", ["rain.wav", "0001_rain.wav", "rain_1.wav", "0001__1.wav"])
def test_a_file_name_without_a_caption_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="audio"):
        caption_of(name)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1.01", "-0.1", "true", '"high"', "null"])
def test_a_bad_label_is_named_by_line_and_field_and_the_rest_is_read(
    value: str, tmp_path: Path
) -> None:
    bad = json.dumps(ROW).replace('"feedback": 1', f'"feedback": {value}')
    path = written(tmp_path, "x.json", f"{json.dumps(ROW)}\n{bad}\n")
    labels = read_labels(path)
    assert places(labels) == [("line 2", "feedback")]
    assert len(labels.records) == 1
    with pytest.raises(UserError, match="line 2, feedback"):
        labels.checked()


def test_bad_rows_of_an_array_are_named_by_line(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "captions": " "}, {**ROW, "feedback": 2}, 7, {**ROW, "location": None}]
    path = written(tmp_path, "x.json", json.dumps(rows, indent=None).replace("}, ", "},\n"))
    labels = read_labels(path)
    assert sorted(places(labels)) == [
        ("line 2", "captions"),
        ("line 3", "feedback"),
        ("line 4", "JSON"),
        ("line 4", "location"),
    ]


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, '{"a": ' * 5000])
@pytest.mark.parametrize(
    "form", ["[%s]", '{"location": %s}', '{"location": "a", "captions": "b"}\n{"a": %s}']
)
def test_json_that_no_parser_takes_is_a_problem(text: str, form: str, tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, "x.json", form % text))
    assert len(labels.records) == form.count("captions")
    assert "JSON" in {problem.field for problem in labels.problems}


@pytest.mark.parametrize("cut", [20, 150, 260])
def test_a_cut_off_array_is_a_problem(cut: int, tmp_path: Path) -> None:
    text = json.dumps([ROW, ROW, ROW])[:cut]
    assert ("line 1", "JSON") in places(read_labels(written(tmp_path, "x.json", text)))


def test_ratings_name_prompt_page_and_file(tmp_path: Path) -> None:
    grouped = {"grouped_ratings": {"rain": {"a.wav": 1.0, "b.wav": 3, "c.wav": None}, "wind": 5}}
    labels = read_labels(written(tmp_path, "g.json", json.dumps(grouped)))
    assert places(labels) == [
        ("prompt 'rain', file 'b.wav'", "label"),
        ("prompt 'wind'", "grouped_ratings"),
    ]
    assert [one.label for one in labels.records] == [1.0, None]
    pages = {"ratings": [{"data": {"1_rain_0.wav": 1}}, {"data": {"rain.wav": 1}}, {}]}
    labels = read_labels(written(tmp_path, "p.json", json.dumps(pages)))
    assert places(labels) == [("page 2, file 'rain.wav'", "audio"), ("page 3", "ratings")]


def test_a_key_that_occurs_twice_is_a_problem(tmp_path: Path) -> None:
    text = '{"grouped_ratings": {"rain": {"a.wav": 1.0, "a.wav": 0.0}}}'
    assert places(read_labels(written(tmp_path, "g.json", text))) == [("line 1", "JSON")]


def test_one_rater_votes_once(tmp_path: Path) -> None:
    table = "clip_id,listener_id,axis,score,time_ms\n"
    table += "c1,ann,mos,5,900\nc1,bob,mos,3,\nc1,ann,mos,1,\nc1,ann,relevance,0,\n"
    labels = read_labels(written(tmp_path, "t.csv", table))
    assert places(labels) == [("line 4", "listener_id")]
    assert labels.records == (
        Preference("", "c1", "quality", votes=(Vote("ann", 1, time_ms=900), Vote("bob", 0.5))),
        Preference("", "c1", "relevance", votes=(Vote("ann", 0),)),
    )
    row = {"prompt": "rain", "model_a": "x", "model_b": "y", "winner": "tie", "judge": "ann"}
    text = f"{json.dumps(row)}\n{json.dumps(row)}\n"
    assert places(read_labels(written(tmp_path, "a.jsonl", text))) == [("line 2", "judge")]
    own = {"prompt": "rain", "audio": "a", "task": "quality"}
    own["votes"] = [{"rater": "ann", "value": 1}, {"rater": "ann", "value": 0}]
    assert places(read_labels(written(tmp_path, "o.jsonl", json.dumps(own)))) == [
        ("line 1", "votes")
    ]


def test_scores_keep_to_their_scale(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "clip_id,listener_id,axis,score\nc1,ann,quality,0\n")
    assert places(read_labels(path)) == [("line 2", "score")]
    assert read_labels(path, scale=(0, 100)).records[0].votes == (Vote("ann", 0.0),)
    path = written(tmp_path, "t.csv", "clip_id,listener_id,axis,score\nc1,ann,speed,0\n")
    assert places(read_labels(path)) == [("line 2", "axis")]
    assert read_labels(path, task="relevance").records[0].task == "relevance"


def test_arena_rows_of_one_pair_are_one_record_in_either_order(tmp_path: Path) -> None:
    def row(a: str, b: str, winner: str) -> str:
        models = {"model_a": a, "model_b": b, "audio_a": f"{a}.wav", "audio_b": f"{b}.wav"}
        return json.dumps({"prompt": "rain", **models, "winner": winner}) + "\n"

    text = row("x", "y", "model_a") + row("y", "x", "model_a") + row("y", "x", "tie (bothbad)")
    labels = read_labels(written(tmp_path, "a.jsonl", text + row("x", "y", "nobody")))
    (record,) = labels.records
    assert (record.audio, record.other, record.task) == ("x.wav", "y.wav", "pairwise")
    assert [(vote.value, vote.both_bad) for vote in record.votes] == [
        (1.0, False),
        (0.0, False),
        (0.5, True),
    ]
    assert places(labels) == [("line 4", "winner")]


def test_exports_of_label_studio_are_read(tmp_path: Path) -> None:
    def annotation(by: object, kind: str, value: object, **more: object) -> dict:
        result = [{"type": "textarea", "value": {"text": ["x"]}}, {"type": kind, "value": value}]
        return {"completed_by": by, "result": result, **more}

    tasks = [
        {
            "id": 1,
            "data": {"audio": "/data/upload/1/0001_rain_0.wav"},
            "annotations": [
                annotation(3, "choices", {"choices": ["Yes"]}, lead_time=1.5),
                annotation({"id": 4, "email": "a@b.c"}, "choices", {"choices": ["no"]}),
                annotation(5, "choices", {"choices": ["no"]}, was_cancelled=True),
                annotation(6, "rating", {"rating": 4}),
            ],
        },
        {
            "id": 2,
            "data": {"audio_a": "x.wav", "audio_b": "y.wav", "prompt": "wind"},
            "annotations": [annotation(3, "pairwise", {"selected": "right"})],
        },
        {"id": 3, "data": {"audio": "z.wav"}, "annotations": [annotation(3, "rating", {})]},
        {"id": 4, "data": {"prompt": "no audio"}, "annotations": []},
    ]
    labels = read_labels(written(tmp_path, "export.json", json.dumps(tasks)))
    assert labels.dialect == "labelstudio"
    assert labels.records == (
        Preference(
            "rain",
            "/data/upload/1/0001_rain_0.wav",
            "relevance",
            votes=(Vote("3", 1.0, time_ms=1500.0), Vote("a@b.c", 0.0), Vote("6", 0.75)),
        ),
        Preference("wind", "x.wav", "pairwise", "y.wav", votes=(Vote("3", 0.0),)),
    )
    assert [problem.field for problem in labels.problems] == ["rating", "audio"]


def test_pairs_are_those_of_the_reference(golden_dir: Path) -> None:
    path = golden_dir / "baton" / "pair_building.json"
    pairs = pairs_within_prompts(read_labels(path).checked())
    expected = json.loads(path.read_text("utf-8"))["pairs"]
    assert [[pair.audio, pair.other] for pair in pairs] == expected
    assert {(pair.task, pair.label) for pair in pairs} == {("pairwise", 1.0)}


def test_parquet_holds_audio_and_gives_it_back(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    (tmp_path / "a.wav").write_bytes(b"RIFF first")
    (tmp_path / "b.flac").write_bytes(b"fLaC second")
    record = Preference("rain", "a.wav", "pairwise", "b.flac", label=0.0, source="RD")
    path = tmp_path / "pairs.parquet"
    assert write_labels([record], path, "trl", lambda name: tmp_path / name) == {}
    labels = read_labels(path, extract_to=tmp_path / "out")
    assert labels.records == (turned(record),)
    assert (tmp_path / "out" / "a.wav").read_bytes() == b"RIFF first"
    metadata = json.loads(parquet.read_schema(path).metadata[b"huggingface"])
    assert metadata["info"]["features"]["chosen"] == {"_type": "Audio"}

    # names that lead out of the folder, and clips without names, get one of their own
    cells = {"chosen": {"bytes": b"RIFF x", "path": "../../x.wav"}}
    cells["rejected"] = {"bytes": b"OggS y", "path": None}
    table = pyarrow.Table.from_pylist([{"prompt": "rain", **cells}])
    parquet.write_table(table, tmp_path / "far.parquet")
    (record,) = read_labels(tmp_path / "far.parquet", extract_to=tmp_path / "far").records
    assert (record.audio, record.other) == ("far-000001-chosen.wav", "far-000001-rejected.ogg")
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == [
        "far-000001-chosen.wav",
        "far-000001-rejected.ogg",
    ]


def test_parquet_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"attune\[labels\]"):
        read_labels(tmp_path / "x.parquet")


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1PAR1"])
def test_a_broken_parquet_file_is_refused(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match="x.parquet"):
        read_labels(tmp_path / "x.parquet")


SINGLE_CLIP = Preference("rain", "0001_rain_0.wav", "integrity", label=1.0)
TWO_CLIPS = Preference("rain", "a.wav", "pairwise", "b.wav", label=0.5)


@pytest.mark.parametrize(
    ("dialect", "records", "field"),
    [
        ("baton_ha", [TWO_CLIPS], "task"),
        ("baton_ha", [replace(SINGLE_CLIP, label=None)], "label"),
        ("grouped", [SINGLE_CLIP, replace(SINGLE_CLIP, audio="x/0001_rain_0.wav")], "audio"),
        ("pages", [replace(SINGLE_CLIP, prompt="wind")], "prompt"),
        ("pages", [replace(SINGLE_CLIP, audio="a.wav")], "audio"),
        ("tangoflux", [TWO_CLIPS], "label"),
        ("tangoflux", [SINGLE_CLIP], "task"),
        ("tangoflux_sft", [SINGLE_CLIP], "seconds"),
        ("arena", [SINGLE_CLIP], "task"),
        ("arena", [replace(TWO_CLIPS, label=0.75)], "votes"),
        ("listeners", [SINGLE_CLIP], "votes"),
        ("table", [replace(SINGLE_CLIP, label=None)], "label"),
        ("attune", [], "records"),
    ],
)
def test_what_a_dialect_cannot_hold_is_refused_and_nothing_is_written(
    dialect: str, records: list[Preference], field: str, tmp_path: Path
) -> None:
    path = tmp_path / f"out{DIALECTS[dialect].suffixes[0]}"
    with pytest.raises(UserError, match=field):
        write_labels(records, path, dialect)
    assert list(tmp_path.iterdir()) == []


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    record = replace(SINGLE_CLIP, votes=(Vote("ann", 1.0),), split="train")
    assert write_labels([record, replace(record, audio="b.wav")], tmp_path / "o.json", "baton_ha")
    lost = write_labels([record], tmp_path / "x.json", "grouped")
    assert lost == {"votes": 1, "split": 1, "task": 1}


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("x.txt", "rain", "x.txt"),
        ("x.json", "", "x.json"),
        ("x.json", '{"colour": "red"}', "colour"),
        ("missing.json", None, "missing.json"),
    ],
)
def test_a_file_of_no_dialect_is_refused(
    name: str, text: str | None, key: str, tmp_path: Path
) -> None:
    if text is not None:
        written(tmp_path, name, text)
    with pytest.raises(UserError, match=key):
        read_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"task": "loudness"}, "task"),
        ({"source": "XD"}, "source"),
        ({"label": float("nan")}, "label"),
        ({"score": -0.1}, "score"),
        ({"seconds": 0.0}, "seconds"),
        ({"other": "b.wav"}, "other"),
        ({"task": "pairwise"}, "other"),
        ({"task": "pairwise", "other": "0001_rain_0.wav"}, "other"),
        ({"votes": (Vote("ann", 1.0), Vote("ann", 0.0))}, "votes"),
    ],
)
def test_a_record_checks_itself(change: dict, field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}:"):
        replace(SINGLE_CLIP, **change)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [((1.1,), "value"), ((1.0, True), "both_bad"), ((1.0, False, -1.0), "time_ms")],
)
def test_a_vote_checks_itself(arguments: tuple, field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}:"):
        Vote("ann", *arguments)
