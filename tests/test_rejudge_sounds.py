"""Judging adapters again: differences over captions and pairs, the verdict, and resuming."""

import json

import numpy as np
import pytest
import torch
from test_sound_benchmarks import DATA, StubTagger
from toys import small_audio

from benchmarks import rejudge_sounds as rejudge
from benchmarks.rejudge_sounds import Difference, Unit
from benchmarks.sound_probes import Judge, Probe
from zoo.backbones.lora import add_lora
from zoo.diffusion import Sampler
from zoo.evaluation.best_of_n import cost
from zoo.hub.adapters import save_adapter
from zoo.statistics.clustered import clustered_mean

CAPTIONS = ["a", "a", "a", "b", "b", "b", "c", "c", "c", "d", "d", "d"]
PAIRS = ["x"] * 6 + ["y"] * 6


def unit(**columns) -> Unit:
    values = {name: np.array(column, dtype=float) for name, column in columns.items()}
    return Unit("key", CAPTIONS, PAIRS, values, [0.1])


def flat(value: float) -> list[float]:
    return [value] * 12


def test_differences_are_over_captions_and_over_pairs():
    base = unit(both_B=flat(0))
    after = {"both_B": np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0], dtype=float)}
    found = rejudge.difference(base, after, "both_B")
    assert found.captions.value == pytest.approx(1 / 3) and found.captions.prompts == 4
    assert found.pairs.value == pytest.approx((0.5 + 1 / 6) / 2) and found.pairs.prompts == 2
    assert found.captions.error == pytest.approx(np.std([1, 0, 1 / 3, 0], ddof=1) / 2)
    assert found.pairs.error == pytest.approx(np.std([0.5, 1 / 6], ddof=1) / 2**0.5)


def test_clips_to_which_a_score_does_not_apply_are_left_out():
    base = unit(order_B=[np.nan] * 6 + flat(0)[:6])
    found = rejudge.difference(base, {"order_B": np.array([np.nan] * 6 + [1.0] * 6)}, "order_B")
    assert (found.captions.clips, found.captions.prompts, found.captions.value) == (6, 2, 1)
    assert found.pairs.prompts == 1 and found.direction == "unchanged"  # one pair says nothing


@pytest.mark.parametrize(
    ("captions", "pairs", "direction"),
    [
        ([0.4, 0.5, 0.6], [0.4, 0.5, 0.6], "rose"),
        ([-0.4, -0.5, -0.6], [-0.4, -0.5, -0.6], "fell"),
        ([0.4, 0.5, 0.6], [0.0, 1.0], "unchanged"),
        ([-1.0, 2.0], [0.4, 0.5, 0.6], "unchanged"),
    ],
)
def test_a_direction_needs_both_intervals(captions, pairs, direction):
    means = [clustered_mean(values, range(len(values))) for values in (captions, pairs)]
    assert Difference(*means).direction == direction


def test_best_of_three_is_an_expectation_over_groups_and_costs_no_training():
    columns = {"reward": [1.0, 2, 3] * 4, "both_B": [0.0, 0, 1] * 4, "order_B": [np.nan] * 12}
    found = rejudge.best_of(unit(**columns), "both_B")
    assert found.captions.value == pytest.approx(1 - 1 / 3)  # the third clip is always chosen
    assert (found.captions.prompts, found.pairs.prompts) == (4, 2)
    assert rejudge.best_of(unit(**columns), "reward").captions.value == pytest.approx(1)
    assert rejudge.best_of(unit(**columns), "order_B") is None


def all_columns(value: float) -> dict[str, list[float]]:
    return {name: flat(value) for name in rejudge.TITLES}


def test_the_verdict_follows_the_mean_of_seeds_by_both_judges():
    rising = [0.2, 0.2, 0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.3, 0.3, 0.2, 0.3]
    base = unit(**all_columns(0.0))
    seeds = {0: unit(**all_columns(0.0) | {"both_B": rising, "both_C": rising})}
    assert "more than one seed" in rejudge.verdict(rejudge.rows_of(base, seeds))
    seeds[1] = unit(**all_columns(0.0) | {"both_B": rising, "both_C": rising})
    rows = rejudge.rows_of(base, seeds)
    assert list(rows) == ["seed 0", "seed 1", "mean of seeds", "best of 3, no training"]
    assert rejudge.verdict(rows).startswith("the judges follow")
    seeds[1] = unit(**all_columns(0.0) | {"both_B": rising, "both_C": [-0.3 for _ in rising]})
    rows = rejudge.rows_of(base, seeds)
    assert rejudge.verdict(rows).startswith("the judges do not both follow")
    assert rows["mean of seeds"]["both_C"].captions.value == pytest.approx(-0.025, abs=1e-3)
    sampler = Sampler(6, 3.0, 1.0)
    costs = {"": cost(sampler), rejudge.BEST_ROW: cost(sampler, 3)}
    shown = rejudge.table("a sampler", base, rows, costs)
    assert "| 12, 0 |" in shown and "| 36, 3 |" in shown  # network evaluations and reward calls
    assert f"| **{np.mean(rising):+.3f} ± " in shown


