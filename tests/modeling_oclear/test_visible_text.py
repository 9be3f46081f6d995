"""Text that nobody sees is no text, for every package alike."""

from pathlib import Path

import pytest

from data_governance.stages.lookalikes import lookalike
from modeling_oclear.visible_text_oclear import is_visible, visible

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "shown", ["\u200b", "\u00ad\u00ad", "\x00\x01", " \t\n", "\ufeff", "\u3164", "\u2800", "\U000e0041", ""]
)
def test_invisible_text_is_no_text(shown: str) -> None:
    assert not is_visible(shown)
    assert visible(shown) == ""


@pytest.mark.parametrize("shown", ["a\u200b", "\u0416", "\u5b57", "7", "!", "\U0001f98a", "e\u0301"])
def test_visible_text_stays_as_it_is(shown: str) -> None:
    assert is_visible(shown)
    assert visible(shown) == shown


def test_one_file_alone_lists_the_characters_that_show_nothing() -> None:
    packages = ("runtime", "modeling_oclear", "data_governance", "train", "retrieval")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in files if "0x1BCA0" in path.read_text()] == ["visible_text_oclear.py"]


def test_ids_that_look_alike_have_one_look() -> None:
    twins = ["caf\u00e9", "cafe\u0301", "cafe\u0301 ", "ca\u200bf\u00e9"]
    assert len({lookalike(one) for one in twins}) == 1
    assert lookalike("a b") != lookalike("ab")
