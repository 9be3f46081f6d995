"""Icon sets of several vendors as one domain, on tiny packages."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.catalogues.icons import domain as icons
from benchmarks.catalogues.icons.sets import (
    LICENCES,
    MOST_VARIANTS,
    SETS,
    TAGS_PACKAGE,
    IconSet,
    join_sets,
    licence_of,
    read_set,
)

HERE = Path(icons.__file__).parent
PLAIN, STYLED, NUMBERED = IconSet("lucide"), IconSet("mdi", ("outline",)), IconSet("ri", ("line",), "line", True)


def body(*names: object) -> str:
    draw = random.Random(" ".join(str(name) for name in names))
    x, y = draw.uniform(4, 20), draw.uniform(4, 20)
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{draw.uniform(1, 4):.2f}" fill="currentColor"/>'


def listing(prefix: str, *names: str, **aliases: str) -> dict[str, Any]:
    found = {name: {"body": body(prefix, name)} for name in names}
    parents = {alias.replace("_", "-"): {"parent": parent} for alias, parent in aliases.items()}
    return {"icons": found, "aliases": parents, "width": 24, "height": 24}


def test_styles_of_one_icon_are_drawings_of_one_category_the_base_first() -> None:
    read = read_set(listing("mdi", "home-outline", "home", "eye"), {}, STYLED)
    assert read[("home",)].names == ["home", "home-outline"]
    numbered = read_set(listing("ri", "home-3-line", "home-line", "home-2-line", "home-4-line"), {}, NUMBERED)
    assert numbered[("home",)].names == ["home-line", "home-2-line", "home-3-line", "home-4-line"][:MOST_VARIANTS]


def test_hidden_equal_and_ambiguous_icons_are_left_out() -> None:
    found = listing("lucide", "eye", "old", "arrow-left-right", "arrow-right-left")
    found["icons"]["old"]["hidden"] = True
    assert list(read_set(found, {}, PLAIN)) == [("eye",)]
    styled = listing("mdi", "eye", "eye-outline")
    styled["icons"]["eye-outline"] = styled["icons"]["eye"]
    assert read_set(styled, {}, STYLED)[("eye",)].names == ["eye"]


def test_aliases_join_categories_of_vendors_that_do_not_draw_both() -> None:
    first = read_set(listing("lucide", "hat", "rod"), {"categories": {"Clothes": ["hat"]}}, PLAIN)
    second = read_set(listing("mdi", "bonnet", "sun", hat="bonnet", rod="sun"), {}, STYLED)
    joined = join_sets({"lucide": first, "mdi": second})
    assert set(joined[("hat",)] if ("hat",) in joined else joined[("bonnet",)]) == {"lucide", "mdi"}
    assert first[("hat",)].groups == {"Clothes"}
    third = read_set(listing("ri", "hat-line", "bonnet-line"), {}, NUMBERED)
    apart = join_sets({"lucide": first, "mdi": second, "ri": third})
    assert {("hat",), ("bonnet",)} <= set(apart)


def write_packages(folder: Path) -> Path:
    names = [f"thing{number}" for number in range(12)]
    for one in (PLAIN, STYLED, IconSet("tabler")):
        package = folder / one.package
        package.mkdir(parents=True)
        found = listing(one.prefix, *names, "only-" + one.prefix)
        if one is STYLED:
            found["icons"]["thing1"] = found["icons"]["thing0"]  # one vendor draws two things alike
        info = {"license": {"spdx": "MIT"}, "author": {"url": "https://example.org"}}
        for name, content in (("icons", found), ("info", info), ("package", {"version": "1.0"})):
            (package / f"{name}.json").write_text(json.dumps(content))
    tags = folder / TAGS_PACKAGE
    tags.mkdir(parents=True)
    (tags / "package.json").write_text(json.dumps({"version": "1.0"}))
    (tags / "icons.json").write_text(json.dumps({"thing2": {"tags": ["round", "thing2"]}}))
    return folder


def test_the_domain_has_things_of_two_vendors_without_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = write_packages(tmp_path / "node_modules")
    monkeypatch.setattr(icons, "install_packages", lambda cache, listed: modules)
    domain = icons.load_domain(tmp_path / "cache", workers=1, sets=(PLAIN, STYLED, IconSet("tabler")))
    keys = {one.key for one in domain.categories}
    assert "2 thing" in keys
    assert not [key for key in keys if "only" in key]
    assert len({"0 thing", "1 thing"} & keys) == 1
    assert set(domain.drawings["2 thing"]) == {"lucide", "mdi", "tabler"}
    [tagged] = [one for one in domain.categories if one.key == "2 thing"]
    assert "round" in tagged.tags
    assert domain.painted


def test_a_licence_that_is_not_listed_stops_the_run(tmp_path: Path) -> None:
    package = tmp_path / PLAIN.package
    package.mkdir(parents=True)
    (package / "info.json").write_text(json.dumps({"license": {"spdx": "GPL-3.0"}}))
    with pytest.raises(ValueError, match="has the licence GPL-3.0"):
        licence_of(tmp_path, PLAIN)


def test_the_lock_file_pins_every_set_with_a_listed_licence_and_no_address() -> None:
    lock = json.loads((HERE / "package-lock.json").read_text())
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    assert set(wanted) == {TAGS_PACKAGE, *(one.package for one in SETS)}
    for name, version in wanted.items():
        entry = lock["packages"][f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")
        assert entry["license"] in LICENCES
        assert "resolved" not in entry
    assert "omit-lockfile-registry-resolved=true" in (HERE / ".npmrc").read_text()
