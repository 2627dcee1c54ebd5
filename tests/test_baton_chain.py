"""BATON's whole chain on a small random Tango of the real classes, by the commands of a user.

Text -> audio -> labels -> reward model -> labels by it -> reward-weighted fine-tuning -> export ->
reload -> audio. A rule stands in for people.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from toy_tango import small_model
from toy_weighted import write_tone

import lightning_modules.denoising as denoising
import zoo
from datamodules.preferences import annotation
from datamodules.preferences.command import main as labels_command
from datamodules.preferences.dialects import read_labels
from datamodules.prompt_sources import file_prompts
from lightning_modules import annotation_command, run
from lightning_modules.latent_errors import error_weights
from zoo.audio_files import read_audio
from zoo.commands import generate
from zoo.configuration import read_configuration
from zoo.generations import read_samples
from zoo.hub.artifact import save_artifact
from zoo.types import Prompt, Waveform

pytestmark = pytest.mark.long

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "baton"
SECONDS = 0.25
PROMPTS = (
    "a dog barks",
    "rain falls on a roof",
    "a sad piano",
    "a bird and a dog",
    "rain on a dog",
    "a piano and rain",
)
SEEDS = 4
HOW = ("--steps", "3", "--guidance", "1", "--eta", "0", "--seconds", str(SECONDS))


@dataclass(frozen=True)
class Chain:
    """Everything that exists before fine-tuning."""

    folder: Path
    base: Path
    clips: Path
    people: Path
    reward: Path
    annotated: Path


def loudness(wave: Waveform) -> float:
    return float(wave.samples_CN.square().mean().sqrt())


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    tango = small_model()
    save_artifact(
        folder / "base",
        kind="backbone",
        architecture="tango",
        arguments=tango.arguments,
        module=tango,
    )
    made = Chain(
        folder,
        folder / "base",
        folder / "clips",
        folder / "people.json",
        folder / "reward",
        folder / "annotated.json",
    )
    made_clips(made)
    labelled_by_a_rule(made)
    trained_reward(made)
    annotated(made)
    for number in range(6):
        write_tone(folder / "real" / f"{number}.wav", 300 + 100 * number, seconds=SECONDS)
    for name, numbers in (("pd.json", range(4)), ("val.json", range(4, 6))):
        rows = [
            {"dataset": "real", "location": f"{number}.wav", "captions": PROMPTS[number]}
            for number in numbers
        ]
        (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return made


def made_clips(chain: Chain) -> None:
    """Text -> audio."""
    words = [str(chain.base), *PROMPTS, "--seeds", f"0-{SEEDS - 1}", *HOW]
    generate.main([*words, "--out", str(chain.clips)], file_prompts)


def labelled_by_a_rule(chain: Chain) -> None:
    """Audio -> labels, in BATON's dialect: the louder half of the clips of a prompt is good."""
    samples = read_samples(chain.clips)
    level = {sample.path: loudness(read_audio(sample.path)) for sample in samples}
    rows = []
    for text in PROMPTS:
        own = [sample for sample in samples if sample.prompt.text == text]
        loud = sorted(own, key=lambda sample: level[sample.path])[SEEDS // 2 :]
        rows += [
            {
                "dataset": "2label",
                "location": sample.path.name,
                "captions": text,
                "feedback": int(sample in loud),
            }
            for sample in own
        ]
    chain.people.write_text("".join(json.dumps(row) + ",\n" for row in rows))  # commas, as BATON


def trained_reward(chain: Chain) -> None:
    """Labels -> a head on the small CLAP."""
    overrides = [
        f"data.source.files={chain.people}",
        f"data.source.audio_root={chain.clips}",
        "module.reward.clap=embedded/clap",
        "module.reward.embedding=128",
        "module.reward.hidden=16",
        f"module.features.cache_dir={chain.folder / 'features'}",
        "data.val_share=0.35",
        "data.test_share=0.35",
        "trainer.max_epochs=3",
        "trainer.enable_progress_bar=false",
        f"out_dir={chain.reward}",
    ]
    run.fit(read_configuration([CONFIGS / "reward_integrity.yaml"], overrides))


def annotated(chain: Chain) -> None:
    """Fresh audio -> labels by the head."""
    prompts = chain.folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    words = ["--generate", str(chain.base), "--prompts", str(prompts), "--seeds", "10-11", *HOW]
    words += ["--clips", str(chain.folder / "fresh"), "--reward", str(chain.reward)]
    words += ["--task", "integrity", "--format", "baton_ra", "--out", str(chain.annotated)]
    annotation_command.main([*words, "--accelerator", "cpu"], file_prompts, lambda: annotation)


def test_every_clip_has_a_label_of_people(chain, capsys):
    labels_command(["check", str(chain.people), "--audio-root", str(chain.clips)])
    assert f"{len(PROMPTS) * SEEDS} " in capsys.readouterr().out
    records = read_labels(str(chain.people)).checked()
    assert [record.label for record in records].count(1) == len(records) / 2 == 12
    assert {record.prompt for record in records} == set(PROMPTS)


def test_scores_of_the_head_are_of_each_clip_under_its_own_caption(chain):
    records = read_labels(str(chain.annotated)).checked()
    assert len(records) == 2 * len(PROMPTS)
    reward = zoo.load(chain.reward)
    waves = [read_audio(chain.folder / "fresh" / Path(record.audio).name) for record in records]
    texts = [record.prompt for record in records]
    own = zoo.score(reward, waves, texts).score_B
    scores = torch.tensor([record.score for record in records])
    assert ((scores > 0) & (scores < 1)).all()
    assert torch.allclose(scores, own, atol=1e-4)
    shifted = [*texts[2:], *texts[:2]]  # the same clips under the next caption
    assert ((zoo.score(reward, waves, shifted).score_B - own).abs() > 1e-4).all()
    listed = {
        sample.path.name: sample.prompt.text for sample in read_samples(chain.folder / "fresh")
    }
    assert [listed[Path(record.audio).name] for record in records] == texts


def fine_tuned(chain: Chain, name: str, *overrides: str) -> tuple[run.Built, list[torch.Tensor]]:
    """A run of the shipped configuration, and the weights that its loss took."""
    taken: list[torch.Tensor] = []

    def spied(path, time_B, weight_B, *how):
        if weight_B is not None:
            taken.append(weight_B.clone())
        return error_weights(path, time_B, weight_B, *how)

    given = [
        f"module.backbone.name={chain.base}",
        "module.backbone.checkpoint_activations=false",
        "module.optimizer.learning_rate=1.0e-2",
        f"data.labelled.files=[{chain.people}, {chain.annotated}]",
        f"data.labelled.audio_root={chain.folder}",
        f"data.pretrain.files={chain.folder / 'pd.json'}",
        f"data.pretrain.val_files={chain.folder / 'val.json'}",
        f"data.pretrain.audio_root={chain.folder / 'real'}",
        f"data.pretrain.seconds={SECONDS}",
        f"data.seconds={SECONDS}",
        "data.mixing.pool=3",
        "data.mixing.per_batch=1",
        f"data.cache_dir={chain.folder / 'latents'}",
        "data.pretrain_batch_size=2",
        "trainer.precision=32-true",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
        "trainer.accumulate_grad_batches=2",
        "trainer.enable_progress_bar=false",
        f"out_dir={chain.folder / name}",
    ]
    config = read_configuration([CONFIGS / "integrity.yaml"], [*given, *overrides])
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(denoising, "error_weights", spied)
        built = run.fit(config)
    return built, taken


def sounds(backbone) -> torch.Tensor:
    prompts = [Prompt(text, text, seconds=SECONDS) for text in PROMPTS[:2]]
    how = {"steps": 3, "guidance_scale": 1.0, "eta": 0.0}
    waves = zoo.generate(backbone, prompts, seeds=[50], **how)
    return torch.stack([wave.samples_CN for wave in waves])


# what is exported -> settings, and how closely it sounds like what was trained
EXPORTS = {
    "the U-Net alone": ((), 1e-4),
    "the whole model": (("module.memory.text_encoders=keep",), 0.01),  # in half precision
    "an adapter": (("module.adapter={rank: 4}",), 1e-4),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_weights_reach_the_loss_and_what_was_learned_is_heard_again(chain, name):
    overrides, tolerance = EXPORTS[name]
    built, taken = fine_tuned(chain, name.replace(" ", "_"), *overrides)
    records = [
        one for file in (chain.people, chain.annotated) for one in read_labels(file).checked()
    ]
    label_of = {
        Path(one.audio).name: one.score if one.label is None else one.label for one in records
    }
    # every clip with its own label, and once in the epoch
    rows = built.data.rows["labelled"]
    for clip, prompt, weight in zip(built.data.clips, rows.prompts, rows.weights, strict=True):
        assert float(weight) == pytest.approx(label_of.pop(clip.audio.name), abs=1e-6)
        assert prompt.text == clip.prompt
    assert not label_of
    assert sorted(torch.cat(taken).tolist()) == pytest.approx(sorted(rows.weights.tolist()))
    trained = sounds(built.module.backbone)
    again = sounds(zoo.open_model(str(chain.folder / name.replace(" ", "_"))))
    base = sounds(zoo.load(str(chain.base)))
    assert (trained - base).abs().max() > 10 * tolerance
    assert (trained - again).abs().max() < tolerance


def test_the_rewards_change_what_is_learned(chain):
    one, _ = fine_tuned(chain, "rewards", "trainer.max_steps=2")
    other, _ = fine_tuned(chain, "no_rewards", "trainer.max_steps=2", "data.rewards.kind=constant")
    learned = [dict(built.module.backbone.denoiser.named_parameters()) for built in (one, other)]
    apart = max((value - learned[1][name]).abs().max() for name, value in learned[0].items())
    assert apart > 1e-4
