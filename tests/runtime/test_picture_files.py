"""Picture files are found as people write their paths, below the folder of the table only."""

import base64
import unicodedata
from pathlib import Path

import pytest

from data_governance.inputs.tables import image_bytes
from retrieval.pictures import PictureError, decode
from runtime.picture_files import PictureFileError, find_picture_file, read_picture_file
from tests.support.awkward_images import scene
from tests.support.images import encode

PNG = encode(scene())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table's folder with a picture in a folder of its own, and a picture beside the table's folder."""
    (tmp_path / "table" / "pictures").mkdir(parents=True)
    for name in ("a.png", "a b.png", "caf\u00e9.png"):
        (tmp_path / "table" / "pictures" / name).write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "table" / "loop.png").symlink_to("loop.png")
    return tmp_path / "table"


@pytest.mark.parametrize(
    "name",
    ["pictures/a.png", "./pictures/a.png", "pictures//a.png", "pictures\\a.png", ".\\pictures\\a b.png"]
    + [unicodedata.normalize(form, "pictures/caf\u00e9.png") for form in ("NFC", "NFD")],
)
def test_a_path_is_found_as_any_system_writes_it(folder: Path, name: str) -> None:
    assert read_picture_file(name, folder, max_bytes=len(PNG)) == PNG
    assert image_bytes({"bytes": None, "path": name}, folder, max_bytes=len(PNG)) == (PNG, None)
    assert decode(name, folder=folder) is not None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.png", "image_file_missing"),
        ("pictures", "image_file_missing"),
        ("loop.png", "image_file_missing"),
        ("a\0b.png", "image_file_missing"),
        ("a" * 5000, "image_file_missing"),
        ("~/a.png", "image_file_missing"),
        ("C:\\pictures\\a.png", "image_file_missing"),
        ("../secret.png", "image_path_escapes_folder"),
        ("..\\secret.png", "image_path_escapes_folder"),
        ("/etc/hostname", "image_path_escapes_folder"),
        ("https://shop.example/a.png", "image_is_a_url"),
        ("S3://shop/a.png", "image_is_a_url"),
        ("file:///etc/hostname", "image_is_a_url"),
        ("data:image/png;base64," + base64.b64encode(PNG).decode(), "image_is_base64"),
        (base64.b64encode(PNG).decode(), "image_is_base64"),
        ("/9j/" + "A" * 9000, "image_is_base64"),
    ],
)
def test_what_is_no_picture_file_is_refused_with_its_reason(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(PictureFileError) as caught:
        read_picture_file(name, folder, max_bytes=10**9)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 200
    assert image_bytes({"bytes": None, "path": name}, folder, max_bytes=10**9) == (None, reason)
    with pytest.raises(PictureError, match="image"):
        decode(name, folder=folder)


def test_a_table_without_a_folder_and_a_large_file_are_refused(folder: Path) -> None:
    with pytest.raises(PictureFileError, match="in a table that has no folder: embed the bytes"):
        find_picture_file("pictures/a.png", None)
    with pytest.raises(PictureFileError, match=f"image file of {len(PNG)} bytes is over 9 bytes"):
        read_picture_file("pictures/a.png", folder, max_bytes=9)


def test_base64_in_a_column_of_bytes_is_named() -> None:
    with pytest.raises(PictureError, match="it is base64 text: store the bytes that it encodes"):
        decode(base64.b64encode(PNG), folder=None)
