"""The domain of furniture: catalogue pictures as documents, other views of the models as queries."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.catalogues.domain import Artist, Category, Domain
from benchmarks.catalogues.furniture.library import (
    LICENCE,
    PACKAGE,
    PROJECTS,
    VERSION,
    Product,
    libraries,
    read_products,
)
from benchmarks.catalogues.furniture.model import archive_reader, read_mesh
from benchmarks.catalogues.furniture.zbuffer import view
from examples.emoji.drawings import Drawing, draw, map_in_order
from examples.emoji.protocol import twin_groups

RENDERING = "1"  # part of the cache key: raise it when the renderer changes
PICTURE = "catalogue picture"
# Azimuth and elevation of each rendered view, in degrees.
VIEWS = {"studio": (35.0, 20.0), "side": (80.0, 10.0), "back": (160.0, 15.0), "above": (20.0, 65.0)}
ROLES = {PICTURE: "document", "studio": "document", "side": "query", "back": "query", "above": "query"}
PART = 50  # products in one cache file


class Shoot(NamedTuple):
    """Input of one rendering job: a product and the archive of its library."""

    archive: Path
    product: Product


def load_domain(cache: Path, *, workers: int) -> Domain:
    """Download the package, render models that are not in the cache, and return the domain.

    Raises:
        UnavailableError: the package is not to be had on this machine.
    """
    archives = libraries(cache)
    shoots = [Shoot(path, one) for library, path in archives.items() for one in read_products(path, library)]
    return domain_of(shoots, cache / "drawings" / f"furniture-{_digest(archives)}", workers=workers)


def _digest(archives: dict[str, Path]) -> str:
    sizes = [(name, path.stat().st_size) for name, path in sorted(archives.items())]
    return hashlib.sha256(repr((VERSION, sizes, VIEWS, RENDERING)).encode()).hexdigest()[:12]


def domain_of(shoots: Sequence[Shoot], folder: Path, *, workers: int) -> Domain:
    """Return the domain of some products; `folder` keeps their pictures."""
    drawn: dict[str, Drawing] = {}
    for start in range(0, len(shoots), PART):
        drawn |= _drawn(shoots[start : start + PART], folder, workers=workers)
    keys = [one.product.key for one in shoots]
    by_artist = {name: {key: drawn[_name(key, name)] for key in keys if _name(key, name) in drawn} for name in ROLES}
    twins = twin_groups(keys, by_artist)
    complete = [key for key in keys if twins[key] == key and all(key in found for found in by_artist.values())]
    drawings = {key: {name: [found[key].png] for name, found in by_artist.items()} for key in complete}
    products = {one.product.key: one.product for one in shoots}
    categories = [category_of(products[key]) for key in complete]
    used = sorted({products[key].library for key in complete})
    project = ", ".join(PROJECTS.get(name, name) for name in used)
    artists = [Artist(name, PACKAGE, VERSION, LICENCE, project, role) for name, role in ROLES.items()]
    return Domain("furniture", categories, drawings, artists, painted=False)


def _name(key: str, artist: str) -> str:
    return f"{key}\t{artist}"


def _drawn(shoots: Sequence[Shoot], folder: Path, *, workers: int) -> dict[str, Drawing]:
    """Pictures of some products, by product and artist; a model without a visible triangle has none."""
    names = {_name(one.product.key, artist): _name(one.product.key, artist) for one in shoots for artist in ROLES}

    def read(listed: Sequence[str]) -> list[str | bytes]:
        label = f"models {shoots[0].product.key}"
        found = [row for rows in map_in_order(pictures, shoots, workers=workers, description=label) for row in rows]
        assert len(found) == len(listed), "pictures come in the order of the names"
        return list(found)

    return draw(names, folder, read=read, label="furniture", workers=1)


def pictures(shoot: Shoot) -> list[bytes]:
    """Return the catalogue picture and the views of a product, in the order of `ROLES`; clear ones without a model."""
    with zipfile.ZipFile(shoot.archive) as opened:
        read = archive_reader(opened)
        mesh = read_mesh(read, shoot.product.model)
        found = [read(shoot.product.picture) or EMPTY]
    if mesh is None:
        return [*found, *(EMPTY for _ in VIEWS)]
    rotation = np.asarray(shoot.product.rotation, dtype=np.float32).reshape(3, 3)
    mesh.corner_T33 = mesh.corner_T33 @ rotation.T
    return [*found, *(view(mesh, azimuth=azimuth, elevation=elevation) for azimuth, elevation in VIEWS.values())]


def category_of(one: Product) -> Category:
    """Return a product as a category: its shelf and tags make it similar to others."""
    near = (f"shelf {one.shelf}", *one.tags, *one.name.lower().split())
    return Category(one.key, one.name, one.shelf, near, tags=one.tags, other=dict(one.words))


def _clear() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()


EMPTY = _clear()
