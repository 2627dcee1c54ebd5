"""With text encoders and decoder moved or dropped, audio stays bitwise equal; errors name them."""

import pytest
import torch
import toy_audioldm2
import toy_tango
from toy_ddpo import Recorder, module, trainer, weights
from toys import Rounds, ToyBackbone, ToyReward

from datamodules.batches import PromptBatch
from datamodules.prompts import PromptDataModule
from lightning_modules.offload import move, part_modules, present
from zoo.types import Prompt

TEXTS = ("a dog barks", "rain falls on a roof and a bird")
PROMPTS = tuple(Prompt(f"p{i}", text, "noise and rain", 0.1) for i, text in enumerate(TEXTS))


MODELS = {"audioldm2": toy_audioldm2.small_model, "tango": toy_tango.small_model}


class Level(ToyReward):
    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return self.output(wave_BCN)

    @staticmethod
    def output(wave_BCN):
        from zoo.types import RewardOutput

        return RewardOutput(wave_BCN.square().mean(dim=(1, 2)).sqrt(), {})


def data(tmp_path, texts=TEXTS, **changes):
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    settings = {
        "file": str(tmp_path / "prompts.txt"),
        "negative": "noise and rain",
        "seconds": 0.1,
        "prompts_per_round": 2,
        "repeats": 2,
        "rounds_per_epoch": 2,
    }
    return PromptDataModule(**{**settings, **changes})


def ddpo(backbone, **changes):
    settings = {
        "sampler.steps": 3,
        "reward": Level(),
        "adapter.targets": "cross",
        "update.clip_range": 0.5,
        "advantages.min_count": 2,
    }
    return module(backbone=backbone, **{**settings, **changes})


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("away", ["offload", "drop"])
def test_training_is_bitwise_the_same_with_everything_offloaded(tmp_path, kind, away):
    plain = ddpo(MODELS[kind]())
    saving = ddpo(MODELS[kind](), **{"memory.text_encoders": away, "memory.decoder": "offload"})
    seen = []
    for run in (plain, saving):
        recorder = Recorder()
        trainer(1, callbacks=[recorder]).fit(run, datamodule=data(tmp_path))
        seen.append(
            [
                {name: value for name, value in row.items() if "seconds" not in name}
                for row in recorder.rounds
            ]
        )
    assert seen[0] == seen[1] and len(seen[0]) == 2
    assert all(torch.equal(value, weights(saving)[name]) for name, value in weights(plain).items())
    names = {name.split(".")[0] for name, _ in saving.backbone.named_parameters()}
    text = set(saving.backbone.offloadable["text"])
    assert text & names == (set() if away == "drop" else text)
    if away == "drop":
        with pytest.raises(
            ValueError,
            match="'sad piano'.*drop_text_encoders",
        ):
            saving.backbone.encode_prompts([Prompt("x", "sad piano")])


@pytest.mark.long
@pytest.mark.parametrize(("scale", "eval_scale"), [(1.0, None), (1.0, 3.0), (3.0, 1.0)])
def test_dropped_encoders_have_encoded_all_prompts_of_each_sampler(tmp_path, scale, eval_scale):
    """AudioLDM 2 pads a prompt to its negative, but only under guidance."""
    quiet = ddpo(
        toy_audioldm2.small_model(),
        **{
            "memory.text_encoders": "drop",
            "sampler.guidance_scale": scale,
            "evaluation.guidance_scale": eval_scale,
        },
    )
    source = data(tmp_path, negative="noise and rain on a roof and a bird", rounds_per_epoch=1)
    trainer(1).fit(quiet, datamodule=source)
    batch = PromptBatch(source.train_prompts, (0, 0), 0)
    assert quiet.trainer.global_step == 1 and quiet.evaluate(batch).wave_BCN.isfinite().all()


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_each_part_goes_where_it_is_sent_alone(kind):
    backbone = MODELS[kind]()
    names = {name.split(".")[0] for name, _ in backbone.named_parameters()}
    assert {name for part in backbone.offloadable.values() for name in part} | {"denoiser"} == names
    for part in ("text", "decoder"):
        backbone = MODELS[kind]()
        move(backbone, part, "meta")  # a device without memory: everything here has only the CPU
        moved = {
            name.split(".")[0]
            for name, tensor in backbone.named_parameters()
            if tensor.device.type == "meta"
        }
        assert moved == set(backbone.offloadable[part])


def test_the_decoder_is_there_for_sampling_and_away_for_the_update(monkeypatch):
    backbone = toy_audioldm2.small_model()
    places = []
    monkeypatch.setattr(
        "lightning_modules.offload.move",
        lambda model, part, device: places.append((part, str(device))),
    )
    with pytest.raises(RuntimeError, match="broken"), present(backbone, "decoder", "cuda:1"):
        assert places == [("decoder", "cuda:1")]
        raise RuntimeError("broken")
    assert places == [("decoder", "cuda:1"), ("decoder", "cpu")]  # also after an error


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_decoder_that_is_dropped_leaves_latents_and_is_named(kind):
    backbone = MODELS[kind]()
    shape = backbone.latent_shape(0.1)
    backbone.drop_decoder()
    assert (
        not any(name.startswith("codec.") for name in backbone.state_dict())
        and backbone.latent_shape(0.1) == shape
    )
    for call, tensor in (
        (backbone.decode, torch.zeros(1, *shape)),
        (backbone.encode, torch.zeros(1, 1, 1600)),
    ):
        with pytest.raises(
            ValueError,
            match="autoencoder.*vocoder",
        ):
            call(tensor)
    x = torch.randn(2, *shape)
    time_B = torch.tensor([500, 100])
    assert backbone.predict(x, time_B, backbone.encode_prompts(PROMPTS)).shape == x.shape


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_more_texts_than_are_kept_stop_before_the_encoders_go(kind, monkeypatch):
    backbone = MODELS[kind]()
    monkeypatch.setattr("zoo.conditioners.prompt_memory.CAPACITY", 2)
    with pytest.raises(ValueError, match="at most 2"):
        backbone.drop_text_encoders(PROMPTS)
    assert part_modules(backbone, "text") and backbone.arguments is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"memory.text_encoders": "drop"},
            "ToyBackbone has no part 'text' .*leave text_encoders and decoder at keep",
        ),
        ({"memory.decoder": "offload"}, "ToyBackbone has no part 'decoder'"),
        (
            {"memory.text_encoders": "ofload"},
            "invalid text_encoders 'ofload'; did you mean 'offload'",
        ),
        ({"memory.decoder": "drop"}, "invalid decoder 'drop'"),
    ],
)
def test_parts_that_cannot_be_offloaded_are_named_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(1).fit(module(**changes), datamodule=data(tmp_path, seconds=1.0))


def test_prompts_must_be_known_beforehand():
    with pytest.raises(
        ValueError,
        match="text_encoders=offload",
    ):
        trainer(1).fit(
            module({"memory.text_encoders": "offload"}, backbone=ToyBackbone()), Rounds(8)
        )
