"""The files of remote code: relative imports are followed, missing and damaged files are reported."""

from pathlib import Path

import pytest

from modeling_oclear.code_files import code_modules


def test_relative_imports_are_followed_and_missing_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import os\nfrom .layers import X\n\ndef f():\n    from .lost import Y\n")
    (tmp_path / "layers.py").write_text("from .model import f\nfrom torch import nn\n")
    (tmp_path / "unused.py").write_text("from .other import X\n")
    assert code_modules(tmp_path, ["model"]) == (["layers", "model"], ["lost"])
    assert code_modules(tmp_path, ["unused", "none"]) == (["unused"], ["none", "other"])
    assert code_modules(tmp_path, []) == ([], [])


def test_a_file_that_is_not_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def (")
    with pytest.raises(ValueError, match=r"model.py is not Python .* Export the folder again"):
        code_modules(tmp_path, ["model"])
