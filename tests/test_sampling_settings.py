"""Where sampling settings come from: what is asked, the run's evaluation, the run, the export, the
default, in this order.
"""

import pytest

from zoo.hub.run_facts import facts_of
from zoo.sampling_settings import DEFAULTS, run_sampling, sampling_settings

RUN = {
    "module": {"sample_steps": 8, "eta": 0.5, "eval_sample_steps": 50},
    "data": {"seconds": 2.0, "negative": "noise"},
}


def test_the_order_of_sources() -> None:
    found = sampling_settings(
        {"guidance_scale": 2.0, "steps": None}, RUN, {"guidance_scale": 9.0, "rule": "cps"}
    )
    assert (found.steps, found.eta, found.guidance_scale, found.rule) == (8, 0.5, 2.0, "cps")
    assert (found.seconds, found.negative) == (2.0, "noise")
    assert sampling_settings({}, RUN, {}, evaluation=True).steps == 50
    assert sampling_settings({"steps": 3}, RUN, {}, evaluation=True).steps == 3
    assert sampling_settings({}, {}, {}).seconds == DEFAULTS["seconds"]


def test_a_run_that_does_not_say_how_it_samples_is_sampled_as_it_was_trained() -> None:
    """Its module's own defaults go before those of models that no run trained by sampling: there,
    guidance is 3.
    """
    import inspect

    from lightning_modules.rl.ddpo import DDPO

    own = {
        name: parameter.default for name, parameter in inspect.signature(DDPO).parameters.items()
    }
    for evaluation in (False, True):
        found = sampling_settings(
            {}, {"module": {"_target_": "lightning_modules.rl.ddpo.DDPO"}}, {}, evaluation
        )
        said = (found.steps, found.guidance_scale, found.eta, found.rule)
        assert said == tuple(
            own[name] for name in ("sample_steps", "guidance_scale", "eta", "rule")
        )
    run = {"module": {"_target_": "lightning_modules.rl.ddpo.DDPO", "guidance_scale": 3.5}}
    assert sampling_settings({}, run, {}).guidance_scale == 3.5
    assert (
        sampling_settings(
            {}, {"module": {"_target_": "lightning_modules.denoising.Denoising"}}, {}
        ).guidance_scale
        == 3.0
    )


def test_prompts_from_elsewhere_carry_their_own_length_and_negative() -> None:
    prompts = {
        "_target_": "datamodules.audiocaps.audiocaps_prompts",
        "seconds": 10.0,
        "negative": "Low quality.",
    }
    found = sampling_settings({}, {"data": {"prompts": prompts, "val_repeats": 1}}, {})
    assert (found.seconds, found.negative) == (10.0, "Low quality.")


def test_an_export_records_what_the_run_evaluated_with(tmp_path) -> None:
    """Its own solver, the lengths of prompts from elsewhere, and the defaults of its module; else
    nothing.
    """
    module = {
        "_target_": "lightning_modules.rl.ddpo.DDPO",
        "sample_steps": 25,
        "eval_sample_steps": 50,
        "eval_rule": "dpmpp_2m_sde",
    }
    run = {"module": module, "data": {"prompts": {"seconds": 10.0, "negative": "hiss"}}}
    found = facts_of(tmp_path, run, tmp_path, None)["sampling"]
    assert found == {
        "steps": 50,
        "guidance_scale": 1.0,
        "rule": "dpmpp_2m_sde",
        "seconds": 10.0,
        "negative": "hiss",
    }
    assert sampling_settings({}, {}, found) == sampling_settings({}, run, {}, evaluation=True)
    assert run_sampling({"module": {"learning_rate": 1e-4}, "data": {}}) == {}


def test_one_eta_a_step_fits_its_steps_only() -> None:
    run = {"module": {"sample_steps": 2, "eta": [1.0, 0.5]}}
    assert sampling_settings({}, run, {}).eta == (1.0, 0.5)
    with pytest.raises(ValueError, match="give --eta when --steps is 5"):
        sampling_settings({"steps": 5}, run, {})
