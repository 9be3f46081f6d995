"""Furniture of Debian's package sweethome3d-furniture: products, words and models."""

import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.catalogues.domain import UnavailableError
from examples.emoji.packages import rename_into_place

PACKAGE, VERSION = "sweethome3d-furniture", "1.8-1"
INSTALLED = Path("/usr/share/sweethome3d/furniture")
# The library Reallusion holds human figures only.
LIBRARIES = ("Scopia", "KatorLegaz")
PROJECTS = {"Scopia": "http://www.scopia.es", "KatorLegaz": "http://www.katorlegaz.com"}
LICENCE = "CC-BY-3.0"
LANGUAGES = ("de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru")
# People, and what may carry a maker's name or badge.
LEFT_OUT_SHELVES = frozenset(("Characters", "Vehicles"))
BRANDS = re.compile("apple|ipad|imac|playstation|ps4|yamaha|peugeot|renault|seat_leon|smart-car|chevrolet|vw-", re.I)
ENTRY = re.compile(r"^(\w+)#(\d+)=(.*)$", re.M)
CATALOGUE = "PluginFurnitureCatalog"


@dataclass(frozen=True)
class Product:
    """One piece: its words, and the members of the library's archive with picture and model.

    Attributes:
        key: library and name of the model.
        words: {language: (name, *tags)}; "en" is always there.
        rotation: 9 numbers, row by row, that turn the model to its front.
    """

    key: str
    library: str
    name: str
    shelf: str
    tags: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]]
    picture: str
    model: str
    rotation: tuple[float, ...]


def libraries(cache: Path) -> dict[str, Path]:
    """Return {library: its archive}; the package is downloaded into the cache unless it is installed.

    Raises:
        UnavailableError: neither the package nor a way to download it is there.
    """
    folder = INSTALLED if all((INSTALLED / f"{name}.sh3f").is_file() for name in LIBRARIES) else _downloaded(cache)
    return {name: folder / f"{name}.sh3f" for name in LIBRARIES}


def _downloaded(cache: Path) -> Path:
    final = cache / f"{PACKAGE}-{VERSION}"
    if not final.is_dir():
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise UnavailableError(f"furniture needs Debian's package {PACKAGE}, and this machine has no apt-get")
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="apt-", suffix=".partial", dir=cache))
        try:
            _run(["apt-get", "download", f"{PACKAGE}={VERSION}"], partial)
            [archive] = partial.glob("*.deb")
            _run(["dpkg-deb", "--extract", archive.name, "files"], partial)
            rename_into_place(partial / "files" / INSTALLED.relative_to("/"), final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        cause = (done.stderr or done.stdout).strip()[-300:]
        raise UnavailableError(f"furniture needs Debian's package {PACKAGE} {VERSION}: {' '.join(command)}: {cause}")


def read_products(archive: Path, library: str) -> list[Product]:
    """Return the products of a library, without people, vehicles and brands."""
    with zipfile.ZipFile(archive) as opened:
        english = _entries(opened, "")
        others = {code: _entries(opened, f"_{code}") for code in LANGUAGES}
    found = []
    for number, entry in english.items():
        shelf, model = entry.get("category", ""), entry.get("model", "").lstrip("/")
        if not model or shelf in LEFT_OUT_SHELVES or BRANDS.search(f"{model} {entry['name']}"):
            continue
        words = {code: _words(rows[number]) for code, rows in others.items() if number in rows}
        numbers = tuple(float(part) for part in entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split())
        tags = _words(entry)[1:]
        key = f"{library} {Path(model).stem}"
        picture = entry["icon"].lstrip("/")
        found.append(Product(key, library, entry["name"], shelf, tags, words, picture, model, numbers))
    return found


def _words(entry: Mapping[str, str]) -> tuple[str, ...]:
    tags = [tag.strip() for tag in entry.get("tags", "").split(",")]
    return (entry.get("name", ""), *(tag for tag in tags if tag))


def _entries(opened: zipfile.ZipFile, suffix: str) -> dict[str, dict[str, str]]:
    """Return {number: {field: value}} of a Java properties file; {} if the archive lacks it."""
    name = f"{CATALOGUE}{suffix}.properties"
    if name not in opened.namelist():
        return {}
    text = opened.read(name).decode("latin-1").replace("\r\n", "\n")
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    entries: dict[str, dict[str, str]] = {}
    for field, number, value in ENTRY.findall(text):
        entries.setdefault(number, {})[field] = value.strip()
    return entries
