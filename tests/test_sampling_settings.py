"""Sampling settings come from the request, the run, the export or the default, in this order."""

from pathlib import Path

import pytest

from zoo.hub.export_record import export_record
from zoo.hub.run_facts import AdapterFacts, RunFacts, read_facts, stated_facts, write_facts
from zoo.hub.sampling_settings import PartialSampling, SamplingSettings, merged

# as runs of 0.1.0-dev wrote it: flat settings, no facts.json
OLD_MODULE = {"_target_": "lightning_modules.ddpo.DDPO", "sample_steps": 8, "eval_sample_steps": 50}
OLD_RUN = {"module": OLD_MODULE, "data": {"seconds": 2.0, "negative": "noise"}}


def test_the_order_of_sources() -> None:
    asked = PartialSampling(guidance_scale=2.0)
    run = PartialSampling(steps=8, eta=0.5, seconds=2.0, negative="noise")
    exported = PartialSampling(guidance_scale=9.0, rule="cps", steps=4)
    assert merged(asked, run, exported) == SamplingSettings(8, 2.0, 0.5, "cps", "noise", 2.0)
    assert merged() == SamplingSettings()


def test_one_eta_per_step_fits_its_steps_only() -> None:
    run = PartialSampling.read({"steps": 2, "eta": [1.0, 0.5]}, "facts")
    assert merged(run).eta == (1.0, 0.5)
    with pytest.raises(ValueError, match="--eta .*5"):
        merged(PartialSampling(steps=5), run)


def test_a_recorded_value_of_the_wrong_type_is_named() -> None:
    with pytest.raises(ValueError, match="here.steps: .*'many'"):
        PartialSampling.read({"steps": "many"}, "here")


def test_recorded_facts_are_read_back(tmp_path: Path) -> None:
    facts = RunFacts(
        "DDPO",
        ("denoiser",),
        AdapterFacts(2, None, ["to_q"], "gaussian"),
        "learned",
        PartialSampling(3, 1.5, (1.0, 0.5, 0.0)),
        PartialSampling(50),
        {"learning_rate": 1e-4},
        "one/adapter",
    ).with_data("PromptDataModule", {"seconds": 2.0, "template": "A {word}"})
    assert facts.evaluation.seconds == facts.sampling.seconds == 2.0
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path, {"module": {"sample_steps": 99}}) == facts
    for wrong in ("[1]", '{"format": 9}', '{"format": 1, "checkpoint": "all"}'):
        (tmp_path / "facts.json").write_text(wrong)
        with pytest.raises(ValueError, match="facts.json"):
            read_facts(tmp_path, {})
    assert read_facts(tmp_path / "none", {}) == RunFacts()


def test_the_classes_of_a_configuration_state_its_facts() -> None:
    trained = {
        "_target_": "lightning_modules.denoising.Denoising",
        "optimizer": {"learning_rate": 0.1},
    }
    source = {"_target_": "datamodules.audio.AudioDataModule", "seconds": 3.0, "folder": "/home/me"}
    cache = {"_target_": "datamodules.cache.LatentCache", "source": source, "backbone": {}}
    facts = stated_facts({"module": trained | {"trainable": ["denoiser"]}, "data": cache})
    assert (facts.algorithm, facts.learned, facts.checkpoint) == (
        "Denoising",
        ("denoiser",),
        "whole",
    )
    assert facts.settings == {"optimizer.learning_rate": 0.1} and facts.prompts == {"seconds": 3.0}
    assert facts.sampling == PartialSampling(seconds=3.0)
    assert stated_facts({"module": {"_target_": "torch.nn.Linear"}}).algorithm == "Linear"
    assert stated_facts({"module": {}}) == RunFacts()


def test_prompts_from_elsewhere_carry_their_own_length_and_negative() -> None:
    prompts = {
        "_target_": "datamodules.audiocaps.audiocaps_prompts",
        "seconds": 10.0,
        "negative": "Low quality.",
    }
    data = {"_target_": "datamodules.prompts.PromptDataModule", "prompts": prompts}
    for found in (
        stated_facts({"module": {}, "data": data | {"val_repeats": 1}}),
        read_facts(Path("none"), {"data": data}),  # an old run
    ):
        assert merged(found.sampling).seconds == 10.0
        assert merged(found.sampling).negative == "Low quality."


def test_an_old_run_is_read_by_its_flat_settings(tmp_path: Path) -> None:
    facts = read_facts(tmp_path, OLD_RUN)
    assert facts.sampling == PartialSampling(8, 1.0, negative="noise", seconds=2.0)
    assert facts.evaluation == PartialSampling(50, 1.0, negative="noise", seconds=2.0)
    assert (facts.algorithm, facts.adapter, facts.checkpoint) == ("DDPO", None, "learned")
    saved = {"lora_rank": 4, "lora_alpha": None, "lora_targets": "cross", "lora_init": "gaussian"}
    assert read_facts(tmp_path, OLD_RUN, saved).adapter == AdapterFacts(
        4, None, "cross", "gaussian"
    )
    supervised = {"module": {"_target_": "lightning_modules.denoising.Denoising"}}
    facts = read_facts(tmp_path, supervised, {"trainable": ("text",)})
    assert (facts.learned, facts.checkpoint) == (("text",), "whole")
    assert merged(facts.sampling).guidance_scale == 3.0
    assert read_facts(tmp_path, {"module": {"learning_rate": 1e-4}}).sampling == PartialSampling()


def test_an_export_records_what_the_run_evaluated_with(tmp_path: Path) -> None:
    facts = read_facts(tmp_path, OLD_RUN)
    found = export_record(tmp_path, OLD_RUN, facts, tmp_path)["sampling"]
    assert found == {"steps": 50, "guidance_scale": 1.0, "seconds": 2.0, "negative": "noise"}
    assert merged(PartialSampling.read(found, "x")) == merged(facts.evaluation)


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_run_states_how_it_samples_also_where_that_is_its_default(evaluation: bool) -> None:
    from lightning_modules.rl.ddpo import DDPO

    facts = DDPO.export_facts({})
    stated = facts.evaluation if evaluation else facts.sampling
    assert stated == PartialSampling(20, 1.0, 1.0, "ddim")
    assert facts.adapter is not None and facts.adapter.rank == 8