def test_units_keep_what_does_not_apply(tmp_path):
    one = unit(both_B=flat(1), order_B=[np.nan] * 11 + [0.0])
    path = tmp_path / "unit.json"
    path.write_text(json.dumps(one.to_json(), allow_nan=False))
    again = rejudge.kept(path, "key")
    assert again.captions == one.captions and again.prior == one.prior
    for name, column in one.values.items():
        np.testing.assert_array_equal(again.values[name], column)
    assert rejudge.kept(path, "another key") is None
    assert rejudge.kept(tmp_path / "none.json", "key") is None


def loud_judge(name: str, patches: int) -> Judge:
    """A stand-in: hears the level of each part of a clip, in classes by fixed weights."""

    def listen(wave_BCN, sample_rate_hz):
        return wave_BCN.mean(dim=1).unflatten(1, (patches, -1)).square().mean(dim=2, keepdim=True)

    weight_K1 = torch.randn(32, 1, generator=torch.Generator().manual_seed(patches))
    probe = Probe(torch.zeros(1), torch.ones(1), weight_K1, torch.zeros(32))
    return Judge(name, name, listen, probe, {"auc_codec": 1.0})


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A configuration of small parts, two adapters, and a count of what is generated."""
    judges = {name: loud_judge(name, patches) for name, patches in (("A", 8), ("B", 4), ("C", 1))}
    monkeypatch.setattr(rejudge, "load_judges", lambda sounds, cache, names: judges)
    monkeypatch.setattr(rejudge, "YAMNetTagger", StubTagger)
    monkeypatch.setattr(rejudge, "train", lambda seed, config, run: None)
    monkeypatch.setattr(rejudge, "BETTER", Sampler(3, 1.0, 0.0))
    made = []
    generations = rejudge.generations
    monkeypatch.setattr(
        rejudge, "generations", lambda *about: made.append(about[2].steps) or generations(*about)
    )
    config = {
        "module": {
            "_target_": "lightning_modules.rl.ddpo.DDPO",
            "backbone": {"_target_": "toys.small_audio"},
            "reward": {"_target_": "test_sound_benchmarks.Loudness"},
            "sampler": {"steps": 2, "guidance_scale": 1.0},
        },
        "data": DATA,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    for seed in (0, 1):
        save(tmp_path / "runs" / f"seed{seed}", 0.5 * seed)  # seed 0 has learned nothing
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    arguments = ["--config", str(tmp_path / "config.yaml"), *folders]
    return [*arguments, "--seeds", "0", "1", "--samples", "3"], made


def save(run, deviation: float) -> None:
    backbone = small_audio()
    add_lora(backbone, 2)
    for name, parameter in backbone.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=deviation)
    save_adapter(backbone, run / "adapter")


@pytest.mark.long
def test_protocol_at_toy_size(toy, tmp_path, capsys):
    arguments, made = toy
    rejudge.main(arguments)
    assert made == [2, 3] * 3  # base, seed 0 and seed 1 at both samplers
    record = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["differences"]
    for sampler in ("own", "better"):
        same = record[sampler]["seed 0"]
        assert all(same[name]["captions"]["value"] == 0 for name in rejudge.TITLES)
        assert record[sampler]["seed 1"]["level_db"]["captions"]["value"] != 0
        assert record[sampler]["best of 3, no training"]["diversity_db"] is None
        assert record[sampler]["best of 3, no training"]["reward"]["pairs"]["value"] > 0
    rows = record["own"]
    assert list(rows)[-1] == rejudge.SAMPLER_ROW not in record["better"]
    level = record["better"]["seed 0"]["level_db"]["captions"]  # seed 0 is the base model
    assert rows[rejudge.SAMPLER_ROW]["level_db"]["captions"]["clips"] == level["clips"]
    assert rows[rejudge.SAMPLER_ROW]["level_db"]["captions"]["value"] != 0
    shown = capsys.readouterr().out
    assert (tmp_path / "out" / "table.md").read_text("utf-8") in shown
    assert (tmp_path / "out" / "table.png").stat().st_size > 5000
    # a second start makes nothing anew; a changed adapter is judged again, alone
    made.clear()
    rejudge.main(arguments)
    assert made == [] and (tmp_path / "out" / "table.md").read_text("utf-8") in shown
    save(tmp_path / "runs" / "seed0", 0.7)
    rejudge.main(arguments)
    assert made == [2, 3]


@pytest.mark.long
def test_an_interrupted_run_goes_on_where_it_stopped(toy, monkeypatch):
    arguments, made = toy
    judged = rejudge.judged

    def stops(*about):
        if len(made) == 3:
            raise KeyboardInterrupt
        return judged(*about)

    monkeypatch.setattr(rejudge, "judged", stops)
    with pytest.raises(KeyboardInterrupt):
        rejudge.main(arguments)
    made.clear()
    monkeypatch.setattr(rejudge, "judged", judged)
    rejudge.main(arguments)
    assert made == [2, 3, 2, 3]  # the units of the base model were there
