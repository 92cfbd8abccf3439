import random

import pytest

from jaxtrain.errors import UserError
from jaxtrain.tokenizers import byte_tokenizer, character_tokenizer

CHARACTERS = "\n 0123456789+-*/=|"


@pytest.mark.parametrize(
    "tokenizer", [byte_tokenizer(), character_tokenizer(CHARACTERS)], ids=["byte", "character"]
)
def test_decode_undoes_encode(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(CHARACTERS, k=rng.randrange(30)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\U0001f600 \U0001f469\u200d\U0001f52c",
        "\u6570\u5b66\n\u554f\u984c",
        "e\u0301\u00e9",
        "a\0b\r\n",
    ],
)
def test_byte_tokenizer_encodes_any_text(text):
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_character_of_unicode_survives_the_byte_tokenizer():
    tokenizer = byte_tokenizer()
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_character_ids_are_the_specials_then_the_alphabet_in_order():
    tokenizer = character_tokenizer("ab\n")
    assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.vocab_size) == (0, 1, 5)
    assert tokenizer.token_bytes == (b"", b"", b"a", b"b", b"\n")
    assert tokenizer.encode("ba\n") == [3, 2, 4]


def test_byte_tokenizer_has_an_id_for_each_byte_and_each_special():
    tokenizer = byte_tokenizer()
    assert tokenizer.vocab_size == 258
    assert tokenizer.encode("\n") == [12]


def test_decode_stops_before_the_first_end():
    tokenizer = character_tokenizer("ab\n")
    assert tokenizer.decode([2, 3, 1, 2, 1, 0]) == "ab"


def test_decode_drops_trailing_padding_only():
    tokenizer = character_tokenizer("ab\n")
    assert tokenizer.decode([2, 3, 0, 0]) == "ab"
    assert tokenizer.decode([2, 0, 3]) == "a\ufffdb"
    assert tokenizer.decode([2, 0, 1]) == "a\ufffd"


def test_decode_shows_ids_outside_the_vocabulary():
    assert character_tokenizer("ab\n").decode([2, 99, -1]) == "a\ufffd\ufffd"


def test_decode_replaces_bytes_that_are_no_text():
    assert byte_tokenizer().decode([2 + 0xE6, 2 + ord("x")]) == "\ufffdx"


@pytest.mark.parametrize(
    ("text", "named"), [("a*b", "'*' at position 1"), ("ab\u00d7", r"'\xd7' at position 2")]
)
def test_unknown_character_is_named_with_its_place(text, named):
    with pytest.raises(UserError) as error:
        character_tokenizer("ab\n").encode(text)
    assert named in str(error.value)


def test_half_of_a_surrogate_pair_is_named_with_its_place():
    with pytest.raises(UserError, match=r"'\\ud83d' at position 1"):
        byte_tokenizer().encode("a\ud83d")


@pytest.mark.parametrize("alphabet", ["ab", "aab\n", "a\u00e9\n"])
def test_alphabet_is_distinct_ascii_with_a_newline(alphabet):
    with pytest.raises(UserError, match="alphabet"):
        character_tokenizer(alphabet)
