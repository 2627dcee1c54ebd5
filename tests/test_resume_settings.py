"""What a resumed run may change, and which settings really differ."""

import pytest
from toy_run import Line

from lightning_modules import run_folder
from lightning_modules.resume_settings import Change, changes, may_change, released_by
from lightning_modules.rl.ddpo import DDPO

DDPO_NAME = "lightning_modules.rl.ddpo.DDPO"


def line(**settings):
    return {"module": {"_target_": "toy_run.Line", "width": 4, **settings}}


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        (line(), line(learning_rate=0.1), []),  # its default
        (line(kind="a"), line(), []),
        (line(learning_rate=0.2), line(), ["module.learning_rate"]),
        (line(width=4), line(width=4.0), []),
        ({"seed": 1}, {"seed": 1, "out_dir": "x", "resume": True, "provenance": [1]}, []),
        (
            {"data": {"held_out": [["a", "b"], ["c", "d"]]}},
            {"data": {"held_out": [["a", "b"]]}},
            ["data.held_out"],
        ),
        (
            {"data": {"held_out": [["a", "b"]]}},
            {"data": {"held_out": [["a", "c"]]}},
            ["data.held_out"],
        ),
        (
            {"trainer": {"callbacks": [{"a": 1}, {"b": 2}]}},
            {"trainer": {"callbacks": [{"a": 1}, {"b": 3}]}},
            ["trainer.callbacks.1.b"],
        ),
        (
            {"module": {"reward": {"_target_": "one.Thing", "x": 1, "y": 2}}},
            {"module": {"reward": {"_target_": "other.Thing", "z": 1}}},
            ["module.reward"],
        ),
        (
            {"module": {"reward": None}},
            {"module": {"reward": {"_target_": "other.Thing"}}},
            ["module.reward"],
        ),
    ],
)
def test_only_real_differences_are_listed(old, new, keys):
    assert [change.key for change in changes(old, new)] == keys


def test_what_ddpo_releases():
    released = released_by({"_target_": "lightning_modules.rl.ddpo.DDPO"})
    assert released == DDPO.MAY_CHANGE_ON_RESUME
    free = [
        "module.reward",
        "module.reward.name",
        "module.scoring.on_bad_reward",
        "module.memory.decoder",
        "module.sampler.batch_size",
        "trainer.max_epochs",
    ]
    kept = [
        "module.rewards",
        "module.optimizer.learning_rate",
        "module.scoring.long_prompts",
        "module.backbone.name",
        "data.seconds",
        "seed",
    ]
    assert [key for key in free if not may_change(key, released)] == []
    assert [key for key in kept if may_change(key, released)] == []


def test_a_module_that_says_nothing_releases_nothing():
    assert released_by({"_target_": "toy_run.Line"}) == frozenset()
    assert released_by({"_target_": "no.such.thing"}) == frozenset() == released_by({})
    assert not hasattr(Line, "MAY_CHANGE_ON_RESUME")


def test_the_advice_about_a_bad_reward_can_be_followed(tmp_path):
    """The message about a NaN advises ``on_bad_reward=drop``, which a resumed run accepts."""
    before = {
        "module": {"_target_": DDPO_NAME, "optimizer": {"learning_rate": 0.1}},
        "seed": 0,
    }
    run_folder.write_config(tmp_path, before, ["fit"], None)
    after = {**before, "module": {**before["module"], "scoring": {"on_bad_reward": "drop"}}}
    _, notes = run_folder.starting_point(tmp_path, after, resume=True)
    assert "module.scoring.on_bad_reward (stop -> drop)" in notes[0]
    worse = {**before, "module": {"_target_": DDPO_NAME, "optimizer": {"learning_rate": 0.2}}}
    with pytest.raises(
        ValueError, match=r"module\.optimizer\.learning_rate.*module\.scoring\.on_bad_reward"
    ):
        run_folder.starting_point(tmp_path, worse, resume=True)


def test_a_run_with_flat_settings_goes_on_with_nested_ones():
    flat = {"_target_": DDPO_NAME, "learning_rate": 0.1, "sample_steps": 20, "ema_decay": 0.9}
    nested = {"_target_": DDPO_NAME, "optimizer": {"learning_rate": 0.1, "ema_decay": 0.9}}
    assert changes({"module": flat}, {"module": nested}) == []  # 20 steps are the default
    other = {**nested, "sampler": {"steps": 10}}
    assert changes({"module": flat}, {"module": other}) == [Change("module.sampler.steps", 20, 10)]
