"""configs/ddpo/music_rlhf: every file matches its row of the paper and runs at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest

import zoo
from lightning_modules import run
from lightning_modules.report import read_rows
from zoo.configuration import Run, read_configuration

FOLDER = Path(__file__).resolve().parents[1] / "configs/ddpo/music_rlhf"
CLAP, EMOPIA = "clap-music-audioset", "models/emopia/ar_va/best.ckpt"
# name -> reward, emotions, instruments, steps, seconds, samples an update, window of trained steps
ROWS = {
    "fig5a": (CLAP, 4, 1, 38, 5, 8, None),
    "fig5b": (CLAP, 4, 1, 38, 5, 8, None),
    "fig5c": (CLAP, 4, 1, 38, 5, 8, None),
    "fig5d": (CLAP, 4, 1, 19, 10, 8, None),
    "fig6a": (CLAP, 4, 1, 38, 5, 8, None),
    "fig6b": (CLAP, 4, 2, 38, 5, 8, None),
    "fig6_10_instruments": (CLAP, 4, 10, 38, 5, 8, None),
    "fig7a": (CLAP, 4, 1, 38, 5, 8, [18, 38]),
    "fig7b": (CLAP, 4, 1, 38, 5, 8, [0, 20]),
    "fig8a": (EMOPIA, 16, 1, 16, 5, 16, None),
    "fig8b": (EMOPIA, 4, 1, 9, 5, 16, None),
    "fig8c": (EMOPIA, 16, 1, 38, 5, 8, None),
    "fig8d": (EMOPIA, 4, 1, 19, 10, 8, None),
    "table1_19x10": (EMOPIA, 4, 1, 19, 10, 8, None),
    "table1_38x5": (EMOPIA, 4, 1, 38, 5, 8, None),
    "table1_200x5": (EMOPIA, 4, 1, 200, 5, 8, None),
    "table2_19x10": (CLAP, 4, 1, 19, 10, 8, None),
    "table2_38x5": (CLAP, 4, 1, 38, 5, 8, None),
    "table2_200x5": (CLAP, 4, 1, 200, 5, 8, None),
    "transfer_clap_to_emopia": (CLAP, 4, 1, 19, 10, 8, None),
    "transfer_emopia_to_clap": (EMOPIA, 4, 1, 19, 10, 8, None),
    "instruments_3": (CLAP, 4, 3, 38, 5, 8, None),
    "instruments_30": (CLAP, 4, 30, 38, 5, 8, None),
    "emotions_59": (EMOPIA, 59, 1, 19, 10, 8, None),
    "label_reward": (EMOPIA, 4, 1, 19, 10, 8, None),
    "negative_low_quality": (CLAP, 4, 1, 19, 10, 8, None),
}
SHARED = ("base", "emopia", "seed_compat", "seed_compat_prompts")
SMALL = [
    "module.sampler.steps=3",
    "module.sampler.batch_size=2",
    "module.update.batch_size=2",
    "module.update.per_round=2",
    "data.seconds=0.2",
    "data.prompts_per_round=2",
    "data.repeats=2",
    "data.val_prompts=2",
    "data.val_repeats=1",
    "trainer.accelerator=cpu",
    "trainer.check_val_every_n_epoch=1",
    "trainer.enable_model_summary=false",
]


def load(*names: str, overrides: list[str] | None = None) -> Run:
    return read_configuration([FOLDER / f"{name}.yaml" for name in names], overrides or [])


def test_every_file_is_a_row_or_what_rows_share() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*ROWS, *SHARED}


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_that_of_the_paper(name: str) -> None:
    config = load(name)
    module, data = config.module, config.data
    samples = data["prompts_per_round"] * data["repeats"]
    found = (
        module["reward"].get("name") or module["reward"]["path"],
        int(data["words"].split("_")[1]),
        int(data["instruments"].split("_")[1]),
        module["sampler"]["steps"],
        data["seconds"],
        samples // module["update"]["per_round"],
        module["update"]["window"],
    )
    assert found == ROWS[name]
    assert (
        samples,
        samples % (module["update"]["batch_size"] * module["update"]["per_round"]),
    ) == (
        32,
        0,
    )
    assert (
        samples % module["sampler"]["batch_size"] == 0
        and samples * config.trainer["max_epochs"] >= 3000
    )
    prompts = found[1] * found[2]
    assert data["prompts_per_round"] <= prompts and 96 <= prompts * data["val_repeats"] <= 120
    assert config.out_dir == f"runs/music_rlhf/{name}"
    assert (
        module["backbone"]["name"] == "audioldm2-music"
        and module["sampler"]["guidance_scale"] == 3.5
        and module["update"]["clip_range"] == 1e-4
    )


def test_the_seeds_of_figure_5() -> None:
    assert [load(name).seed for name in ("fig5a", "fig5b", "fig5c", "fig5d")] == [1, 2, 777, 3]
    assert load("fig5c", overrides=["seed=4"]).module["seed"] == 4


def test_sections_without_a_figure_differ_in_one_knob() -> None:
    label, value = (load(name).module["reward"] for name in ("label_reward", "fig8d"))
    assert {key: label[key] for key in label if label[key] != value[key]} == {"value": "label"}
    less, both = (load(name).data for name in ("negative_low_quality", "base"))
    assert {key: less[key] for key in less if less[key] != both[key]} == {"negative": "Low quality"}


def test_transfer_evaluates_with_the_other_reward() -> None:
    for name, other in (("transfer_clap_to_emopia", "fig8d"), ("transfer_emopia_to_clap", "fig5d")):
        judge = load(name).module["held_out_reward"]
        reward = load(other).module["reward"]
        assert {key: reward[key] for key in judge} == judge


def test_compat_changes_only_strings_and_rate_to_those_of_the_public_code() -> None:
    plain = load("fig6a")
    compat = load("fig6a", "seed_compat")
    assert compat.module["reward"].pop("arguments") == {"pretrained": CLAP}
    assert compat.module["reward"] == {
        "_target_": "zoo.rewards.clap.ClapReward",
        "checkpoint": CLAP,
        "towers": "transformers",
        "compat": True,
        "assume_rate_hz": 48_000,
    }
    strings = ("template", "val_template", "negative")
    assert {key for key in plain.data if plain.data[key] != compat.data[key]} == set(strings)
    assert {key for key in plain.module if plain.module[key] != compat.module[key]} == {"reward"}
    only_prompts = load("fig8d", "seed_compat_prompts")
    assert only_prompts.module == load("fig8d").module and only_prompts.data == load(
        "fig8d"
    ).data | {key: compat.data[key] for key in strings}


def test_the_prompts_of_both() -> None:
    from zoo.instantiate import instantiate

    ours, theirs = (
        instantiate(load(*names).data, "data") for names in (("fig6b",), ("fig6b", "seed_compat"))
    )
    assert [prompt.text for prompt in ours.train_prompts[1:3]] == [
        "A recording of a happy violin solo, high quality",
        "A recording of an angry piano solo, high quality",
    ]
    assert theirs.train_prompts[2].text == "a recording of a angry piano solo,high quality"
    assert theirs.validation_prompts[0].text == "a recording of an happy piano solo"
    assert {prompt.negative for prompt in theirs.train_prompts} == {
        "Low quality, mutiple sound source"
    }
    assert {prompt.negative for prompt in ours.train_prompts} == {
        "Low quality, multiple sound sources"
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "overrides", "column"),
    [
        (("fig5d",), [], "reward/mean"),
        (("fig7a",), ["module.update.window=[1, 3]"], "reward/mean"),
        (("fig8a",), [], "held_out_part/accuracy"),
        (("fig6b", "seed_compat"), [], f"held_out_part/clap/{CLAP}/compat/as-48000-hz"),
        (("transfer_clap_to_emopia",), [], "held_out_part/held_out_scorer/accuracy"),
        (("transfer_emopia_to_clap",), [], "held_out_scorer/mean"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_a_row_runs_at_toy_size(
    names: tuple[str, ...], overrides: list[str], column: str, small_zoo: Path, tmp_path: Path
) -> None:
    small = [f"out_dir={tmp_path / 'run'}", *SMALL, *overrides]
    run.fit(load(*names, overrides=[*small, "trainer.max_epochs=1"]))
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert [row["round"] for row in rows] == [0, 1] and column in rows[-1], sorted(rows[-1])
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert zoo.open_model(str(tmp_path / "run")).sample_rate_hz == 16_000


@pytest.mark.long
def test_a_row_is_resumed_where_it_stopped(small_zoo: Path, tmp_path: Path) -> None:
    small = [f"out_dir={tmp_path / 'run'}", *SMALL, "trainer.num_sanity_val_steps=0"]
    run.fit(load("table2_19x10", overrides=[*small, "trainer.max_epochs=1"]))
    run.fit(load("table2_19x10", overrides=[*small, "trainer.max_epochs=2", "resume=true"]))
    assert [row["round"] for row in read_rows(tmp_path / "run" / "metrics.csv")] == [1, 2]


@pytest.mark.parametrize(
    ("name", "steps", "seconds"),
    [("table1_19x10", 19, 10), ("table2_38x5", 38, 5), ("table1_200x5", 200, 5)],
)
def test_the_tables_are_evaluated_on_the_four_emotions(
    name: str, steps: int, seconds: float
) -> None:
    """tools/evaluate.py --config: 4 prompts with 25 clips each."""
    from zoo.evaluation.inputs import configuration

    config = configuration([str(FOLDER / f"{name}.yaml")], None)
    prompts = config.prompts("held_out")
    assert [prompt.labels["mood"] for prompt in prompts] == ["happy", "angry", "sad", "tender"]
    assert {prompt.seconds for prompt in prompts} == {seconds}
    assert config.settings["module"]["sampler"]["steps"] == steps


@pytest.mark.long
def test_a_trained_row_fills_both_tables(small_zoo: Path) -> None:
    """The command in the header of table1_*.yaml, on the small models."""
    from zoo.commands import evaluate

    run.fit(
        load(
            "table1_19x10",
            overrides=[
                "out_dir=run",
                *SMALL,
                "trainer.max_epochs=1",
                "trainer.num_sanity_val_steps=0",
            ],
        )
    )
    asked = [
        "--model",
        "run",
        "--baseline",
        "base",
        "--rewards",
        "config",
        CLAP,
        "--samples",
        "2",
        "--out",
        "tables",
    ]
    evaluate.main(asked, None, None)
    one, two = (Path(f"tables/table{number}.md").read_text() for number in (1, 2))
    assert all(mood in one.lower() for mood in ("happy", "angry", "sad", "tender")), one
    assert "3-step, 0.2 sec." in one and "3-step, 0.2 sec." in two and CLAP in two, two
    assert len(list(Path("tables/clips").rglob("*.wav"))) == 2 * 4 * 2, (
        "base and trained, 4 prompts, 2 clips each"
    )
