"""Tokenizers inside a model's arguments (``zoo/conditioners/tokenizer.py``)."""

import base64
import json
import zlib

import pytest
from toy_tango import TOKENIZER

from zoo.conditioners.tokenizer import PromptTokenizer, pack_tokenizer

PACKED = pack_tokenizer(json.dumps(TOKENIZER))


def test_a_packed_tokenizer_reads_texts():
    tokenizer = PromptTokenizer(PACKED, 8, "T5")
    assert PACKED.isascii() and "\n" not in PACKED
    assert (
        tokenizer("A dog barks") == [3, 4, 5, 1]
        and tokenizer("") == [1]
        and tokenizer("helicopter") == [2, 1]
    )


def test_too_long_is_an_error_unless_it_is_cut():
    tokenizer = PromptTokenizer(PACKED, 3, "T5")
    with pytest.raises(ValueError, match="'a dog barks'.* 4 tokens.* 3"):
        tokenizer("a dog barks")
    assert tokenizer("a dog barks", truncate=True) == [3, 4, 1]  # what ends a text stays
    with pytest.raises(ValueError, match="has 4 tokens"):
        tokenizer("a dog barks")


def empty_stand_in():
    words = {word: index for word, index in TOKENIZER["model"]["vocab"].items() if index < 3}
    return pack_tokenizer(
        json.dumps(
            {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": words}, "pre_tokenizer": None}
        )
    )


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ("not base 64!", "T5 tokenizer cannot be read"),
        (base64.b64encode(b"not zlib").decode(), "T5 tokenizer cannot be read"),
        (base64.b64encode(zlib.compress(b"{}" * 99)[:-6]).decode(), "cut off"),
        (base64.b64encode(zlib.compress(bytes(65 * 2**20))).decode(), "unpacks to more"),
        (pack_tokenizer("{}"), "is not the contents of a tokenizer.json"),
        (None, "T5 tokenizer cannot be read"),
        (empty_stand_in(), "an empty stand-in"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused(packed, message):
    with pytest.raises(ValueError, match=message):
        PromptTokenizer(packed, 8, "T5")


def words_alone(count):
    """A stand-in where every word is unknown: captions differ only in their number of words."""
    words = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", "a")[:count])}
    return pack_tokenizer(
        json.dumps({**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": words}})
    )


@pytest.mark.parametrize("count", [3, 4])
def test_a_tokenizer_that_only_counts_words_is_refused(count):
    with pytest.raises(ValueError, match="T5.*tokenizer.json"):
        PromptTokenizer(words_alone(count), 8, "T5")


def test_captions_must_come_back_out_of_their_tokens():
    """One word is missing from the vocabulary: captions still differ, but do not decode."""
    words = {word: index for word, index in TOKENIZER["model"]["vocab"].items() if word != "barks"}
    with pytest.raises(ValueError, match="T5.*a dog barks"):
        PromptTokenizer(
            pack_tokenizer(
                json.dumps({**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": words}})
            ),
            8,
            "T5",
        )
