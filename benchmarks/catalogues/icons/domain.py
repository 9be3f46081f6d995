"""The domain of icons: shapes of one thing by many vendors, with tags and names."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.catalogues.domain import Artist, Category, Domain
from benchmarks.catalogues.icons.names import Key, words
from benchmarks.catalogues.icons.sets import (
    SETS,
    TAGS_PACKAGE,
    Icon,
    IconSet,
    join_sets,
    licence_of,
    parts,
    read_json,
    read_set,
)
from examples.emoji.drawings import RENDERING_VERSION, SIZE, Drawing, draw, icon_svg
from examples.emoji.packages import install_packages, package_version
from examples.emoji.protocol import twin_groups

HERE = Path(__file__).resolve().parent
LEAST_VENDORS = 2  # one for documents, another for queries


def load_domain(cache: Path, *, workers: int, sets: Sequence[IconSet] = SETS) -> Domain:
    """Install the packages, render icons that are not in the cache, and return the domain."""
    node_modules = install_packages(cache, listed=HERE)
    read = {
        one.prefix: read_set(
            read_json(node_modules / one.package / "icons.json"),
            read_json(node_modules / one.package / "metadata.json"),
            one,
        )
        for one in sets
    }
    joined = {key: icons for key, icons in join_sets(read).items() if len(icons) >= LEAST_VENDORS}
    drawn = {one.prefix: _drawn(node_modules, one, joined, cache=cache, workers=workers) for one in sets}
    drawings = _by_category(joined, drawn)
    tags = _tags(node_modules)
    categories = [category_of(key, joined[key], tags) for key in joined if " ".join(key) in drawings]
    artists = [_artist(node_modules, one) for one in sets]
    source = Artist(
        "words", TAGS_PACKAGE, package_version(node_modules, TAGS_PACKAGE), "MIT", "https://tabler.io/icons"
    )
    return Domain("icons", categories, drawings, artists, painted=True, words=[source])


def _artist(node_modules: Path, one: IconSet) -> Artist:
    author = read_json(node_modules / one.package / "info.json")["author"]
    licence, release = licence_of(node_modules, one), package_version(node_modules, one.package)
    return Artist(one.prefix, one.package, release, licence, str(author.get("url", "")))


def _drawn(
    node_modules: Path, one: IconSet, joined: Mapping[Key, Mapping[str, Icon]], *, cache: Path, workers: int
) -> dict[str, Drawing]:
    names = sorted({name for icons in joined.values() if one.prefix in icons for name in icons[one.prefix].names})
    icons = read_json(node_modules / one.package / "icons.json")
    source = (one.package, package_version(node_modules, one.package), SIZE, RENDERING_VERSION)
    digest = hashlib.sha256(repr((source, version("resvg_py"), version("pillow"))).encode()).hexdigest()[:12]
    folder = cache / "drawings" / f"{one.prefix}-{digest}"
    read = partial(_svgs, icons)
    return draw({name: name for name in names}, folder, read=read, label=one.prefix, workers=workers)


def _svgs(icons: Mapping[str, object], names: Sequence[str]) -> list[str]:
    return [icon_svg(icons, name) for name in names]


def _by_category(
    joined: Mapping[Key, Mapping[str, Icon]], drawn: Mapping[str, Mapping[str, Drawing]]
) -> dict[str, dict[str, list[bytes]]]:
    """Drawings of the categories that two vendors draw, and of one category only where pictures are equal."""
    first = {
        prefix: {
            " ".join(key): drawn[prefix][icons[prefix].names[0]]
            for key, icons in joined.items()
            if prefix in icons and icons[prefix].names[0] in drawn[prefix]
        }
        for prefix in drawn
    }
    order = sorted(joined, key=lambda key: (-len(joined[key]), key))
    twins = twin_groups([" ".join(key) for key in order], first)
    found: dict[str, dict[str, list[bytes]]] = {}
    for key, icons in joined.items():
        name = " ".join(key)
        if twins[name] != name:
            continue
        pictures = {
            prefix: [drawn[prefix][one].png for one in icon.names if one in drawn[prefix]]
            for prefix, icon in icons.items()
        }
        pictures = {prefix: rows for prefix, rows in pictures.items() if rows}
        if len(pictures) >= LEAST_VENDORS:
            found[name] = pictures
    return found


def _tags(node_modules: Path) -> dict[str, tuple[str, ...]]:
    """Return {icon name: tags} of the one package with tags."""
    listed = read_json(node_modules / TAGS_PACKAGE / "icons.json")
    return {name: tuple(str(tag) for tag in icon.get("tags", ())) for name, icon in listed.items()}


def category_of(key: Key, icons: Mapping[str, Icon], tags: Mapping[str, tuple[str, ...]]) -> Category:
    """Return a category with its words: tags of one vendor, the aliases and other names of all."""
    sets = {one.prefix: one for one in SETS}
    named = [parts(icon.names[0], sets[prefix])[0] for prefix, icon in icons.items()]
    aliases = sorted({alias for icon in icons.values() for alias in icon.aliases})
    groups = sorted({group for icon in icons.values() for group in icon.groups})
    # The label holds the words of the key and, before synonyms, of the name that most vendors use.
    usual = max(sorted(set(named)), key=named.count)
    names = tuple(dict.fromkeys(name.replace("-", " ") for name in (*sorted(set(named)), *aliases)))
    listed = tags.get(icons["tabler"].names[0], ()) if "tabler" in icons else ()
    label = " ".join((*key, *usual.split("-")))
    near = tuple(dict.fromkeys(word for name in named for word in words(name)))
    leaf = groups[0] if groups else ""
    return Category(" ".join(key), label, leaf, near, tags=(*listed, *groups), names=names)
