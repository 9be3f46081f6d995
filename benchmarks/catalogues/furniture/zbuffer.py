"""Pictures of a model: points on its triangles, the nearest one wins a pixel.

Every triangle is sampled in proportion to its area in the picture, at twice the size of the result. Letters: T
triangles, P points, S pixels of an edge.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.catalogues.furniture.model import Floats, Mesh

OVERSAMPLING = 2
DENSITY = 4.0  # points per pixel
MOST_POINTS = 4_000_000
MARGIN = 0.06  # of an edge
LIGHT = np.array([0.4, 0.75, 0.55], dtype=np.float32)  # from the right, above and the front
AMBIENT = 0.45


def turned(corner_T33: Floats, *, azimuth: float, elevation: float) -> Floats:
    """Turn a model about its vertical axis, then tilt it towards the viewer, who looks along -z; degrees."""
    a, e = np.radians([azimuth, elevation])
    around = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    return (corner_T33 @ (tilt @ around).T).astype(np.float32)


def view(mesh: Mesh, *, azimuth: float, elevation: float, size: int = 128) -> bytes:
    """Render a model as PNG with transparency: parallel projection, light from the viewer's upper right.

    Args:
        mesh: triangles; y points upwards, z to the front.
        azimuth: 0 = front, 90 = its right side, 180 = back.
        elevation: 0 = level, 90 = from above.
        size: edge in pixels.
    """
    edge = size * OVERSAMPLING
    corner_T33 = turned(mesh.corner_T33, azimuth=azimuth, elevation=elevation)
    low, high = corner_T33.reshape(-1, 3).min(axis=0), corner_T33.reshape(-1, 3).max(axis=0)
    scale = edge * (1 - 2 * MARGIN) / max(float((high - low)[:2].max()), 1e-9)
    pixel_T33 = (corner_T33 - (low + high) / 2) * scale + edge / 2
    shade_T = _shade(corner_T33)
    triangle_P, weight_P3 = _points(pixel_T33)
    point_P3 = np.einsum("pc,pcd->pd", weight_P3, pixel_T33[triangle_P])
    colour_P3 = _colours(mesh, triangle_P, weight_P3) * shade_T[triangle_P, None]
    column_P, row_P = point_P3[:, 0].astype(np.int64), (edge - point_P3[:, 1]).astype(np.int64)
    inside_P = (column_P >= 0) & (column_P < edge) & (row_P >= 0) & (row_P < edge)
    order = np.argsort(point_P3[:, 2], kind="stable")
    order = order[inside_P[order]]
    picture_SS4 = np.zeros((edge, edge, 4), dtype=np.float32)
    # Of several values for one pixel numpy keeps the last, here the nearest.
    picture_SS4[row_P[order], column_P[order], :3] = colour_P3[order]
    picture_SS4[row_P[order], column_P[order], 3] = 1.0
    return _png(picture_SS4, size)


def _shade(corner_T33: Floats) -> Floats:
    """Brightness of every triangle, 0..1, the same from both sides."""
    normal_T3 = np.cross(corner_T33[:, 1] - corner_T33[:, 0], corner_T33[:, 2] - corner_T33[:, 0])
    normal_T3 /= np.maximum(np.linalg.norm(normal_T3, axis=1, keepdims=True), 1e-12)
    light = LIGHT / np.linalg.norm(LIGHT)
    return (AMBIENT + (1 - AMBIENT) * np.abs(normal_T3 @ light)).astype(np.float32)


def _points(pixel_T33: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Triangle and weights of its corners for every point; the points of a triangle are spread evenly (R2 sequence)."""
    first, second = pixel_T33[:, 1] - pixel_T33[:, 0], pixel_T33[:, 2] - pixel_T33[:, 0]
    area_T = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
    density = min(DENSITY, MOST_POINTS / max(float(area_T.sum()), 1.0))
    count_T = np.ceil(area_T * density).astype(np.int64) + 1
    triangle_P = np.repeat(np.arange(len(count_T)), count_T)
    number_P = np.arange(len(triangle_P)) - np.repeat(np.cumsum(count_T) - count_T, count_T)
    u_P, v_P = (0.5 + number_P * 0.7548776662) % 1, (0.5 + number_P * 0.5698402910) % 1
    u_P, v_P = np.where(u_P + v_P > 1, 1 - u_P, u_P), np.where(u_P + v_P > 1, 1 - v_P, v_P)
    return triangle_P, np.stack([1 - u_P - v_P, u_P, v_P], axis=1).astype(np.float32)


def _colours(mesh: Mesh, triangle_P: NDArray[np.int64], weight_P3: Floats) -> Floats:
    """Colour of every point, 0..1: of its material, or of the texture at its place."""
    material_P = mesh.material_T[triangle_P]
    colour_P3 = np.asarray([one.colour for one in mesh.materials], dtype=np.float32)[material_P]
    for number, one in enumerate(mesh.materials):
        if one.texture is None or not (chosen := material_P == number).any():
            continue
        uv = np.einsum("pc,pcd->pd", weight_P3[chosen], mesh.uv_T32[triangle_P[chosen]]) % 1
        height, width = one.texture.shape[:2]
        rows, columns = ((1 - uv[:, 1]) * (height - 1)).astype(int), (uv[:, 0] * (width - 1)).astype(int)
        colour_P3[chosen] = one.texture[rows, columns] / 255
    return np.clip(colour_P3, 0, 1)


def _png(picture_SS4: Floats, size: int) -> bytes:
    """Reduce a picture; a pixel has the mean colour of its covered parts."""
    blocks = picture_SS4.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 4)
    alpha = blocks[..., 3].mean(axis=(1, 3))
    colour = (blocks[..., :3] * blocks[..., 3:]).mean(axis=(1, 3)) / np.maximum(alpha, 1e-6)[..., None]
    pixels = np.concatenate([colour, alpha[..., None]], axis=2)
    buffer = io.BytesIO()
    Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8), "RGBA").save(buffer, "PNG")
    return buffer.getvalue()
