"""AudioCaps' CSV files as prompts: chosen captions, held-out clips, and errors in files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from datamodules.audiocaps import audiocaps_prompts, caption_prompts, read_rows
from datamodules.prompt_sources import file_prompts
from datamodules.prompts import PromptDataModule

HEADER = "audiocap_id,youtube_id,start_time,caption"
# written for this test in the form of the real files; two clips of five captions, one with commas
# and a quote
VAL = f"""{HEADER}
901,aaaaaaaaaaa,30,A dog barks
902,aaaaaaaaaaa,30,"A dog barks, then a door is closed"
903,aaaaaaaaaaa,30,Barking
904,aaaaaaaaaaa,30,Barking
905,aaaaaaaaaaa,30,"Someone says ""sit"" to a dog"
911,-bbbbbbbbbb,0,Rain falls
912,-bbbbbbbbbb,0,Rain on a roof
913,-bbbbbbbbbb,0,It rains
914,-bbbbbbbbbb,0,Water drips
915,-bbbbbbbbbb,0,Steady rain
"""
TRAIN = f"{HEADER}\n" + "".join(f"{i},clip{i:07d},{10 * i},Sound number {i}\n" for i in range(20))


def written(tmp_path: Path, text: str | bytes, name: str = "val.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_row_becomes_a_prompt(tmp_path: Path) -> None:
    prompts = caption_prompts(written(tmp_path, VAL), negative="low quality", seconds=10.24)
    second = prompts[1]
    assert (second.id, second.text) == ("902", "A dog barks, then a door is closed")
    assert (second.negative, second.seconds) == ("low quality", 10.24)
    assert second.labels == {"youtube_id": "aaaaaaaaaaa", "start_s": 30.0}
    assert prompts[3].text == 'Someone says "sit" to a dog', (
        "904 says the same as 903 of the same clip"
    )
    assert [prompt.id for prompt in prompts] == [
        "901",
        "902",
        "903",
        "905",
        "911",
        "912",
        "913",
        "914",
        "915",
    ]


def test_one_caption_per_clip(tmp_path: Path) -> None:
    path = written(tmp_path, VAL)
    assert [prompt.id for prompt in caption_prompts(path, "first")] == ["901", "911"]
    drawn = {
        seed: tuple(p.id for p in caption_prompts(path, "drawn", seed=seed)) for seed in range(30)
    }
    assert {ids[0] for ids in drawn.values()} == {
        "901",
        "902",
        "903",
        "905",
    }, "every different caption can be drawn"
    assert all(len(ids) == 2 for ids in drawn.values())
    lines = VAL.splitlines()
    turned = written(
        tmp_path, "\n".join([lines[0], *lines[:5:-1]]), "turned.csv"
    )  # the other clip alone, its rows backwards
    assert [p.id for p in caption_prompts(turned, "drawn", seed=7)] == [drawn[7][1]], (
        "neither other clips nor order matter"
    )


def test_prompt_files_may_be_audiocaps(tmp_path: Path) -> None:
    """So ``data.file`` and ``tools/generate.py --batch-file`` take them, with all captions."""
    path = written(tmp_path, VAL)
    assert file_prompts(path, "hiss", 5.0) == caption_prompts(
        path, "all", negative="hiss", seconds=5.0
    )
    module = PromptDataModule(
        file=str(written(tmp_path, TRAIN, "train.csv")),
        val_file=str(path),
        prompts_per_round=2,
        repeats=2,
    )
    assert len(module.train_prompts) == 20 and len(module.validation_prompts) == 9


def test_training_and_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = written(tmp_path, TRAIN + "77,clip77,1,RAIN FALLS\n", "train.csv")
    val = written(tmp_path, VAL)
    with caplog.at_level(logging.WARNING):
        prompts, held_out = audiocaps_prompts(train, val, "all")
    assert [prompt.id for prompt in prompts] == [str(i) for i in range(20)] and len(held_out) == 9
    assert "left out 1 training captions" in caplog.text
    some, _ = audiocaps_prompts(train, None, count=5, seed=1)
    others, _ = audiocaps_prompts(train, None, count=5, seed=2)
    assert (
        len(some) == 5
        and some != others
        and some == audiocaps_prompts(train, None, count=5, seed=1)[0]
    )
    module = PromptDataModule(
        prompts=(prompts, held_out), prompts_per_round=4, repeats=2, val_prompts=3
    )
    assert len(next(iter(module.train_dataloader()))) == 8 and len(module.validation_prompts) == 3
    with pytest.raises(ValueError, match=r"count.*99.*train\.csv.* 20"):
        audiocaps_prompts(train, val, "all", count=99)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("901,clip9,1,Rain", "1 ids are in both .*train.csv and .*val.csv, first 901"),
        ("1,aaaaaaaaaaa,30,Rain", r"1 clips are in both .*first \('aaaaaaaaaaa', 30.0\)"),
        ("1,clip9,30,barking", "holds every caption of"),
    ],
)
def test_training_captions_are_not_held_out(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audiocaps_prompts(
            written(tmp_path, f"{HEADER}\n{row}\n", "train.csv"), written(tmp_path, VAL), "all"
        )


def test_encodings_other_columns_and_line_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        'caption, audiocap_id,start_time,youtube_id,split\r\n "Café, then'
        ' rain",7,1.5,x,test\r\n\r\n'
    )
    for encoding in ("utf-8-sig", "utf-16", "latin-1"):
        with caplog.at_level(logging.WARNING):
            (prompt,) = file_prompts(written(tmp_path, text.encode(encoding)))
        assert (prompt.id, prompt.text) == ("7", "Café, then rain")
        assert prompt.labels == {"youtube_id": "x", "start_s": 1.5, "split": "test"}
    assert (
        caplog.text.count("read as Latin-1") == 1
        and "dropped 1 empty, 0 repeated and 0 bad rows" in caplog.text
    )


BAD_ROWS = [
    ("3,cc,0,", "line 3: no caption"),
    ("3,cc,0,  ", "line 3: no caption"),
    (",cc,0,rain", "line 3: no audiocap_id"),
    ("3,,0,rain", "line 3: no youtube_id"),
    ("3,cc,,rain", "line 3: no start_time"),
    ("3,cc,late,rain", "line 3: start_time must be a number of seconds from 0, got 'late'"),
    ("3,cc,-1,rain", "line 3: start_time must be .* got '-1'"),
    ("3,cc,nan,rain", "line 3: start_time must be .* got 'nan'"),
    (
        "3,cc,0,rain, then wind",
        "line 3: 5 cells, but the header names 4 columns; put a caption with commas",
    ),
    (
        "3,cc,0",
        "line 3: 3 cells, but the header names 4 columns",
    ),
    ("1,cc,0,wind", "line 3: the audiocap_id '1' belongs to another caption in line 2"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_rows_stop_or_are_counted(
    tmp_path: Path, row: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, f"{HEADER}\n1,aa,0,rain\n{row}\n2,bb,0,wind\n1,aa,0,rain\n")
    with pytest.raises(ValueError, match=message):
        read_rows(path)
    found = read_rows(path, "drop")
    assert (
        [row.audiocap_id for row in found.rows] == ["1", "2"]
        and len(found.dropped) == 1
        and found.repeated == 1
    )
    with caplog.at_level(logging.WARNING):
        assert len(caption_prompts(path, bad_rows="drop")) == 2
    assert "dropped 0 empty, 1 repeated and 1 bad rows (line 3: " in caplog.text


@pytest.mark.parametrize("bad_rows", ["stop", "drop"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no caption .0 empty and 0 bad rows"),
        (f"{HEADER}\n", "holds no caption"),
        ("\n \n", "holds no caption"),
        (
            "1,aa,0,rain\n",
            (
                "expected the header audiocap_id.*, but audiocap_id, youtube_id, start_time,"
                " caption is missing"
            ),
        ),
        (
            "id,youtube_id,start_time,caption\n1,aa,0,rain\n",
            "audiocap_id is missing; the first line is 'id,youtube_id",
        ),
        (f"{HEADER},caption\n1,aa,0,rain,rain\n", "names caption twice"),
        (f'{HEADER}\n1,aa,0,rain\n2,bb,0,"wind\n3,cc,0,rain\n', "line 3: broken double quotes"),
        (
            f'{HEADER}\n1,aa,0,"rain\n2,bb,0,wind"\n',
            "line 2: broken double quotes .the record runs on to line 3",
        ),
        (f'{HEADER}\n1,aa,0,"rain" falls\n', "line 2: broken double quotes"),
        (b"a\x00b", "not a text file"),
    ],
)
def test_broken_files_always_stop(
    tmp_path: Path, bad_rows: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_rows(written(tmp_path, content), bad_rows)


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, VAL)
    with pytest.raises(ValueError, match="captions.*'firs'.*'first'"):
        caption_prompts(path, "firs")
    with pytest.raises(ValueError, match="bad_rows.*'dropp'.*'drop'"):
        read_rows(path, "dropp")
    with pytest.raises(ValueError, match=r"val\.txt.*\.csv.*'\.txt'"):
        read_rows(tmp_path / "val.txt")
    with pytest.raises(ValueError, match="there is no such file"):
        read_rows(tmp_path / "absent.csv")
