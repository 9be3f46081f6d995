"""Render the drawings of every style at 128 px and cache them as Parquet.

SVG is rendered by resvg, which is deterministic and reads no system fonts; WebP is read by Pillow. The name of a cache
file is a hash of everything that its pixels depend on (package versions, sizes, keys), so that outdated drawings are
never used, and an interrupted run continues where it stopped.
"""

import hashlib
import io
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image
from tqdm import tqdm

from examples.emoji.packages import Style, package_version, rename_into_place, styles_of

SIZE = 128  # edge of a rendered drawing in pixels
RENDERING_VERSION = "1"  # part of the cache key: raise it when the rendering code changes
PART = 1_000  # drawings in one cache file
SMALL = 200  # up to this many items no worker processes are started
Item = TypeVar("Item")
Result = TypeVar("Result")


class Repeatable(Protocol):
    """Input of a rendering that can be made again with other random choices."""

    def next_attempt(self) -> Self: ...


Shots = TypeVar("Shots", bound=Repeatable)


@dataclass(frozen=True)
class Drawing:
    """One rendered drawing: PNG bytes (128 x 128 RGBA) and the hash of its visible pixels."""

    png: bytes
    pixels: str


def plain_key(hexcode: str) -> str:
    """Return the category key of a code point sequence: lower case, without the variation selector FE0F."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def listed_drawings(node_modules: Path, style: Style) -> dict[str, str]:
    """Return {category key: drawing} of one package; a drawing is an icon name, or a file name below assets/."""
    folder = node_modules / style.package
    package_version(node_modules, style.package)
    if (folder / "assets").is_dir():
        return {plain_key(path.stem): path.name for path in sorted((folder / "assets").glob("*.webp"))}
    names: dict[str, str] = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    if not names:
        names = _codes_by_name(node_modules, style)
    if not names:
        raise ValueError(f"{style.package} has no emoji with a known code point or name; reinstall packages")
    return {plain_key(code): name for code, name in sorted(names.items())}


def _codes_by_name(node_modules: Path, style: Style) -> dict[str, str]:
    """Return {code points: icon name} for a package with an empty chars.json, such as those of the retired styles.

    Its icons are matched by their exact name (the CLDR label) with packages that list code points. Ambiguous names and
    names without a match are left out.
    """
    icons = json.loads((node_modules / style.package / "icons.json").read_text(encoding="utf-8"))["icons"]
    codes: dict[str, set[str]] = {}
    for other in (*styles_of("query"), *styles_of("document")):
        path = node_modules / other.package / "chars.json"
        listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for code, name in listed.items():
            codes.setdefault(name, set()).add(code)
    return {min(found): name for name, found in codes.items() if len(found) == 1 and name in icons}


def icon_svg(icons: Mapping[str, Any], name: str) -> str:
    """Return the SVG text of an icon, or of the icon that an alias stands for, in an Iconify `icons.json`."""
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
    return f'{opening} width="{SIZE}" height="{SIZE}">{icon["body"]}</svg>'


def _render(source: str | bytes) -> Drawing | None:
    """Render SVG text or WebP bytes; None if no pixel is visible."""
    raw = source
    if isinstance(raw, str):
        raw = bytes(resvg_py.svg_to_bytes(svg_string=raw, width=SIZE, height=SIZE, skip_system_fonts=True))
    with Image.open(io.BytesIO(raw)) as opened:
        image = opened.convert("RGBA")
    if image.size != (SIZE, SIZE):
        image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
        square = Image.new("RGBA", (SIZE, SIZE))
        square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        image = square
    pixels = np.array(image)
    pixels[pixels[:, :, 3] == 0] = 0
    if not pixels.any():
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return Drawing(buffer.getvalue(), hashlib.blake2b(pixels.tobytes(), digest_size=12).hexdigest())


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, description: str
) -> Iterator[Result]:
    """Apply a function to items in worker processes, results in the order of the items, with a progress bar."""
    bar: Iterable[Result]
    if workers <= 1 or len(items) < SMALL:
        yield from tqdm(
            map(function, items), total=len(items), desc=description, unit="image", leave=False, mininterval=0.5
        )
        return
    # spawn: a forked copy of a process with running Arrow threads may hang.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        bar = pool.imap(function, items, chunksize=32)
        yield from tqdm(bar, total=len(items), desc=description, unit="image", leave=False, mininterval=0.5)


def distinct_pictures(
    render: Callable[[Shots], bytes], jobs: Sequence[Shots], *, workers: int, description: str
) -> list[bytes]:
    """Render pictures, and render again, as another attempt, what is byte-equal to an earlier one."""
    found = list(map_in_order(render, jobs, workers=workers, description=description))
    seen: set[bytes] = set()
    for index, job in enumerate(jobs):
        while found[index] in seen:
            job = job.next_attempt()
            found[index] = render(job)
        seen.add(found[index])
    return found


def _sources(node_modules: Path, style: Style, names: Sequence[str]) -> list[str | bytes]:
    folder = node_modules / style.package
    if (folder / "assets").is_dir():
        return [(folder / "assets" / name).read_bytes() for name in names]
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    return [icon_svg(icons, name) for name in names]


def load_drawings(
    node_modules: Path, style: Style, keys: Iterable[str], *, cache: Path, workers: int
) -> dict[str, Drawing]:
    """Return the drawings of one style by category key, and render those that are not in the cache.

    Args:
        node_modules: folder of the installed packages.
        style: style of the drawings.
        keys: requested category keys; those without a drawing, or with an empty one, are left out.
        cache: cache folder of this example; drawings are in its folder `drawings/`.
        workers: rendering processes.
    """
    listed = listed_drawings(node_modules, style)
    wanted = sorted(key for key in set(keys) if key in listed)
    source = (style.package, package_version(node_modules, style.package), SIZE, RENDERING_VERSION)
    tools = (version("resvg_py"), version("pillow"))
    folder = cache / "drawings" / f"{style.name}-{hashlib.sha256(repr((source, tools)).encode()).hexdigest()[:12]}"
    names = {key: listed[key] for key in wanted}
    return draw(names, folder, read=lambda part: _sources(node_modules, style, part), label=style.name, workers=workers)


def draw(
    names: Mapping[str, str],
    folder: Path,
    *,
    read: Callable[[Sequence[str]], Sequence[str | bytes]],
    label: str,
    workers: int,
) -> dict[str, Drawing]:
    """Return the drawings of one package by key, and render those that are not in the cache.

    Args:
        names: {key: drawing}, in the order of rendering.
        folder: cache folder of this package; its name changes with the version and with everything that pixels
            depend on.
        read: returns the SVG texts or WebP bytes of some drawings.
        label: of the progress bar.
        workers: rendering processes.
    """
    wanted = list(names)
    found: dict[str, Drawing] = {}
    for start in range(0, len(wanted), PART):
        part = wanted[start : start + PART]
        listed = [names[key] for key in part]
        path = folder / f"{hashlib.sha256(repr((part, listed)).encode()).hexdigest()[:16]}.parquet"
        if not path.is_file():
            title = f"draw {label} {start // PART + 1}/{-(-len(wanted) // PART)}"
            drawn = list(map_in_order(_render, read(listed), workers=workers, description=title))
            _write_part(path, dict(zip(part, drawn, strict=True)))
        found |= _read_part(path)
    return found


def _write_part(path: Path, drawn: dict[str, Drawing | None]) -> None:
    rows = [{"key": key, "png": one.png, "pixels": one.pixels} for key, one in drawn.items() if one is not None]
    schema = pa.schema({"key": pa.string(), "png": pa.binary(), "pixels": pa.string()})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".partial", dir=path.parent)
    os.close(handle)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), name)
    rename_into_place(Path(name), path)


def _read_part(path: Path) -> dict[str, Drawing]:
    table = pq.read_table(path).to_pydict()
    rows = zip(table["key"], table["png"], table["pixels"], strict=True)
    return {key: Drawing(png, pixels) for key, png, pixels in rows}
