"""The preference reward: its features, listeners, artefact, and BATON's checkpoints."""

import pickle

import pytest
import torch
from toy_preferences import RATE_HZ, TOWERS, small_clap, small_reward

import zoo
from zoo.errors import UserError
from zoo.hub.artifact import identity_of, save_artifact
from zoo.importers.baton import KEY, load_baton_head
from zoo.instantiate import instantiate
from zoo.rewards.preference import PreferenceHead, PreferenceReward, head_features
from zoo.types import Prompt, Waveform

PROMPTS = [Prompt("a", "a cow"), Prompt("b", "a bell, then rain")]


def waves() -> torch.Tensor:
    return torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0)) * 0.1


def test_features_by_hand():
    audio = torch.tensor([[0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0]])
    assert head_features(audio, text, "concat").tolist() == [pytest.approx([0.6, 0.8, 1, 0])]
    root = 2**0.5
    expected = [1.2, 0.0, 0.4 * root, 0.8 * root, 0.6]
    assert head_features(audio, text, "match").tolist() == [pytest.approx(expected)]


def test_the_score_is_the_probability_of_the_logit():
    reward = small_reward()
    output = reward(waves(), RATE_HZ, PROMPTS)
    assert torch.equal(output.score_B, output.parts["logit"].sigmoid())
    audio = reward.clap.embed_audio(waves(), RATE_HZ)
    text = reward.clap.embed_text([prompt.text for prompt in PROMPTS])
    assert torch.equal(output.parts["logit"], reward.head(audio, text))
    cosine = reward.clap(waves(), RATE_HZ, PROMPTS).score_B
    assert torch.allclose(output.parts["clap/untrained"], cosine)
    broken = waves()
    broken[1, 0, 5] = torch.nan
    assert reward(broken, RATE_HZ, PROMPTS).score_B.isnan().tolist() == [False, True]


def test_baton_has_its_own_sizes():
    head = PreferenceHead()
    assert sum(parameter.numel() for parameter in head.parameters()) == 525_313
    assert list(head.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


def test_listeners_differ_and_a_score_is_of_their_mean():
    head = PreferenceHead(4, 8, "match", listeners=["ann", "bob"])
    unit = torch.nn.functional.normalize(torch.randn(2, 4), dim=1)
    torch.nn.init.normal_(head.listener.weight)
    alone = {name: head(unit, unit, [name, name]) for name in ("ann", "bob", None)}
    assert not torch.allclose(alone["ann"], alone["bob"])
    assert torch.equal(head(unit, unit), alone[None])
    mixed = head(unit, unit, ["bob", None])
    assert torch.allclose(mixed, torch.stack([alone["bob"][0], alone[None][1]]), atol=1e-6)
    hidden = head.fc1(head_features(unit, unit, "match")) + head.listener.weight.mean(dim=0)
    assert torch.allclose(alone[None], head.fc2(hidden.relu()).squeeze(1), atol=1e-6)
    with pytest.raises(UserError, match="'eve'"):
        head(unit, unit, ["eve", None])


def test_saved_and_loaded_it_scores_the_same(tmp_path):
    reward = small_reward(listeners=["ann"], dropout=0.2)
    kind, architecture, arguments = identity_of(reward)
    assert (kind, architecture) == ("reward", "preference")
    folder = tmp_path / "model"
    save_artifact(folder, kind=kind, architecture=architecture, arguments=arguments, module=reward)
    again = zoo.load(folder)
    score = reward(waves(), RATE_HZ, PROMPTS).score_B
    assert torch.equal(again(waves(), RATE_HZ, PROMPTS).score_B, score)
    clips = [Waveform(wave_CN, RATE_HZ) for wave_CN in waves()]
    assert torch.allclose(zoo.score(str(folder), clips, PROMPTS).score_B, score)


def test_a_configuration_may_name_its_clap():
    node = {
        "_target_": "zoo.rewards.preference.PreferenceReward",
        "clap": "embedded/clap",
        "embedding": 128,
    }
    reward = instantiate(node, "module.reward")
    assert reward.clap.name.startswith("clap/") and reward(waves(), RATE_HZ, PROMPTS)
    assert not any(parameter.requires_grad for parameter in reward.clap.parameters())


def test_prompts_that_it_cannot_score():
    reward = small_reward()
    with pytest.raises(UserError, match="'x'"):
        reward.check_prompts([Prompt("x", "  ")])
    long = Prompt("long", "a cow and " * 60)
    assert list(reward.too_long([PROMPTS[0], long])) == ["long"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"features": "sum"}, "'sum'"),
        ({"dropout": 1.0}, "dropout"),
        ({"hidden": 0}, "hidden"),
        ({"listeners": ["a", "a"]}, "'a'"),
        ({"clap": {"architecture": "guards"}}, "GuardReward"),
        ({"clap": "embedded/clap"}, "zoo.load"),
    ],
)
def test_settings_that_it_refuses(settings, named):
    with pytest.raises(UserError, match=named):
        PreferenceReward(**{"clap": small_clap(), "embedding": 24, **settings})


def test_a_clap_of_another_size_is_named_when_it_is_heard():
    reward = PreferenceReward(small_clap(), embedding=25)
    with pytest.raises(UserError, match="24"):
        reward(waves(), RATE_HZ, PROMPTS)


def baton_file(path, state, **more):
    torch.save({"epoch": 50, "loss": 0.2, "optimizer_state_dict": {}, KEY: state, **more}, path)
    return path


def random_state() -> dict:
    return PreferenceHead(TOWERS["embedding"], 512).state_dict()


def test_batons_checkpoint_becomes_a_reward(tmp_path):
    state = random_state()
    reward = load_baton_head(baton_file(tmp_path / "2label.pth", state), small_clap())
    audio = reward.clap.embed_audio(waves(), RATE_HZ)
    text = reward.clap.embed_text([prompt.text for prompt in PROMPTS])
    hidden = torch.cat([audio, text], dim=1) @ state["fc1.weight"].T + state["fc1.bias"]
    logit = hidden.relu() @ state["fc2.weight"].T + state["fc2.bias"]
    score = reward(waves(), RATE_HZ, PROMPTS).score_B
    assert torch.allclose(score, logit.sigmoid().squeeze(1), atol=1e-6)
    assert identity_of(reward)[1] == "preference"


class Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("fc2.bias"), r"fc2\.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra"),
        (lambda state: state.update({"fc2.weight": torch.zeros(2, 512)}), r"fc2\.weight"),
        (lambda state: state.update({"fc1.weight": torch.zeros(512, 7)}), "7"),
        (lambda state: state["fc1.bias"].fill_(torch.nan), r"fc1\.bias"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path, change, named):
    state = random_state()
    change(state)
    with pytest.raises(UserError, match=named):
        load_baton_head(baton_file(tmp_path / "x.pth", state), small_clap())


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_baton_head(tmp_path / "none.pth", small_clap())
    torch.save({"state_dict": random_state()}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=KEY):
        load_baton_head(tmp_path / "other.pth", small_clap())
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Code()))
    with pytest.raises(UserError, match=r"code\.pth"):
        load_baton_head(tmp_path / "code.pth", small_clap())
