"""3 of 200 prompts exceed an encoder: they are named, or dropped and counted, before sampling."""

import warnings
from functools import partial

import pytest
import toy_audioldm
import toy_audioldm2
import toy_stable_audio
import toy_tango
import toy_tangoflux
from toy_clap import SHORT, tokenizer_file
from toy_ddpo import Recorder, module, trainer
from toys import SMALL, ToyBackbone, ToyReward, prompts

from datamodules.prompts import PromptDataModule
from lightning_modules.rl.prompt_checks import prompts_to_encode, too_long
from zoo.backbones.tango import Tango
from zoo.backbones.tiny import TinyAudio
from zoo.conditioners.tokenizer import refused
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.importers.pretrained_clap import with_files
from zoo.rewards.clap import ClapReward
from zoo.types import Prompt

LIMIT = 8  # words
LONG = " ".join(["very"] * 20)


class Limited(ToyBackbone):
    """Takes ``LIMIT`` words."""

    def read(self, text: str) -> None:
        if len(text.split()) > LIMIT:
            raise UserError(
                f"the prompt {text[:30]!r}... has {len(text.split())} tokens, Toy takes {LIMIT};"
                " shorten it"
            )

    def too_long(self, prompts):
        return refused({prompt.id: prompt.text for prompt in prompts}, self.read)

    def encode_prompts(self, prompts):
        for prompt in prompts:
            self.read(prompt.text)
        return super().encode_prompts(prompts)


class Deaf(ToyReward):
    """A reward whose text encoder takes less than that of the backbone."""

    def too_long(self, prompts):
        return {
            prompt.id: "the reward takes no digits"
            for prompt in prompts
            if "number 7" in prompt.text
        }


def data(long=(11, 57, 140), negative="noise", held_out=(), **changes):
    train = [
        Prompt(p.id, LONG if i in long else p.text, negative, 1.0, labels=p.labels)
        for i, p in enumerate(prompts(200))
    ]
    settings = {
        "prompts_per_round": 4,
        "repeats": 2,
        "rounds_per_epoch": 1,
        "prompts": (tuple(train), tuple(held_out)),
    }
    return PromptDataModule(**{**settings, **changes})


def never_sampled(ddpo):
    ddpo.backbone.predict = lambda *_: pytest.fail("sampled")
    return ddpo


@pytest.mark.long
def test_three_of_two_hundred_stop_the_run_before_it_starts_and_are_named():
    ddpo = never_sampled(module(backbone=Limited()))
    with pytest.raises(ValueError, match="3 of 200.*'p11'.*20 tokens.* 8") as caught:
        trainer(1).fit(ddpo, datamodule=data())
    assert all(f"'p{i}'" in str(caught.value) for i in (11, 57, 140))
    assert "set scoring.long_prompts=drop" in str(caught.value)


def test_they_are_dropped_and_counted_where_the_knob_says_so_and_every_other_prompt_is_trained():
    recorder = Recorder()
    source = data(prompts_per_round=197, rounds_per_epoch=1)
    ddpo = module(
        {"scoring.long_prompts": "drop", "sampler.batch_size": 197, "update.batch_size": 197},
        backbone=Limited(),
    )
    asked = []
    encode = ddpo.backbone.encode_prompts
    ddpo.backbone.encode_prompts = lambda each: (
        asked.extend(prompt.id for prompt in each),
        encode(each),
    )[1]
    with pytest.warns(
        UserWarning,
        match=r"3 of 200 prompts are too long: .*They are left out \(scoring.long_prompts=drop\)",
    ):
        trainer(1, callbacks=[recorder]).fit(ddpo, datamodule=source)
    assert recorder.rounds[0]["dropped_prompts"] == 3
    assert (
        set(asked)
        == {f"p{i}" for i in range(200)} - {"p11", "p57", "p140"}
        == {p.id for p in source.all_prompts()}
    )


