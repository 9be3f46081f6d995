"""Read Wavefront OBJ models with colours and textures as triangles.

Letters: V vertices, U texture coordinates, T triangles.
"""

import io
import posixpath
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Read = Callable[[str], bytes | None]
GREY = (0.7, 0.7, 0.7)
LEAST_OPACITY = 0.35  # glass that is clearer is left out
TEXTURE_SIZE = 256  # larger textures are reduced


@dataclass
class Material:
    """Colour 0..1 and perhaps a texture, (height, width, 3)."""

    colour: tuple[float, ...] = GREY
    texture: Bytes | None = None
    opacity: float = 1.0


@dataclass
class Mesh:
    """Triangles: corners, texture coordinates (0 without), number of the material."""

    corner_T33: Floats
    uv_T32: Floats
    material_T: NDArray[np.int64]
    materials: list[Material]


@dataclass
class _Lines:
    vertices: list[list[float]] = field(default_factory=list)
    coordinates: list[list[float]] = field(default_factory=list)
    triangles: list[tuple[int, ...]] = field(default_factory=list)
    uv: list[tuple[int, ...]] = field(default_factory=list)
    material: list[int] = field(default_factory=list)


def read_mesh(read: Read, name: str) -> Mesh | None:
    """Return a model; None without a visible triangle.

    Args:
        read: returns the bytes of a file of the archive; None if there is none.
        name: of the OBJ file; materials and textures are named relative to it.
    """
    found, names, materials = _Lines(), {"": 0}, [Material()]
    current = 0
    for line in (read(name) or b"").decode("latin-1").splitlines():
        kind, _, rest = line.strip().partition(" ")
        if kind == "v":
            found.vertices.append([float(part) for part in rest.split()[:3]])
        elif kind == "vt":
            found.coordinates.append([float(part) for part in rest.split()[:2]])
        elif kind == "f":
            _face(found, rest.split(), current)
        elif kind == "usemtl":
            current = names.get(rest.strip(), 0)
        elif kind == "mtllib":
            for key, material in _materials(read, posixpath.join(posixpath.dirname(name), rest.strip())).items():
                names[key] = len(materials)
                materials.append(material)
    return _mesh(found, materials)


def _face(found: _Lines, corners: list[str], material: int) -> None:
    """Add a polygon as a fan of triangles; numbers count from 1, negative ones from the end."""
    numbers, uv = [], []
    for corner in corners:
        parts = corner.split("/")
        number = int(parts[0])
        numbers.append(number - 1 if number > 0 else len(found.vertices) + number)
        place = int(parts[1]) if len(parts) > 1 and parts[1] else 0
        uv.append(place - 1 if place > 0 else len(found.coordinates) + place if place else -1)
    for second in range(1, len(numbers) - 1):
        found.triangles.append((numbers[0], numbers[second], numbers[second + 1]))
        found.uv.append((uv[0], uv[second], uv[second + 1]))
        found.material.append(material)


def _mesh(found: _Lines, materials: list[Material]) -> Mesh | None:
    if not found.triangles:
        return None
    vertex_V3 = np.asarray(found.vertices, dtype=np.float32)
    # One row more: the coordinates of corners without any (-1).
    uv_U2 = np.asarray([*found.coordinates, [0.0, 0.0]], dtype=np.float32)
    material_T = np.asarray(found.material)
    visible_T = np.asarray([one.opacity >= LEAST_OPACITY for one in materials])[material_T]
    if not visible_T.any():
        return None
    corner_T33 = vertex_V3[np.asarray(found.triangles)]
    return Mesh(corner_T33[visible_T], uv_U2[np.asarray(found.uv)][visible_T], material_T[visible_T], materials)


def _materials(read: Read, name: str) -> dict[str, Material]:
    found: dict[str, Material] = {}
    current = Material()
    for line in (read(name) or b"").decode("latin-1").splitlines():
        kind, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if kind == "newmtl":
            current = found.setdefault(rest, Material())
        elif kind == "Kd":
            current.colour = tuple(float(part) for part in rest.split()[:3])
        elif kind == "d":
            current.opacity = float(rest.split()[-1])
        elif kind == "map_Kd":
            data = read(posixpath.join(posixpath.dirname(name), rest.split()[-1]))
            current.texture = None if data is None else _texture(data)
    return found


def _texture(data: bytes) -> Bytes:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((TEXTURE_SIZE, TEXTURE_SIZE))
    return np.asarray(image)


def archive_reader(opened: zipfile.ZipFile) -> Read:
    """Return a function that reads members of an archive, whose names may differ in upper and lower case."""
    members = {name.lower(): name for name in opened.namelist()}

    def read(name: str) -> bytes | None:
        member = members.get(posixpath.normpath(name).lower())
        return None if member is None else opened.read(member)

    return read
