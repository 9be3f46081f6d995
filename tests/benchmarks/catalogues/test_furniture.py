"""Furniture on a tiny library: words, models, views, and a package that is not to be had."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.catalogues import runner
from benchmarks.catalogues.cell import Cell
from benchmarks.catalogues.cells import NamedCell
from benchmarks.catalogues.commands import Settings
from benchmarks.catalogues.domain import Domain, UnavailableError
from benchmarks.catalogues.furniture import domain as furniture
from benchmarks.catalogues.furniture import library
from benchmarks.catalogues.furniture.domain import ROLES, Shoot, domain_of, pictures
from benchmarks.catalogues.furniture.library import libraries, read_products
from benchmarks.catalogues.furniture.model import Read, read_mesh
from benchmarks.catalogues.furniture.zbuffer import turned, view
from benchmarks.catalogues.plan import make_plan

# A box, 2 wide, 1 high, 1 deep: its front (z = .5) is red, its back green, all else blue.
CORNERS = [(x, y, z) for x in (-1, 1) for y in (0, 1) for z in (-0.5, 0.5)]
BOX = "mtllib box.mtl\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in CORNERS)
BOX += "usemtl red\nf 2 6 8 4\nusemtl green\nf 5 1 3 7\nusemtl blue\nf 1 2 4 3\nf 6 5 7 8\nf 4 8 7 3\nf -8 -4 -3 -7\n"
COLOURS = "newmtl red\nKd 1 0 0\nnewmtl green\nKd 0 1 0\nnewmtl blue\nKd 0 0 1\n"


def reader(**files: str | bytes) -> Read:
    found = {name.replace("__", "."): data for name, data in files.items()}

    def read(name: str) -> bytes | None:
        data = found.get(name.rsplit("/", 1)[-1])
        return data.encode() if isinstance(data, str) else data

    return read


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA")).astype(int)


def usual(png: bytes) -> tuple[int, ...]:
    """The colour of most visible pixels: which of red, green and blue is there."""
    pixels = opened(png)
    visible = pixels[pixels[..., 3] > 250][:, :3] > 0
    values, counts = np.unique(visible, axis=0, return_counts=True)
    return tuple(int(one) for one in values[counts.argmax()])


def test_each_side_of_a_box_is_seen_from_its_side() -> None:
    mesh = read_mesh(reader(box__obj=BOX, box__mtl=COLOURS), "box/box.obj")
    assert mesh is not None
    assert len(mesh.corner_T33) == 12
    assert usual(view(mesh, azimuth=0, elevation=0)) == (1, 0, 0)
    assert usual(view(mesh, azimuth=180, elevation=0)) == (0, 1, 0)
    assert usual(view(mesh, azimuth=90, elevation=0)) == (0, 0, 1)
    assert usual(view(mesh, azimuth=0, elevation=89)) == (0, 0, 1)


def test_a_view_has_the_proportions_of_the_model_and_no_holes() -> None:
    mesh = read_mesh(reader(box__obj=BOX, box__mtl=COLOURS), "box.obj")
    assert mesh is not None
    alpha = opened(view(mesh, azimuth=0, elevation=0))[..., 3]
    rows, columns = np.nonzero(alpha)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(width / height - 2) < 0.1
    assert (alpha[rows.min() + 2 : rows.max() - 2, columns.min() + 2 : columns.max() - 2] > 250).mean() > 0.97
    assert view(mesh, azimuth=0, elevation=0) == view(mesh, azimuth=0, elevation=0)


def test_turning_moves_the_right_side_to_the_viewer_and_tilting_shows_the_top() -> None:
    right, top = np.array([[[1.0, 0, 0]]]), np.array([[[0, 1.0, 0]]])
    np.testing.assert_allclose(turned(right, azimuth=90, elevation=0), [[[0, 0, 1]]], atol=1e-6)
    np.testing.assert_allclose(turned(top, azimuth=0, elevation=90), [[[0, 0, 1]]], atol=1e-6)


def test_a_texture_is_read_at_its_place_and_clear_glass_is_left_out() -> None:
    texture = Image.new("RGB", (8, 8), (255, 0, 0))
    texture.paste((0, 0, 255), (0, 4, 8, 8))
    buffer = io.BytesIO()
    texture.save(buffer, "PNG")
    square = "mtllib s.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    square += "usemtl cloth\nf 1/1 2/2 3/3 4/4\nusemtl glass\nf 1 2 3\n"
    words = "newmtl cloth\nKd 1 1 1\nmap_Kd t.png\nnewmtl glass\nd 0.1\n"
    mesh = read_mesh(reader(s__obj=square, s__mtl=words, t__png=buffer.getvalue()), "s.obj")
    assert mesh is not None
    assert len(mesh.corner_T33) == 2
    pixels = opened(view(mesh, azimuth=0, elevation=0))
    assert pixels[40, 64, 0] > pixels[40, 64, 2]
    assert pixels[90, 64, 2] > pixels[90, 64, 0]


def test_a_model_without_a_visible_triangle_has_no_mesh() -> None:
    assert read_mesh(reader(), "none.obj") is None
    assert read_mesh(reader(a__obj="v 0 0 0\n"), "a.obj") is None


def write_library(folder: Path, *, products: int = 12) -> Path:
    lines, german = [], []
    for number in range(1, products + 1):
        name = "Chair" if number % 2 else f"Lamp {number}"
        lines += [f"id#{number}=x", f"name#{number}={name}", f"tags#{number}=Seat, chairs, tag{number}"]
        lines += [f"category#{number}={'Characters' if number == 3 else 'Office'}", f"icon#{number}=/s/p{number}.png"]
        lines += [f"model#{number}=/s/{'apple' if number == 5 else f'm{number}'}/m{number}.obj"]
        german.append(f"name#{number}=St\\u00fchle {number}")
    path = folder / "Scopia.sh3f"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "\r\n".join(lines))
        archive.writestr("PluginFurnitureCatalog_de.properties", "\n".join(german))
        for number in range(1, products + 1):
            buffer = io.BytesIO()
            Image.new("RGBA", (32, 32), (9 * number, 0, 99, 255)).save(buffer, "PNG")
            archive.writestr(f"s/p{number}.png", buffer.getvalue())
            box = BOX.replace("v 1 1 0.5", f"v 1 1 {0.5 + number / 10}")
            archive.writestr(f"S/m{number}/M{number}.obj", "" if number == 7 else box)
            archive.writestr(f"s/m{number}/box.mtl", COLOURS)
    return path


def test_people_and_brands_are_left_out_and_words_are_read_in_their_languages(tmp_path: Path) -> None:
    products = read_products(write_library(tmp_path), "Scopia")
    assert len(products) == 10
    assert products[0].tags == ("Seat", "chairs", "tag1")
    assert products[0].words["de"] == ("St\u00fchle 1",)
    assert len(pictures(Shoot(tmp_path / "Scopia.sh3f", products[0]))) == len(ROLES)


def test_documents_are_catalogue_pictures_and_queries_other_views(tmp_path: Path) -> None:
    path = write_library(tmp_path)
    shoots = [Shoot(path, one) for one in read_products(path, "Scopia")]
    domain = domain_of(shoots, tmp_path / "cache", workers=1)
    assert "Scopia m7" not in {one.key for one in domain.categories}
    assert len(domain.categories) == 9
    cell = Cell(domain="furniture", categories=9, test_categories=3, documents=(2, 2), pictures=3.0)
    plan = make_plan(cell, domain)
    assert {one.artist for rows in plan.documents.values() for one in rows} == {"catalogue picture", "studio"}
    assert {one.artist for one in plan.events} <= {"side", "back", "above"}
    chairs = [one for one in plan.categories if one.label == "Chair"]
    texts = {one.text for key in chairs for one in plan.documents[key.key]}
    assert not any("hair" in text.lower() for text in texts)
    # The second call reads what the first one rendered.
    (tmp_path / "Scopia.sh3f").unlink()
    assert domain_of(shoots, tmp_path / "cache", workers=1).drawings == domain.drawings


def test_without_the_package_the_cells_are_skipped_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "INSTALLED", tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError, match="needs Debian's package sweethome3d-furniture"):
        libraries(tmp_path / "cache")

    def domains(domain: str) -> Domain:
        return furniture.load_domain(tmp_path / "cache", workers=1)

    cell = NamedCell("furniture", Cell(domain="furniture", categories=9, test_categories=3))
    assert runner.run_all(runner.jobs([cell], [0], tmp_path), domains, Settings(), workers=1) == []
    printed = capsys.readouterr()
    assert "furniture-s0 is skipped: furniture needs Debian's package" in printed.out + printed.err


def test_a_failing_download_says_which_command_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "INSTALLED", tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    command = tmp_path / "bin" / "apt-get"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho no such package >&2\nexit 100\n")
    command.chmod(0o755)
    with pytest.raises(UnavailableError, match="apt-get download sweethome3d-furniture=1.8-1: no such package"):
        libraries(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
