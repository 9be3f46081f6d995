"""Icon names: styles, numbers, order of words, synonyms and aliases."""

import pytest

from benchmarks.catalogues.icons.names import Key, joined_keys, key_of, without_number, without_suffix


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("trash-can", "bin"),
        ("arrow-up-circle", "circle-arrow-up"),
        ("user-add", "person-plus"),
        ("file-document", "file"),
        ("search", "magnify"),
    ],
)
def test_names_of_one_thing_have_one_key(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


@pytest.mark.parametrize(
    ("one", "other"), [("user", "users"), ("file", "file-plus"), ("battery-1", "battery-2"), ("eye", "eye-off")]
)
def test_names_of_two_things_have_two_keys(one: str, other: str) -> None:
    assert key_of(one) != key_of(other)


def test_a_name_of_empty_words_alone_keeps_them() -> None:
    assert key_of("symbol") == ("symbol",)


def test_only_a_style_at_the_end_is_removed() -> None:
    assert without_suffix("home-outline-rounded", ("outline-rounded", "outline")) == ("home", "outline-rounded")
    assert without_suffix("fill", ("fill",)) == ("fill", "")
    assert without_suffix("fill-drip", ("fill",)) == ("fill-drip", "")


def test_a_number_is_removed_unless_it_is_the_content() -> None:
    assert without_number("home-02") == ("home", "2")
    assert without_number("home-12") == ("home-12", "")
    for name in ("battery-2", "dice-3", "number-4", "square-5", "home"):
        assert without_number(name) == (name, "")


def test_an_alias_joins_names_unless_one_vendor_draws_both() -> None:
    keys: dict[Key, set[str]] = {("bonnet",): {"a"}, ("hat",): {"b", "c"}, ("cap",): {"a", "d"}}
    joined = joined_keys(keys, [(("bonnet",), ("hat",)), (("cap",), ("hat",)), (("unknown",), ("hat",))])
    assert joined[("bonnet",)] == joined[("hat",)] == ("hat",)
    assert joined[("cap",)] == ("cap",)
