"""Settings of DDPO: what each record refuses, how a configuration writes them, and where the flat
ones of older configurations have gone.
"""

import inspect

import pytest
import torch
from toy_ddpo import fitted, module, weights
from toys import ToyBackbone, ToyReward

from lightning_modules.rl.ddpo import DDPO
from lightning_modules.rl.settings import (
    MOVED_SETTINGS,
    AdvantageSettings,
    EvaluationSettings,
    OptimizerSettings,
    SamplerSettings,
    ScoringSettings,
    UpdateSettings,
)
from lightning_modules.training_settings import AdapterSettings, MemorySettings
from zoo.configuration import read_configuration
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.instantiate import check, instantiate
from zoo.signatures import argument_names, bind, plain_defaults

NAME = "lightning_modules.rl.ddpo.DDPO"
MODELS = {"backbone": {"_target_": "toys.ToyBackbone"}, "reward": {"_target_": "toys.ToyReward"}}


def node(**settings):
    return {"_target_": NAME, **MODELS, **settings}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (SamplerSettings, "batch_size", 0),
        (UpdateSettings, "batch_size", 0),
        (UpdateSettings, "per_round", 0),
        (UpdateSettings, "inner_epochs", 0),
        (UpdateSettings, "timestep_fraction", 0.0),
        (UpdateSettings, "timestep_fraction", 1.5),
        (UpdateSettings, "timestep_draw", "round"),
        (UpdateSettings, "clip_range", 0.0),
        (UpdateSettings, "clip_reference_elements", 0),
        (UpdateSettings, "kl_coef", -1.0),
        (UpdateSettings, "kl_coef", float("nan")),
        (UpdateSettings, "ratio_check", "always"),
        (UpdateSettings, "ratio_check", -1.0),
        (AdvantageSettings, "kind", "promt"),
        (AdvantageSettings, "clip", 0.0),
        (AdapterSettings, "rank", -1),
        (OptimizerSettings, "name", "adamv"),
        (OptimizerSettings, "learning_rate", 0.0),
        (OptimizerSettings, "learning_rate", float("inf")),
        (OptimizerSettings, "max_grad_norm", 0.0),
        (OptimizerSettings, "decay_rounds", 0),
        (OptimizerSettings, "weight_decay", -1.0),
        (OptimizerSettings, "epsilon", float("inf")),
        (OptimizerSettings, "betas", (1.5, 0.9)),
        (OptimizerSettings, "ema_decay", 1.0),
        (MemorySettings, "text_encoders", "ofload"),
        (MemorySettings, "decoder", "drop"),
        (ScoringSettings, "workers", -1),
        (ScoringSettings, "on_bad_reward", "skip"),
        (ScoringSettings, "long_prompts", "cut"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_record(kind, field, value):
    with pytest.raises(UserError) as refused:
        kind(**{field: value})
    message = str(refused.value)
    assert str(value).strip("()") in message and (field in message or field == "name")


def test_unusual_values_that_work():
    UpdateSettings(ratio_check=True, clip_reference_elements=None, kl_coef=0)
    OptimizerSettings(max_grad_norm=float("inf"), decay_rounds=None, ema_decay=0.0)
    AdvantageSettings(clip=float("inf"))


def test_evaluation_samples_as_training_where_it_says_nothing():
    training = SamplerSettings(8, 2.0, 0.5, "cps", True, batch_size=3)
    assert EvaluationSettings().sampler(training) == Sampler(8, 2.0, 0.5, "cps", True)
    other = EvaluationSettings(50, 1.0, 1.0, "dpmpp_2m_sde").sampler(training)
    assert other == Sampler(50, 1.0, 1.0, "dpmpp_2m_sde", True)
    per_step = SamplerSettings(2, eta=(1.0, 0.5))
    with pytest.raises(UserError, match=r"evaluation\.steps 3.*evaluation\.eta"):
        EvaluationSettings(steps=3).sampler(per_step)
    assert EvaluationSettings(steps=3, eta=0.0).sampler(per_step).steps == 3


def test_a_node_without_a_target_becomes_settings():
    built = instantiate(
        node(
            sampler={"steps": 2, "eta": [1.0, 0.5]},
            update={"window": [0, 1], "batch_size": 4},
            optimizer={"betas": [0.9, 0.98]},
        ),
        "module",
    )
    assert built.sampler == SamplerSettings(2, eta=(1.0, 0.5))
    assert built.update == UpdateSettings(window=(0, 1), batch_size=4)
    assert built.optimizer.betas == (0.9, 0.98)
    given = {"backbone": ToyBackbone(), "reward": ToyReward(), "adapter": AdapterSettings(rank=2)}
    assert bind(DDPO, given, "module") == given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update": {"clip_rnage": 1}}, r"module\.update\.clip_rnage.*module\.update\.clip_range"),
        ({"update": {"lr": 1}}, r"module\.update\.lr.*choose from batch_size"),
        ({"update": {"learning_rate": 1}}, r"module\.update\.learning_rate.*module\.optimizer\."),
        ({"update": {"clip_range": 0.0}}, r"module\.update: invalid clip_range 0\.0"),
        ({"sampler": {"steps": "x"}}, r"module\.sampler\.steps: .*int, got 'x'"),
        ({"sampler": None}, r"module\.sampler: .*SamplerSettings, got None"),
        ({"sampler": {"steps": {"_target_": "toys.ToyReward"}}}, r"module\.sampler.*(plain|int)"),
        ({"lr": 1}, r"module\.lr.*module\.optimizer\.learning_rate"),
        ({"rank": 1}, r"module\.rank.*module\.adapter\.rank"),
        ({"fraction": 1}, r"module\.fraction.*module\.update\.timestep_fraction"),
        ({"sample_step": 1}, r"module\.sample_step.*module\.sampler\.steps"),
        ({"batch_size": 1}, r"module\.sampler\.batch_size or module\.update\.batch_size"),
        ({"zzz": 1}, r"module\.zzz.*choose from backbone, reward, sampler"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(settings, message):
    for act in (check, instantiate):
        with pytest.raises(UserError, match=message):
            act(node(**settings), "module")


def test_ddpo_takes_a_dozen_arguments_and_each_setting_has_one_place():
    assert len(inspect.signature(DDPO).parameters) == 12
    places = argument_names(DDPO)
    assert len(set(places)) == len(places)
    assert set(MOVED_SETTINGS.values()) <= set(places)
    assert len(set(MOVED_SETTINGS.values())) == len(MOVED_SETTINGS) == 46


@pytest.mark.parametrize(("old", "new"), MOVED_SETTINGS.items())
def test_a_flat_setting_is_refused_with_its_new_place(old, new):
    part, name = new.split(".")
    value = plain_defaults(DDPO)[part][name]
    with pytest.raises(UserError, match=rf"module\.{old} is now module\.{new}\b"):
        check(node(**{old: value}), "module")


def test_an_override_of_a_flat_setting_is_refused_and_all_of_a_file_are_named(project_root):
    smoke = project_root / "configs" / "ddpo" / "quickstart_smoke.yaml"
    for override, new in (("lora_rank=4", "adapter.rank"), ("optimizer=adamw", "optimizer.name")):
        config = read_configuration([smoke], [f"module.{override}"])
        with pytest.raises(UserError, match=rf"is now module\.{new}\b"):
            check(config.module, "module")
    with pytest.raises(UserError) as refused:
        check(node(lora_rank=4, eta=1.0, kl_weight=0.1), "module")
    assert all(f"module.{name} is" in str(refused.value) for name in ("lora_rank", "eta"))
    assert "module.kl_weight is now module.update.kl_coef" in str(refused.value)


def test_a_checkpoint_holds_plain_settings_and_one_with_flat_settings_still_loads(tmp_path):
    trained = module({"optimizer.ema_decay": 0.5, "sampler.eta": (1.0, 1.0, 0.5, 0.5, 0.5)})
    fitted(trained).save_checkpoint(tmp_path / "new.ckpt")
    state = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert state["hyper_parameters"]["adapter"]["rank"] == 2
    nested = state["hyper_parameters"]
    flat = {old: nested[part][name] for old, (part, name) in _split().items()}
    state["hyper_parameters"] = flat | {"seed": nested["seed"]}
    torch.save(state, tmp_path / "old.ckpt")
    for name in ("new", "old"):
        loaded = DDPO.load_from_checkpoint(
            tmp_path / f"{name}.ckpt", backbone=ToyBackbone(), reward=ToyReward()
        )
        assert loaded.sampler == trained.sampler and loaded.update == trained.update
        assert loaded.optimizer == trained.optimizer and loaded.ema.updates == trained.ema.updates
        found = weights(loaded)
        assert all(torch.equal(found[key], value) for key, value in weights(trained).items())


def _split() -> dict[str, list[str]]:
    return {old: new.split(".") for old, new in MOVED_SETTINGS.items()}
