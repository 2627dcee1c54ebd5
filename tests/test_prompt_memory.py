"""The cache of encoded prompts (``zoo/conditioners/prompt_memory.py``), in any precision."""

import copy
import pickle

import pytest
import torch
import toy_audioldm2
import toy_stable_audio
import toy_tango
import toy_tangoflux

from zoo.conditioners import prompt_memory
from zoo.conditioners.prompt_memory import PromptMemory
from zoo.conditioners.t5 import t5_states
from zoo.errors import UserError
from zoo.types import Prompt

PROMPTS = (Prompt("a", "a dog barks", "rain on a roof"), Prompt("b", "sad piano", ""))


def words(text):
    ids = [len(word) for word in text.split()]
    if len(ids) > 4:
        raise UserError(f"{text!r} is too long")
    return [*ids, 0]


def counting(in_pairs=False):
    asked = []
    return asked, PromptMemory(
        lambda text, length: asked.append((text, length)) or (text, length), words, in_pairs
    )


def test_every_text_is_encoded_once_at_the_length_of_its_pair():
    asked, memory = counting(in_pairs=True)
    assert [memory(side) for side in (PROMPTS[0], PROMPTS[0].as_negative(), PROMPTS[0])] == [
        ("a dog barks", 5),
        ("rain on a roof", 5),
        ("a dog barks", 5),
    ]
    assert memory(Prompt("c", "a dog barks", "rain")) == (
        "a dog barks",
        4,
    )  # another length is another sequence
    assert asked == [("a dog barks", 5), ("rain on a roof", 5), ("a dog barks", 4)]
    memory.forget()
    memory(PROMPTS[0])
    assert asked[3:] == [("a dog barks", 5)]
    asked, memory = counting()
    memory.remember(PROMPTS)
    memory.remember(PROMPTS)
    assert asked == [
        ("a dog barks", None),
        ("rain on a roof", None),
        ("sad piano", None),
        ("", None),
    ]


def test_as_many_texts_are_kept_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(prompt_memory, "CAPACITY", 4)
    asked, memory = counting()
    memory.remember(PROMPTS)
    memory.remember(PROMPTS)  # full, and nothing new
    assert len(asked) == 4
    with pytest.raises(ValueError, match="at most 4"):
        memory.remember([Prompt("c", "one more")])
    assert memory(Prompt("c", "one more")) == (
        "one more",
        None,
    )  # asked for in passing: the oldest makes room
    memory(PROMPTS[0])
    assert asked[4:] == [("one more", None), ("a dog barks", None)]


def test_texts_not_encoded_before_the_encoders_were_dropped_are_named():
    _, memory = counting(in_pairs=True)
    memory.remember(PROMPTS)
    memory.close()
    memory.forget()  # weights of the denoiser are loaded: nothing could read the texts again
    assert memory(PROMPTS[1].as_negative()) == ("", 3)
    with pytest.raises(
        ValueError,
        match="'sad piano'.*5 tokens",
    ):
        memory(Prompt("x", "sad piano", "rain on a roof"))


def test_texts_that_are_too_long_are_named():
    long = "rain " * 5
    asked = [
        Prompt("short", "a dog", "rain"),
        Prompt("long", long),
        Prompt("negative", "a dog", long),
    ]
    assert list(counting()[1].too_long(asked)) == ["long"]
    assert sorted(counting(in_pairs=True)[1].too_long(asked)) == ["long", "negative"]
    silent = PromptMemory(lambda text, length: text, None)
    assert silent.too_long(asked) == {}
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        silent.tokens("a dog")


MODELS = {
    "audioldm2": (toy_audioldm2.small_model, lambda model: model.t5, "t5_BLD"),
    "stable_audio": (toy_stable_audio.small_model, lambda model: model.text.encoder, "tokens_BLD"),
    "tango": (toy_tango.small_model, lambda model: model.text_encoder, "tokens_BLD"),
    "tangoflux": (toy_tangoflux.small_model, lambda model: model.text.encoder, "tokens_BLD"),
}


def loud(encoder):
    """FLAN-T5's problem: its feed-forward outputs exceed the 65 504 of float16."""
    for block in encoder.encoder.block:
        block.layer[-1].DenseReluDense.wo.weight.mul_(2e4)
        for name, inner in block.layer[-1].DenseReluDense.named_children():
            if name.startswith("wi"):
                inner.weight.mul_(10)
    return encoder


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(MODELS))
@torch.no_grad()
def test_in_float16_the_text_encoder_equals_float32(kind):
    make, encoder_of, stream = MODELS[kind]
    model = make()
    loud(encoder_of(model))
    wanted = model.encode_prompts(PROMPTS)
    assert t5_states(loud(encoder_of(make())), torch.tensor([[3, 4, 1]])).isfinite().all()
    half = make()
    half.load_state_dict(model.state_dict())
    half.to(torch.float16)
    found = half.encode_prompts(PROMPTS)
    assert found[stream].dtype == torch.float16
    torch.testing.assert_close(found[stream].float(), wanted[stream], atol=0.02, rtol=0.02)
    assert all(
        tensor.isfinite().all() for tensor in found.streams.values() if tensor.is_floating_point()
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_text_encoder_in_float32_beside_a_model_in_bfloat16(kind):
    make, encoder_of, stream = MODELS[kind]
    model = make().to(torch.bfloat16)
    encoder_of(model).float()
    conditioning = model.encode_prompts(PROMPTS)
    time_B = model.path.sample_times(torch.tensor([0.9, 0.1]))
    assert (
        model.predict(torch.randn(2, *model.latent_shape(0.2)), time_B, conditioning)
        .isfinite()
        .all()
    )
    torch.testing.assert_close(
        conditioning[stream].float(), make().encode_prompts(PROMPTS)[stream], atol=0.1, rtol=0.1
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["audioldm2", "tango"])
def test_a_copy_of_a_model_reads_with_its_own_encoder(kind):
    make, encoder_of, stream = MODELS[kind]
    model = make()
    before = model.encode_prompts(PROMPTS)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            encoder_of(copied).shared.weight.mul_(-2)
        copied.memory.forget()
        assert (copied.encode_prompts(PROMPTS)[stream] - before[stream]).abs().max() > 1e-3
    model.memory.forget()
    assert all(
        torch.equal(model.encode_prompts(PROMPTS)[name], before[name]) for name in before.streams
    )
