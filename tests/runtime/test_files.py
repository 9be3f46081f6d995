"""Atomic writes of files and folders."""

import json
from pathlib import Path

import pytest

from runtime.files import (
    atomic_file,
    atomic_folder,
    empty_partial,
    final_name,
    partial_path,
    replace_folder,
    write_bytes,
    write_json,
    write_text,
)


def test_written_files_hold_the_content_and_leave_nothing_beside(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "caf\u00e9\n")
    write_bytes(tmp_path / "b.bin", b"\x00\x01")
    write_json(tmp_path / "c.json", {"x": [1, 2]}, indent=1)
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xc3\xa9\n"
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\x01"
    assert (tmp_path / "c.json").read_text() == json.dumps({"x": [1, 2]}, indent=1) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin", "c.json"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_new_folder_replaces_the_old_one_and_the_remains_of_a_killed_write(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "old").write_text("old")
    partial_path(folder).mkdir()
    (partial_path(folder) / "half").write_text("half")
    with atomic_folder(folder) as partial:
        assert list(partial.iterdir()) == []
        (partial / "new").write_text("new")
        assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_error_while_filling_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()

    def fail() -> None:
        with atomic_folder(folder) as partial:
            (partial / "new").write_text("new")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_folder_may_be_filled_and_renamed_in_separate_calls(tmp_path: Path) -> None:
    partial = empty_partial(tmp_path / "deep" / "stage")
    (partial / "rows").write_text("rows")
    assert (partial.name, final_name(partial)) == (".stage.partial", "stage")
    assert final_name(tmp_path / "deep" / "stage") == "stage"
    replace_folder(tmp_path / "deep" / "stage")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["stage"]
