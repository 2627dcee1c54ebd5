"""From text to audio, reward, DDPO update, export and reload, for every backbone at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from lightning_modules import run
from lightning_modules.report import read_rows
from zoo.configuration import read_configuration
from zoo.diffusion import Sampler, noise_generator, rollout
from zoo.hub.artifact import read_config
from zoo.hub.artifact_check import verify_artifact
from zoo.hub.export import export_run
from zoo.types import Prompt

CONFIG = """
module:
  _target_: lightning_modules.rl.ddpo.DDPO
  backbone: {_target_: zoo.load, name: NAME}
  sampler: {steps: 3, guidance_scale: 2.0, batch_size: 4}
  update: {batch_size: 4, per_round: 2}
  advantages: {kind: group_global}
  adapter: {rank: 2}
  optimizer: {learning_rate: 0.01}
data:
  _target_: datamodules.prompts.PromptDataModule
  template: "a {word} {instrument}"
  words: {happy: [happy], sad: [sad]}
  instruments: [piano, violin]
  held_out: [[happy, violin]]
  negative: "low quality"
  seconds: 0.2
  prompts_per_round: 2
  repeats: 4
  seed: ${seed}
trainer: {max_epochs: 1, accelerator: cpu, num_sanity_val_steps: -1, enable_model_summary: false}
"""
REWARDS = {
    "clap": "{_target_: zoo.load, name: larger-clap-music}",
    "emopia": (
        "{_target_: zoo.importers.emopia.load_emopia, path: models/emopia/ar_va/best.ckpt, value:"
        " log_odds}"
    ),
}
PROMPTS = [
    Prompt("a", "a happy piano", "low quality", 0.2),
    Prompt("b", "a sad violin falls", "", 0.2),
]


@torch.no_grad()
def latents(backbone) -> torch.Tensor:
    sides = [
        backbone.encode_prompts(side)
        for side in (PROMPTS, [prompt.as_negative() for prompt in PROMPTS])
    ]
    generators = [noise_generator(7, 0, prompt.id, 0) for prompt in PROMPTS]
    shape = tuple(backbone.latent_shape(0.2))
    return rollout(
        backbone.predict, backbone.path, Sampler(3, 2.0, 1.0), PROMPTS, *sides, shape, generators
    ).clean


@pytest.mark.long
@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(
    "name", ["audioldm-m-full", "audioldm2-music", "tango2", "stable-audio-open-1.0"]
)
def test_learned_weights_are_loaded_again(name: str, reward: str, small_zoo: Path) -> None:
    (small_zoo / "c.yaml").write_text(CONFIG.replace("NAME", name))
    config = read_configuration(
        [small_zoo / "c.yaml"], [f"module.reward={REWARDS[reward]}", "out_dir=run"]
    )
    trained = run.fit(config).module
    before, after = read_rows(Path("run/metrics.csv"))
    assert (
        (before["round"], after["round"]) == (0, 1)
        and after["reward/std"] > 0
        and after["grad_norm"] > 0
    )
    folder = export_run("run", "exported")
    learned = latents(trained.backbone)
    assert learned.isfinite().all() and not torch.equal(learned, latents(zoo.load(name)))
    for reloaded in (
        zoo.load(folder),
        zoo.open_model("run"),
        zoo.load(name, adapters=[(folder, 1.0)]),
    ):
        assert torch.equal(latents(reloaded), learned)
    assert torch.equal(latents(zoo.load(name, adapters=[(folder, 0.0)])), latents(zoo.load(name)))
    assert (
        read_config(folder)["base"]["name"] == name
        and read_config(folder)["training"]["algorithm"] == "DDPO"
    )
    assert any(f"fits its base {name}" in fact for fact in verify_artifact(folder, zoo.load))


@pytest.mark.long
def test_a_merged_model_needs_neither_its_base_nor_the_run(
    small_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_zoo / "c.yaml").write_text(CONFIG.replace("NAME", "audioldm2-music"))
    trained = run.fit(
        read_configuration(
            [small_zoo / "c.yaml"], [f"module.reward={REWARDS['clap']}", "out_dir=run"]
        )
    ).module
    learned = latents(trained.backbone)
    folder = export_run("run", "merged", merge=True)
    monkeypatch.setenv("ATTUNE_CACHE", str(small_zoo / "empty"))
    (small_zoo / "run").rename(small_zoo / "gone")
    torch.testing.assert_close(latents(zoo.load(folder)), learned, atol=1e-4, rtol=1e-4)
    assert load_file(folder / "model.safetensors").keys() == zoo.load(folder).state_dict().keys()


def test_a_prompt_without_a_mood_is_named_before_anything_is_sampled(small_zoo: Path) -> None:
    (small_zoo / "prompts.txt").write_text("a happy piano\na sad piano\n")
    data = (
        "data={_target_: datamodules.prompts.PromptDataModule, file: prompts.txt,"
        " prompts_per_round: 2}"
    )
    (small_zoo / "c.yaml").write_text(
        CONFIG[: CONFIG.index("data:")].replace("NAME", "tango2") + "trainer: {max_epochs: 1}\n"
    )
    config = read_configuration(
        [small_zoo / "c.yaml"], [f"module.reward={REWARDS['emopia']}", data, "out_dir=run"]
    )
    with pytest.raises(ValueError, match=r"'a-happy-piano-\w+'.*'mood'"):
        run.fit(config)
    assert not (small_zoo / "run").exists()
