"""The ensemble: z-scores and aggregation by hand, whole rounds, parts of members, errors."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from toy_ddpo import fitted, judged, module, recorded
from toys import ToyReward

import zoo
from datamodules.batches import PromptBatch
from lightning_modules.rl import round_scores
from lightning_modules.rl.rollouts import RewardError, ScoredSamples
from zoo.errors import UserError
from zoo.hub.artifact import save_artifact
from zoo.instantiate import check, instantiate
from zoo.rewards.clap import ClapReward
from zoo.rewards.ensemble import EnsembleReward, aggregate, prompt_z_scores
from zoo.types import Prompt, RewardOutput


class Level:
    """Scores the level of a clip times ``factor``, with a part and a vector."""

    differentiable = True

    def __init__(self, factor: float = 1.0, bad: object = None) -> None:
        self.factor = factor
        self.bad = bad

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        level_B = wave_BCN.mean(dim=(1, 2)) * self.factor
        if self.bad == "shape":
            level_B = level_B[:, None]
        if self.bad == "nan":
            level_B = torch.where(
                torch.tensor([prompt.id == "p1" for prompt in prompts]), torch.nan, level_B
            )
        if self.bad == "raises":
            raise UserError("no such mood")
        return RewardOutput(
            level_B,
            {"twice": 2 * level_B.detach()},
            {"pair": torch.stack([level_B, level_B], dim=1).detach()},
        )


class Ranked(Level):
    """A member that compares with the round: its score is the rank among all samples."""

    def combine(self, output, prompts):
        assert output.vectors["pair"].shape == (len(prompts), 2) and "twice" in output.parts
        return RewardOutput(
            output.score_B.argsort().argsort().double(),
            {"seen": torch.full_like(output.score_B, len(prompts))},
        )


def clips(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).reshape(-1, 1, 1).expand(-1, 1, 4).clone()


def asked(*ids: str) -> list[Prompt]:
    return [Prompt(name, f"a {name}") for name in ids]


def test_z_scores_by_arithmetic():
    score = torch.tensor([1.0, 10.0, 3.0, 20.0, 5.0, 30.0])
    ids = ["a", "b"] * 3
    high = math.sqrt(1.5)  # of 1, 3, 5: mean 3, deviation sqrt(8/3)
    wanted = torch.tensor([-high, -high, 0.0, 0.0, high, high], dtype=torch.float64)
    assert torch.allclose(prompt_z_scores(score, ids, min_count=3), wanted, atol=1e-5)
    whole = score.double().std(correction=0)
    by_round = prompt_z_scores(score, ids, "round", min_count=3)
    assert torch.allclose(
        by_round,
        torch.tensor([-2.0, -10.0, 0.0, 0.0, 2.0, 10.0], dtype=torch.float64) / whole,
        atol=1e-5,
    )
    few = prompt_z_scores(
        score, ids, min_count=4
    )  # three samples of a prompt are too few: the round's statistics
    assert torch.allclose(few, (score.double() - score.double().mean()) / whole, atol=1e-5)
    order = torch.randperm(6)
    mixed = prompt_z_scores(score[order], [ids[i] for i in order], min_count=3)
    assert torch.allclose(mixed, wanted[order], atol=1e-5)


def test_a_score_that_is_not_finite_stays_so_and_leaves_the_others_alone():
    broken = prompt_z_scores(
        torch.tensor([1.0, math.nan, 3.0, math.inf, 5.0]), ["a", "a", "a", "b", "a"], min_count=2
    )
    assert broken.isfinite().tolist() == [True, False, True, False, True]
    torch.testing.assert_close(
        broken[[0, 2, 4]], prompt_z_scores(torch.tensor([1.0, 3.0, 5.0]), ["a"] * 3, min_count=2)
    )
    assert prompt_z_scores(torch.full((2,), math.nan), ["a", "a"]).isnan().all()


def test_equal_scores_are_zero_and_not_noise():
    assert prompt_z_scores(torch.full((4,), 0.1), ["a"] * 4).tolist() == [0, 0, 0, 0]
    assert (
        prompt_z_scores(
            torch.tensor([0.1] * 4 + [0.0, 1.0, 2.0, 3.0]), ["a"] * 4 + ["b"] * 4, "round"
        )[:4].tolist()
        == [0] * 4
    )
    assert prompt_z_scores(torch.tensor([3.0]), ["a"]).tolist() == [0]


def test_aggregation_by_arithmetic():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0]], requires_grad=True)
    weight = torch.tensor([2.0, 1.0, 1.0])
    score, spread = aggregate(z, weight, 0.5)
    # mean 1, deviations 0, -2, 2 with shares 1/2, 1/4, 1/4
    assert spread.tolist() == pytest.approx([math.sqrt(2), 0]) and score.tolist() == pytest.approx(
        [1 - 0.5 * math.sqrt(2), 0]
    )
    assert aggregate(z, 10 * weight, 0.5)[0].tolist() == pytest.approx(score.tolist())
    assert aggregate(z, weight, 0.0, "worst")[0].tolist() == [-1, 0]
    score.sum().backward()
    assert torch.isfinite(z.grad).all()  # also where all members agree
    pair = torch.randn(2, 20)
    torch.testing.assert_close(aggregate(pair, torch.ones(2), 1.0)[0], pair.amin(dim=0))


def test_the_stated_bound_of_the_spread_weight_is_the_bound():
    """Of four equal members, one that rises alone lifts the score up to sqrt(w / (1 - w))."""
    far = torch.tensor([[0.0, 0.1]] * 3 + [[50.0, 51.0]])
    far[:3] = 0.0
    low, high = (aggregate(far, torch.ones(4), spread_weight)[0] for spread_weight in (0.57, 0.585))
    assert low[1] > low[0] and high[1] < high[0]


def test_a_single_call_is_the_weighted_mean_of_raw_scores_and_the_penalties():
    members = {"a": Level(), "b": {"reward": Level(10.0), "weight": 3}}
    reward = EnsembleReward(members, penalties={"low": {"reward": Level(-1.0), "weight": 0.5}})
    output = reward(clips(1.0, 2.0), 8, asked("p", "q"))
    assert output.score_B.tolist() == pytest.approx(
        [(1 + 3 * 10) / 4 - 0.5, (2 + 3 * 20) / 4 - 1.0]
    )
    assert set(output.parts) == {
        "a",
        "a/twice",
        "b",
        "b/twice",
        "low",
        "low/twice",
    }  # no z and spread: units differ
    assert output.parts["b"].tolist() == [10, 20] and set(output.vectors) == {
        "a/pair",
        "b/pair",
        "low/pair",
    }


def test_a_single_call_in_one_unit_is_the_expression_itself():
    members = {
        "a": {"reward": Level(), "mean": 1.0, "std": 2.0},
        "b": {"reward": Level(10.0), "mean": 0.0, "std": 10.0},
    }
    output = EnsembleReward(members, spread_weight=0.5)(clips(3.0), 8, asked("p"))
    assert (
        output.parts["z/a"].tolist() == [1]
        and output.parts["z/b"].tolist() == [3]
        and output.parts["spread"].tolist() == [1]
    )
    assert output.score_B.tolist() == pytest.approx([2 - 0.5])
    assert EnsembleReward(members, aggregation="worst")(
        clips(3.0), 8, asked("p")
    ).score_B.tolist() == [1]


def test_the_round_is_scored_as_a_whole_and_difficulty_of_prompts_cancels():
    reward = EnsembleReward({"a": Level(), "b": Level(100.0)}, min_count=2, spread_weight=1.0)
    prompts = asked("p", "q", "p", "q")
    wave = clips(1.0, 11.0, 2.0, 12.0)
    whole = reward(wave, 8, prompts)
    parts = [reward(wave[i : i + 1], 8, prompts[i : i + 1]) for i in range(4)]  # any micro-batches
    joined = RewardOutput(
        torch.cat([part.score_B for part in parts]),
        {name: torch.cat([part.parts[name] for part in parts]) for name in whole.parts},
        {name: torch.cat([part.vectors[name] for part in parts]) for name in whole.vectors},
    )
    combined = reward.combine(whole, prompts)
    assert torch.equal(combined.score_B, reward.combine(joined, prompts).score_B)
    torch.testing.assert_close(
        combined.score_B, torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64), rtol=0, atol=1e-4
    )
    assert {"a", "b/twice", "z/a", "z/b", "spread"} <= set(combined.parts)


def test_a_single_fooled_member_gains_little():
    reward = EnsembleReward({"a": Level(), "b": Level()}, spread_weight=1.0)
    parts = {
        "a": torch.tensor([0.0, 0, 0, 9]),
        "b": torch.tensor([0.0, 1, 2, 1.5]),
        "held_out_scorer": torch.ones(4),
    }
    output = reward.combine(RewardOutput(torch.zeros(4), parts), asked(*["p"] * 4))
    assert output.score_B.argmax() == 3 and output.score_B[3] == pytest.approx(
        output.parts["z/b"][3].item(), abs=1e-6
    )
    assert output.parts["spread"][3] > 0.5 and torch.equal(
        output.parts["held_out_scorer"], torch.ones(4)
    )


def test_members_with_their_own_round_are_combined_first():
    reward = EnsembleReward({"a": Level()}, penalties={"rank": Ranked(-1.0)})
    prompts = asked(*["p"] * 4)
    wave = clips(4.0, 1.0, 2.0, 3.0)
    output = reward.combine(reward(wave, 8, prompts), prompts)
    assert output.parts["rank"].tolist() == [-4, -1, -2, -3] and output.parts[
        "rank/combined"
    ].tolist() == [0, 3, 2, 1]
    torch.testing.assert_close(output.score_B, output.parts["z/a"] + output.parts["rank/combined"])
    assert output.parts["rank/seen"].tolist() == [4] * 4


def judged_levels(reward, levels):
    batch = PromptBatch(tuple(asked("p", "q") * 2), (0, 0, 1, 1), 0)
    output = reward(clips(*levels), 8, batch.prompts)
    trajectory = SimpleNamespace(clean=torch.ones(4, 2))
    samples = ScoredSamples(
        batch.prompts,
        output.score_B,
        dict(output.parts),
        trajectory,
        None,
        0.0,
        0.0,
        vectors=output.vectors,
    )
    return judged(batch, samples, reward, "group")


def test_judging_learns_from_the_combined_and_logs_the_single_calls():
    reward = EnsembleReward({"a": Level(), "b": Level(100.0)}, min_count=2)
    found = judged_levels(reward, (1.0, 11.0, 2.0, 12.0))
    assert found.advantage_B.tolist() == pytest.approx([-1, -1, 1, 1], abs=1e-3)
    assert found.metrics["reward/mean"] == pytest.approx(6.5 * 101 / 2)
    assert found.metrics["reward_combined/mean"] == pytest.approx(0, abs=1e-5)
    assert found.metrics["reward_part/a"] == 6.5 and "reward_part/spread" in found.metrics


def test_judging_is_the_same_on_two_processes(monkeypatch):
    """``gather`` returns the rows of the other process: halves of a round, in either order."""
    reward = EnsembleReward({"a": Level(), "b": Ranked(-2.0)}, min_count=2)
    alone = []
    whole = judged_levels(reward, (1.0, 11.0, 2.5, 12.0))
    monkeypatch.setattr(
        round_scores, "gather", lambda rows: (alone.append(rows), [rows[2:], rows[:2]])[1]
    )
    apart = judged_levels(reward, (1.0, 11.0, 2.5, 12.0))
    assert (
        alone
        and torch.equal(whole.advantage_B, apart.advantage_B)
        and whole.metrics == apart.metrics
    )


class Spoilt(Level):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def combine(self, output, prompts):
        if self.how == "raises":
            raise KeyError("pair")
        score_B = (
            output.score_B[:1]
            if self.how == "shape"
            else torch.full_like(output.score_B, torch.nan)
        )
        return RewardOutput(score_B, {})


@pytest.mark.parametrize(
    ("how", "message"),
    [("raises", "raised KeyError"), ("shape", r"needs \(4,\)"), ("nan", "not finite, of 'p'")],
)
def test_a_combination_that_fails_is_named(how, message):
    with pytest.raises(RewardError, match=f"combining the rewards of round 0.*{message}"):
        judged_levels(Spoilt(how), (1.0, 2.0, 3.0, 4.0))


def test_a_run_trains_on_an_ensemble_and_drops_what_a_member_could_not_score():
    def ensemble(bad=None) -> EnsembleReward:
        return EnsembleReward(
            {"near": ToyReward(), "level": Level(bad=bad)},
            {"guards": {"architecture": "guards"}},
            min_count=2,
        )

    row = recorded(module({"advantages.kind": "group"}, reward=ensemble()), size=8).rounds[0]
    assert {
        "reward_part/near",
        "reward_part/near/level",
        "reward_part/spread",
        "reward_part/guards/level_dbfs",
    } <= set(row)
    assert row["reward_combined/std"] > 0 and row["grad_norm"] > 0
    with pytest.raises(ValueError, match="2 of 8.*round 0.*'p1'"):
        fitted(module(reward=ensemble("nan")))
    assert (
        recorded(module({"scoring.on_bad_reward": "drop"}, reward=ensemble("nan"))).rounds[0][
            "dropped_samples"
        ]
        == 2
    )
    for bad, message in (
        ("shape", r"member 'level' must return one number per sample, \(4,\), got shape \(4, 1\)"),
        ("raises", "the reward EnsembleReward raised UserError: member 'level': no such mood"),
    ):
        with pytest.raises(RewardError, match=message):
            fitted(module(reward=ensemble(bad)))


def test_members_by_zoo_name_and_a_round_trip_through_a_folder(tmp_path):
    members = {"mood": "embedded/mood", "clap": {"reward": "embedded/clap", "weight": 0.5}}
    guards = {"reward": {"architecture": "guards", "arguments": {"diversity": 3.0}}}
    node = {
        "_target_": "zoo.rewards.ensemble.EnsembleReward",
        "members": members,
        "penalties": {"guards": guards},
    }
    check(node, "module.reward")
    reward = instantiate(node, "module.reward")
    assert "embedded" not in json.dumps(
        {**reward.arguments["members"]["mood"]}
    )  # a saved one needs nothing but itself
    save_artifact(
        tmp_path / "e",
        kind="reward",
        architecture="ensemble",
        arguments=reward.arguments,
        module=reward,
    )
    again = zoo.load(tmp_path / "e")
    wave = torch.randn(2, 2, 16_000) * 0.1
    prompts = [Prompt("p", "a sad piano", labels={"mood": "sad"})] * 2
    first, second = (one(wave, 16_000, prompts) for one in (reward, again))
    assert torch.equal(first.score_B, second.score_B) and first.parts.keys() == second.parts.keys()
    assert torch.equal(first.vectors["guards/diversity"], second.vectors["guards/diversity"])
    torch.nn.ModuleList([again]).train()
    assert not any(part.training for part in again.modules())


def test_names_are_opened_by_who_builds_an_ensemble(tmp_path):
    with pytest.raises(UserError, match=r"members\.a.*'embedded/mood'.*zoo\.load"):
        EnsembleReward({"a": "embedded/mood"})
    inner = {"architecture": "ensemble", "arguments": {"members": {"mood": "embedded/mood"}}}
    guards = {
        "architecture": "guards",
        "arguments": {"diversity": 0.1, "embedder": "embedded/clap"},
    }
    arguments = {"members": {"inner": inner}, "penalties": {"guards": guards}}
    built = instantiate(
        {"_target_": "zoo.rewards.ensemble.EnsembleReward", **arguments}, "module.reward"
    )
    (inner_member,), (guards_member,) = built.members[0].reward.members, built.penalties
    assert type(inner_member.reward).__name__ == "EmotionReward"
    assert guards_member.reward.embedder.name == "clap/embedded/clap"
    save_artifact(
        tmp_path / "e",
        kind="reward",
        architecture="ensemble",
        arguments=built.arguments,
        module=built,
    )
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    (tmp_path / "e" / "config.json").write_text(json.dumps({**config, "arguments": arguments}))
    again = zoo.load(tmp_path / "e")  # its names are opened, its weights are those of the file
    assert again.arguments == built.arguments
    for name, tensor in built.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(UserError, match=r"reward\.members\.a.*'embedded/mood'"):
        node = {"_target_": "zoo.rewards.ensemble.EnsembleReward", "members": {"a": "embedded/mod"}}
        instantiate(node, "module.reward")


def test_a_configuration_names_the_files_of_a_clap(small_zoo):
    clap = {
        "_target_": "zoo.rewards.clap.ClapReward",
        "checkpoint": "mine",
        "arguments": {"pretrained": "clap-htsat-unfused"},
    }
    row = {"architecture": "clap", "arguments": {k: clap[k] for k in ("checkpoint", "arguments")}}
    node = {"_target_": "zoo.rewards.ensemble.EnsembleReward", "members": {"a": row, "b": clap}}
    check(node, "module.reward")
    first, second = (member.reward for member in instantiate(node, "module.reward").members)
    assert first.arguments == second.arguments and "pretrained" not in first.arguments["arguments"]
    with pytest.raises(UserError, match="pretrained.*'clap-htsat-unfused'"):
        ClapReward("mine", "transformers", {"pretrained": "clap-htsat-unfused"})


def test_rewards_of_other_classes_take_part_but_cannot_be_saved(tmp_path):
    reward = EnsembleReward({"a": Level(), "b": {"architecture": "guards"}})
    assert reward.arguments is None and not reward.differentiable
    with pytest.raises(ValueError, match="needs|must|arguments|plain|cannot become an artefact"):
        save_artifact(
            tmp_path / "e",
            kind="reward",
            architecture="ensemble",
            arguments=reward.arguments or {},
            module=reward,
        )
    assert not (tmp_path / "e").exists()


def test_prompts_too_long_for_a_member_are_named_with_it():
    class Short(Level):
        def too_long(self, prompts):
            return {prompt.id: "9 tokens of 8" for prompt in prompts if prompt.id == "q"}

    assert EnsembleReward({"a": Level(), "b": Short()}).too_long(asked("p", "q")) == {
        "q": "b: 9 tokens of 8"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": {}}, "at least one member"),
        ({"members": {"a": "embedded/mood"}}, "members.a: 'embedded/mood' is a name"),
        (
            {"members": {"a": {"architecture": "emotoin"}}},
            "members.a: architecture: unknown.*did you mean 'emotion'",
        ),
        (
            {"members": {"a": {"architecture": "guards", "arguments": {"flatnes": 1}}}},
            "members.a: .*did you mean 'flatness'",
        ),
        (
            {"members": {"a": {"architecture": "guards", "weight": 1}}},
            "given by architecture and arguments, got architecture, weight",
        ),
        (
            {"members": {"a": {"reward": Level(), "wieght": 1}}},
            r"members.a.wieght: did you mean 'weight'",
        ),
        ({"members": {"a": {"weight": 1}}}, "members.a needs a reward"),
        ({"members": {"a": 3}}, "a int is not a reward"),
        (
            {"members": {"a": {"reward": Level(), "weight": -1}}},
            "members.a.weight must be above 0, got -1",
        ),
        (
            {"members": {"a": {"reward": Level(), "weight": 0}}},
            "leave out a member that must not count",
        ),
        (
            {"members": {"a": {"reward": Level(), "weight": math.nan}}},
            "members.a.weight must be a finite number",
        ),
        (
            {"members": {"a": {"reward": Level(), "weight": "1"}}},
            "members.a.weight must be a finite number, got '1'",
        ),
        (
            {"members": {"a": {"reward": Level(), "mean": 0.1}}},
            "mean and a std above 0 belong together",
        ),
        (
            {"members": {"a": {"reward": Level(), "mean": 0.1, "std": 0.0}}},
            "mean and a std above 0 belong together",
        ),
        ({"members": {"a/b": Level()}}, "a name has letters"),
        ({"members": {"spread": Level()}}, "not be z, spread"),
        (
            {"members": {"a": Level()}, "penalties": {"a": Level()}},
            "a names a member and a penalty",
        ),
        ({"members": [Level()]}, "members must map names to rewards, got list"),
        ({"members": {"a": Level()}, "aggregation": "median"}, "aggregation 'median' is unknown"),
        ({"members": {"a": Level()}, "deviation": "promt"}, "did you mean 'prompt'"),
        (
            {"members": {"a": Level()}, "aggregation": "worst", "spread_weight": 1.0},
            "takes the lowest member and no spread_weight",
        ),
        ({"members": {"a": Level()}, "spread_weight": -0.1}, "spread_weight must be at least 0"),
        (
            {"members": {"a": Level()}, "spread_weight": math.inf},
            "spread_weight must be at least 0",
        ),
        ({"members": {"a": Level()}, "min_count": 1}, "min_count 2"),
    ],
)
def test_invalid_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EnsembleReward(**arguments)


def test_unequal_counts_are_refused():
    with pytest.raises(ValueError, match="1 waves came with 2 prompts"):
        EnsembleReward({"a": Level()})(clips(1.0), 8, asked("p", "q"))
