"""Any text has tokens; none is ever an error, and none is ever unknown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.base import MAX_TOKENS, new_tokenizer, tokenize
from training.data.world import CAPTIONS
from training.tokenizer import train_tokenizer
from training.vlm import IMAGE, new_processor

TEXT = new_tokenizer()
CHAT = new_processor().tokenizer
ODD = [
    "",
    " ",
    "\x00",
    "🙂",
    "👩‍👩‍👧‍👦 ",
    "東京 في Ω",
    "\ufeff\u202e",
    "a" * 5000,
    "<|nothing|>",
    "\n\t",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_have_tokens(text: str) -> None:
    ids = tokenize(TEXT, [text])
    assert ids.shape == (1, MAX_TOKENS)
    assert int(ids.min()) >= 0 and int(ids.max()) < len(TEXT)
    CHAT(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_unicode_text_has_tokens(text: str) -> None:
    """All that UTF-8 can carry. A lone surrogate cannot be carried: the API refuses it (422)."""
    assert tokenize(TEXT, [text]).shape == (1, MAX_TOKENS)
    assert all(0 <= i < len(CHAT) for i in CHAT(text).input_ids)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_nothing_is_lost_on_the_way_back(text: str) -> None:
    import unicodedata

    tokenizer = train_tokenizer(
        ["some words"], special=["<|pad|>"], vocabulary=300, max_length=999, keep_case=True
    )
    written = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer(text).input_ids) == written or "<|pad|>" in text


def test_captions_are_short_and_framed() -> None:
    lengths = [len(TEXT(str(c)).input_ids) for c in CAPTIONS]
    assert max(lengths) <= 10
    ids = TEXT(str(CAPTIONS[0])).input_ids
    assert (ids[0], ids[-1]) == (TEXT.bos_token_id, TEXT.eos_token_id)
    assert TEXT("A LARGE Tree in the CITY").input_ids == TEXT("a large tree in the city").input_ids


def test_the_same_words_make_the_same_tokenizer() -> None:
    assert new_tokenizer().get_vocab() == TEXT.get_vocab()
    assert new_processor().tokenizer.get_vocab() == CHAT.get_vocab()


def test_control_tokens_are_one_token() -> None:
    assert CHAT(IMAGE).input_ids == [CHAT.convert_tokens_to_ids(IMAGE)]
