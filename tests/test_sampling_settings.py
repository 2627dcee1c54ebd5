"""Where sampling settings come from: what is asked, the run's evaluation, the run, the export, the default, in this order."""

import pytest

from zoo.sampling_settings import DEFAULTS, sampling_settings

RUN = {"module": {"sample_steps": 8, "eta": 0.5, "eval_sample_steps": 50}, "data": {"seconds": 2.0, "negative": "noise"}}


def test_the_order_of_sources() -> None:
    found = sampling_settings({"guidance_scale": 2.0, "steps": None}, RUN, {"guidance_scale": 9.0, "rule": "cps"})
    assert (found.steps, found.eta, found.guidance_scale, found.rule) == (8, 0.5, 2.0, "cps")
    assert (found.seconds, found.negative) == (2.0, "noise")
    assert sampling_settings({}, RUN, {}, evaluation=True).steps == 50
    assert sampling_settings({"steps": 3}, RUN, {}, evaluation=True).steps == 3
    assert sampling_settings({}, {}, {}).seconds == DEFAULTS["seconds"]


def test_prompts_from_elsewhere_carry_their_own_length_and_negative() -> None:
    prompts = {"_target_": "datamodules.audiocaps.audiocaps_prompts", "seconds": 10.0, "negative": "Low quality."}
    found = sampling_settings({}, {"data": {"prompts": prompts, "val_repeats": 1}}, {})
    assert (found.seconds, found.negative) == (10.0, "Low quality.")


def test_one_eta_a_step_fits_its_steps_only() -> None:
    run = {"module": {"sample_steps": 2, "eta": [1.0, 0.5]}}
    assert sampling_settings({}, run, {}).eta == (1.0, 0.5)
    with pytest.raises(ValueError, match="give --eta when --steps is 5"):
        sampling_settings({"steps": 5}, run, {})
