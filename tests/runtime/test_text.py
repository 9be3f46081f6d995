"""Text that nobody sees is no text, for every package alike."""

import pytest

from modeling_oclear import processing_oclear
from runtime import text


@pytest.mark.parametrize(
    "shown", ["\u200b", "\u00ad\u00ad", "\x00\x01", " \t\n", "\ufeff", "\u3164", "\u2800", "\U000e0041", ""]
)
def test_invisible_text_is_no_text(shown: str) -> None:
    assert not text.is_visible(shown)
    assert text.visible(shown) == ""


@pytest.mark.parametrize("shown", ["a\u200b", "\u0416", "\u5b57", "7", "!", "\U0001f98a", "e\u0301"])
def test_visible_text_stays_as_it_is(shown: str) -> None:
    assert text.is_visible(shown)
    assert text.visible(shown) == shown


def test_the_published_processor_sees_the_same_characters() -> None:
    assert processing_oclear.IGNORABLE == text.IGNORABLE
    letters = [chr(number) for number in [*range(0x3400), *range(0xD7FC, 0xE010), *range(0xFE00, 0x10080)]]
    assert all(processing_oclear._is_seen(letter) == text._is_seen(letter) for letter in letters)


def test_ids_that_look_alike_have_one_look() -> None:
    twins = ["caf\u00e9", "cafe\u0301", "cafe\u0301 ", "ca\u200bf\u00e9"]
    assert len({text.lookalike(one) for one in twins}) == 1
    assert text.lookalike("a b") != text.lookalike("ab")
