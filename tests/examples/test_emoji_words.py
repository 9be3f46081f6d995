"""Texts of the emoji data: stems, and removal of label words."""

import pytest

from examples.emoji.vocabulary import Category, document_text, is_label_word, stem, without_label

CRAB = Category(
    key="1f980",
    label="crab with running shoes",
    group=3,
    subgroup=41,
    leaf="animal-crab-marine",
    tags=("Crabs", "zodiac", "run fast", "crustacean shoe"),
    shortcodes=("crab_run", "cancer"),
    translations={"de": ("krabbe", "crab", "tierkreis")},
)


@pytest.mark.parametrize(
    ("word", "expected"), [("running", "run"), ("Runs", "run"), ("berries", "berr"), ("berry", "berr"), ("dog", "dog")]
)
def test_stem_is_the_word_without_its_suffix(word: str, expected: str) -> None:
    assert stem(word) == expected


@pytest.mark.parametrize("word", ["crab", "CRABS", "run", "runs", "crabmeat", "With", "shoe"])
def test_inflected_or_compound_label_word_is_recognised(word: str) -> None:
    assert is_label_word(word, CRAB.label)


@pytest.mark.parametrize("word", ["zodiac", "sea", "truth", "scab"])
def test_unrelated_word_is_kept(word: str) -> None:
    assert not is_label_word(word, CRAB.label)


def test_accents_do_not_hide_a_label_word() -> None:
    assert without_label("Pi\u00f1atas party", "pinata") == "party"


def test_hard_setting_removes_all_label_words() -> None:
    assert document_text(CRAB, "tags", language="de", hard=True) == "zodiac, fast, crustacean"
    assert document_text(CRAB, "language", language="de", hard=True) == "krabbe, tierkreis"
    assert document_text(CRAB, "subgroup", language="de", hard=True) == "animal marine"


def test_main_setting_does_not_change_texts() -> None:
    assert document_text(CRAB, "tags", language="de", hard=False) == "Crabs, zodiac, run fast, crustacean shoe"
    assert document_text(CRAB, "shortcodes", language="de", hard=False) == "crab run, cancer"
    assert document_text(CRAB, "nothing", language="de", hard=False) == ""
    assert document_text(CRAB, "language", language="fr", hard=False) == ""
