"""The domain of emoji: queries by two artists, documents by two others."""

from pathlib import Path

from benchmarks.catalogues.domain import Artist, Category, Domain
from examples.emoji.dataset import Settings, make_dataset
from examples.emoji.packages import (
    STYLES,
    WORDS_LICENCE,
    WORDS_PACKAGE,
    WORDS_PROJECT,
    Style,
    default_cache,
    install_packages,
    package_version,
)


def load_domain(cache: Path | None = None, *, workers: int, limit: int | None = None) -> Domain:
    """Install the packages of the demo, render drawings that are not in its cache, and return the domain."""
    folder = cache or default_cache()
    node_modules = install_packages(folder)
    dataset = make_dataset(Settings(limit_categories=limit), node_modules, cache=folder, workers=workers)
    drawings: dict[str, dict[str, list[bytes]]] = {}
    categories = []
    for one in dataset.categories:
        if dataset.twins[one.key] != one.key:
            continue  # drawn like another category: a judgement could not tell them apart
        drawings[one.key] = {
            style: [drawn[one.key].png] for style, drawn in dataset.drawings.items() if one.key in drawn
        }
        near = (f"subgroup {one.subgroup}", f"group {one.group}")
        names = tuple(code.replace("_", " ") for code in one.shortcodes)
        categories.append(
            Category(one.key, one.label, one.leaf, near, tags=one.tags, names=names, other=one.translations)
        )
    artists = [_artist(node_modules, style) for style in STYLES if style.name in dataset.drawings]
    release = package_version(node_modules, WORDS_PACKAGE)
    words = Artist("words", WORDS_PACKAGE, release, WORDS_LICENCE, WORDS_PROJECT)
    kept = [one for one in categories if _both_roles(drawings[one.key])]
    return Domain("emoji", kept, drawings, artists, painted=False, words=[words])


def _both_roles(drawn: dict[str, list[bytes]]) -> bool:
    roles = {style.name: style.role for style in STYLES}
    return {"query", "document"} <= {roles[name] for name in drawn}


def _artist(node_modules: Path, style: Style) -> Artist:
    release = package_version(node_modules, style.package)
    return Artist(style.name, style.package, release, style.licence, style.project, style.role)