def test_a_run_that_drops_resumes_with_the_prompts_that_were_left(tmp_path):
    changes = {"backbone": Limited(), "scoring.long_prompts": "drop"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer(1)
        run.fit(module(**changes), datamodule=data())
        run.save_checkpoint(tmp_path / "one.ckpt")
        resumed = trainer(2)
        source = data()
        resumed.fit(
            module(**{**changes, "backbone": Limited()}),
            datamodule=source,
            ckpt_path=tmp_path / "one.ckpt",
        )
    assert source.rounds.next_round == 2
    with pytest.raises(ValueError, match="other prompts"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(2).fit(
            module(**{**changes, "backbone": Limited()}),
            datamodule=data(long=(11,)),
            ckpt_path=tmp_path / "one.ckpt",
        )


def test_negatives_count_when_there_is_guidance_and_the_reward_is_asked_too():
    with pytest.raises(ValueError, match="200 of 200"):
        trainer(1).fit(
            never_sampled(module(backbone=Limited())), datamodule=data(long=(), negative=LONG)
        )
    quiet = module({"sampler.guidance_scale": 1.0}, backbone=Limited())
    trainer(1).fit(quiet, datamodule=data(long=(), negative=LONG))
    with pytest.raises(ValueError, match="11 of 200.*'p7'.*digits"):
        trainer(1).fit(never_sampled(module(reward=Deaf())), datamodule=data())
    assert quiet.trainer.global_step == 1


def test_held_out_prompts_are_checked_and_dropped_too():
    held_out = [
        Prompt("v0", LONG, "noise", 1.0, labels={"mood": "sad"}),
        Prompt("v1", "ok", "", 1.0, labels={"mood": "sad"}),
    ]
    with pytest.raises(ValueError, match="1 of 202.*'v0'"):
        trainer(1).fit(
            never_sampled(module(backbone=Limited())), datamodule=data(long=(), held_out=held_out)
        )
    source = data(long=(), held_out=held_out)
    with pytest.warns(UserWarning, match="1 of 202"):
        trainer(1).fit(
            module({"scoring.long_prompts": "drop"}, backbone=Limited()), datamodule=source
        )
    assert [prompt.id for prompt in source.validation_prompts] == ["v1"] and len(
        source.train_prompts
    ) == 200


def test_dropping_never_leaves_nothing():
    with pytest.raises(ValueError, match="200"):
        trainer(1).fit(
            never_sampled(module({"scoring.long_prompts": "drop"}, backbone=Limited())),
            datamodule=data(long=range(200)),
        )


def tango():
    return Tango(**toy_tango.SMALL, max_tokens=12)


BACKBONES = {
    "audioldm": (
        partial(toy_audioldm.small_model, max_tokens=40),
        "rain falls " * 40,
        "CLAP takes 40",
    ),
    "audioldm2": (toy_audioldm2.small_model, "rain falls " * 40, "T5 takes 80"),
    "tango": (tango, "a dog barks " * 8, "has 25 tokens, T5 takes 12"),
    "stable_audio": (toy_stable_audio.small_model, "rain falls " * 40, "T5 takes 80"),
    "tangoflux": (
        partial(toy_tangoflux.small_model, max_tokens=12),
        "a dog barks " * 8,
        "has 25 tokens, T5 takes 12",
    ),
    "tiny_audio": (
        partial(TinyAudio, **SMALL),
        "rain falls " * 33,
        "needs 231 tokens, the model takes 64",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_every_backbone_knows_the_texts_that_it_would_refuse(kind):
    make, text, message = BACKBONES[kind]
    backbone = make()
    asked = [
        Prompt("short", "a dog barks", "a bird"),
        Prompt("long", text, ""),
        Prompt("negative", "a bird", text),
    ]
    rewards = (None, ToyReward())
    guided = Sampler(2, 3.0)
    plain = Sampler(2)
    found = too_long(backbone, rewards, prompts_to_encode(asked, (plain, guided)))
    assert (
        list(found) == ["long", "negative"]
        and message in found["long"]
        and message in found["negative"]
    )
    backbone.encode_prompts([asked[0], asked[0].as_negative()])
    for prompt in (asked[1], asked[2].as_negative()):
        with pytest.raises(ValueError, match=message):
            backbone.encode_prompts([prompt])
    unguided = prompts_to_encode(asked, (plain, plain))
    assert list(too_long(backbone, rewards, unguided)) == ["long"]
    backbone.encode_prompts(unguided[2:])
    in_pairs = kind in ("audioldm2", "tangoflux")  # these read the negative beside each prompt
    assert set(backbone.too_long(asked)) == ({"long", "negative"} if in_pairs else {"long"})
    if in_pairs:
        with pytest.raises(ValueError, match=message):
            backbone.encode_prompts([asked[2]])
    if kind == "audioldm2":  # it can cut
        backbone.truncate_prompts = True
        assert backbone.too_long(asked) == {}


def test_clap_knows_the_texts_that_it_would_refuse(tmp_path):
    small = {
        "window_s": 1.024,
        "n_mels": 32,
        "channels": [4, 4, 4, 8],
        "width": 16,
        "depth": 1,
        "text_depth": 1,
    }
    arguments = with_files({**SHORT, "tokenizer": str(tokenizer_file(tmp_path))})
    rewards = [
        ClapReward("x", "tiny", {**small, "max_tokens": 20}),
        ClapReward("x", "transformers", {**arguments, "max_tokens": 20}),
    ]
    asked = [Prompt("short", "a dog"), Prompt("long", "a dog barks " * 40)]
    for reward in rewards:
        ((name, why),) = reward.too_long(asked).items()
        assert name == "long" and why.startswith("the reward: ") and "20" in why
    assert (
        ClapReward(
            "x", "transformers", {**arguments, "max_tokens": 20, "long_texts": "cut"}
        ).too_long(asked)
        == {}
    )


def test_a_prompt_file_without_prompts_is_refused(tmp_path):
    for name, content, message in (
        ("empty.txt", "", "empty.txt"),
        ("blank.txt", "\n  \n\n", "holds no prompt"),
        ("head.csv", "text\n", "head.csv"),
        ("none.jsonl", "", "none.jsonl"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            PromptDataModule(file=str(tmp_path / name))
