"""Icon sets of the benchmark: vendors, licences, style suffixes, and reading them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.catalogues.icons.names import Key, joined_keys, key_of, without_number, without_suffix

TAGS_PACKAGE = "@tabler/icons"
LICENCES = ("MIT", "Apache-2.0", "ISC", "CC-BY-4.0")
MOST_VARIANTS = 3  # drawings of one category by one vendor
MOST_WORDS = 4  # of an icon name: longer names describe one vendor's idea


@dataclass(frozen=True)
class IconSet:
    """One vendor's set in the package `@iconify-json/PREFIX`.

    Attributes:
        prefix: name of the set.
        suffixes: endings of a name that name a style, longest first; the drawing without one comes first.
        base: the style of the first drawing; "" = without suffix.
        numbered: whether a number at the end counts drawings of one thing.
    """

    prefix: str
    suffixes: tuple[str, ...] = ()
    base: str = ""
    numbered: bool = False

    @property
    def package(self) -> str:
        return f"@iconify-json/{self.prefix}"


_FLUENT = tuple(f"{size}-{style}" for size in (24, 20, 28, 32, 16, 48, 12, 10) for style in ("regular", "filled"))
_MATERIAL = ("outline-rounded", "outline-sharp", "outline", "rounded", "sharp")
_SOLAR = ("line-duotone", "bold-duotone", "linear", "outline", "broken", "bold")
SETS = (
    IconSet("bi", ("fill",)),
    IconSet("carbon", ("filled", "outline")),
    IconSet("fa6-solid"),
    IconSet("fluent", _FLUENT, base="24-regular"),
    IconSet("hugeicons", numbered=True),
    IconSet("icon-park-outline"),
    IconSet("iconoir", ("solid",)),
    IconSet("ion", ("outline", "sharp"), base="outline"),
    IconSet("lucide"),
    IconSet("material-symbols", _MATERIAL),
    IconSet("mdi", ("variant-outline", "outline")),
    IconSet("mingcute", ("line", "fill"), base="line", numbered=True),
    IconSet("octicon", ("fill-24", "fill-16", "24", "16", "12", "48", "96"), base="24"),
    IconSet("ph", ("duotone", "light", "thin", "bold", "fill")),
    IconSet("ri", ("line", "fill"), base="line", numbered=True),
    IconSet("solar", _SOLAR, base="linear", numbered=True),
    IconSet("tabler", ("filled",)),
    IconSet("tdesign", ("filled",), numbered=True),
    IconSet("uil"),
)


@dataclass
class Icon:
    """The drawings of one category by one vendor: icon names, the base drawing first, and what was found with them."""

    names: list[str] = field(default_factory=list)
    aliases: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of a package file; {} if there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def licence_of(node_modules: Path, one: IconSet) -> str:
    """Return the SPDX name of a set's licence.

    Raises:
        ValueError: it is not one of `LICENCES`.
    """
    found = str(read_json(node_modules / one.package / "info.json")["license"]["spdx"])
    if found not in LICENCES:
        raise ValueError(f"{one.package} has the licence {found}; only {', '.join(LICENCES)} are used")
    return found


def parts(name: str, one: IconSet) -> tuple[str, str, str]:
    """Return (bare name, style suffix, number) of an icon name of a set."""
    bare, style = without_suffix(name, one.suffixes)
    bare, number = without_number(bare) if one.numbered else (bare, "")
    return bare, style, number


def _shape(icons: Mapping[str, Any], name: str) -> str:
    return str(icons[name]["body"])


def read_set(icons: Mapping[str, Any], metadata: Mapping[str, Any], one: IconSet) -> dict[Key, Icon]:
    """Return {category key: its drawings} of one set, without hidden and ambiguous icons.

    A key is ambiguous if two names that differ in more than style have it: `arrow-left-right`, `arrow-right-left`.
    """
    order = {style: rank for rank, style in enumerate((one.base, *(s for s in ("", *one.suffixes) if s != one.base)))}
    found: dict[Key, list[tuple[int, str, str, str]]] = {}
    for name, icon in icons["icons"].items():
        bare, style, number = parts(name, one)
        key = key_of(bare)
        if not icon.get("hidden") and 1 <= len(key) <= MOST_WORDS:
            found.setdefault(key, []).append((order.get(style, len(order)), number, bare, name))
    kept: dict[Key, Icon] = {}
    for key, rows in found.items():
        if len({bare for _, _, bare, _ in rows}) > 1:
            continue
        kept[key] = Icon(_distinct(icons["icons"], [name for *_, name in sorted(rows)]))
    of_name = {parts(name, one)[0]: key for key, icon in kept.items() for name in icon.names}
    for alias, entry in icons.get("aliases", {}).items():
        parent = of_name.get(parts(str(entry["parent"]), one)[0])
        if parent is not None:
            kept[parent].aliases.add(parts(alias, one)[0])
    for group, names in metadata.get("categories", {}).items():
        for name in names:
            if (owner := of_name.get(parts(name, one)[0])) is not None:
                kept[owner].groups.add(group)
    return kept


def _distinct(icons: Mapping[str, Any], names: list[str]) -> list[str]:
    """Return the first names with different drawings."""
    bodies: dict[str, str] = {}
    for name in names:
        bodies.setdefault(_shape(icons, name), name)
    return list(bodies.values())[:MOST_VARIANTS]


def alias_pairs(read: Mapping[str, Mapping[Key, Icon]]) -> list[tuple[Key, Key]]:
    """Return (alias key, category key) pairs of all sets; an alias of two categories of one set is left out."""
    pairs = []
    for icons in read.values():
        owners: dict[Key, set[Key]] = {}
        for key, icon in icons.items():
            for alias in icon.aliases:
                owners.setdefault(key_of(alias), set()).add(key)
        pairs += [(alias, *keys) for alias, keys in owners.items() if len(keys) == 1 and alias not in icons]
    return [(alias, key) for alias, key in pairs]


def join_sets(read: Mapping[str, Mapping[Key, Icon]]) -> dict[Key, dict[str, Icon]]:
    """Return {category key: {set: its icon}} with aliases joined where they are unambiguous."""
    vendors: dict[Key, set[str]] = {}
    for prefix, icons in read.items():
        for key in icons:
            vendors.setdefault(key, set()).add(prefix)
    roots = joined_keys(vendors, alias_pairs(read))
    joined: dict[Key, dict[str, Icon]] = {}
    for prefix, icons in read.items():
        for key, icon in icons.items():
            joined.setdefault(roots[key], {})[prefix] = icon
    return joined
