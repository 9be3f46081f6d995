"""An exported model: the numbers of torch, without torch, and clear errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import oclear
from hub_cards.publishable import model_files
from modeling_oclear import OclearModel, publish
from oclear.export import export, main
from tests.support.small_oclear import drawing, small_config, small_processor

ROOT = Path(__file__).resolve().parents[2]
RED, BLUE = drawing(), drawing("blue", (5, 5, 30, 45))
QUERIES = [RED, BLUE.convert("P"), Image.new("RGBA", (9, 20), (0, 200, 0, 120)), Image.new("L", (1, 1), 3)]
DOCUMENTS = [
    {"image": RED, "text": "a red ball on grass"},
    {"text": "a blue cup, and on and on " * 9},
    BLUE,
    "red\ud800 ball",
    {"image": BLUE, "text": "\u200b"},
]


def published(home: Path, *, text: str | None = "bert") -> Path:
    model: Any = OclearModel(small_config(text=text))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    processor: Any = small_processor(home)
    if text is None:
        from modeling_oclear import OclearQueryProcessor

        processor = OclearQueryProcessor(processor.image_processor)
    return publish(model.eval(), processor, home / "hub")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hub = published(tmp_path_factory.mktemp("onnx"))
    assert main(["--model", str(hub)]) == 0
    return hub


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_exported_model_gives_the_numbers_of_torch(folder: Path, batch_size: int) -> None:
    wanted, found = oclear.load(folder), oclear.load(folder, backend="onnx")
    for name, items in (("encode_query", QUERIES), ("encode_document", DOCUMENTS)):
        ours = getattr(found, name)(items, batch_size=batch_size)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, getattr(wanted, name)(items, batch_size=batch_size), atol=1e-5)
    assert found.width == wanted.width == 27


def test_pixels_and_tokens_are_those_of_the_processor_bit_for_bit(folder: Path) -> None:
    found, processor = oclear.load(folder, backend="onnx"), oclear.load(folder).encoder.processor
    texts = ["a red ball on grass and more of it for more than eleven tokens", "", "cup\u200b", "  "]
    inputs = processor(images=[RED, None, BLUE, *QUERIES[2:3]], text=texts)
    pixels, has_image = found.pixels([RED, None, BLUE, QUERIES[2]])
    assert np.array_equal(pixels, inputs["pixel_values"].numpy())
    assert np.array_equal(has_image, inputs["has_image"].numpy())
    for name, values in found.tokens(texts).items():
        assert np.array_equal(values, inputs[name].numpy()), name


def test_it_needs_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'datasets', 'accelerate', 'faiss']))\n"
        "import oclear; from PIL import Image\n"
        f"model = oclear.load({str(folder)!r}, backend='onnx')\n"
        "print(model.encode_document([{'text': 'a cup'}, Image.new('RGB', (5, 5))]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 27)\n", done.stderr


def test_a_model_without_text_is_exported_too(tmp_path: Path) -> None:
    hub = published(tmp_path, text=None)
    assert sorted(path.name for path in export(hub).iterdir()) == ["document.onnx", "oclear.json", "query.onnx"]
    found = oclear.load(hub, backend="onnx")
    np.testing.assert_allclose(
        found.encode_document([RED, BLUE]), oclear.load(hub).encode_document([RED, BLUE]), atol=1e-5
    )
    with pytest.raises(ValueError, match="document 0 has neither an image nor a text that this model reads"):
        found.encode_document("a cup")


def test_mistakes_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="backend is 'tensorrt'; choose 'torch' or 'onnx'"):
        oclear.load(folder, backend="tensorrt")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="the ONNX backend runs on the CPU"):
        oclear.load(folder, backend="onnx", device="cuda")
    with pytest.raises(ValueError, match="This model has no text queries"):
        oclear.load(folder, backend="onnx").encode_query("a red ball")
    assert main(["--model", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"there is no onnx/oclear.json; write it with: oclear export --model"):
        oclear.load(folder / "query", backend="onnx")


@pytest.mark.parametrize("change", ["other weights", "another tokenizer", "another format", "no list of files"])
def test_files_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path, change: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "hub"))
    facts = json.loads((copy / "onnx/oclear.json").read_text())
    if change == "other weights":
        shutil.copy(copy / "onnx/document.onnx", copy / "onnx/query.onnx")
    elif change == "another tokenizer":
        (copy / "tokenizer.json").write_text("{}")
    else:
        facts = facts | {"format": 9} if change == "another format" else {"format": 1}
        (copy / "onnx/oclear.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="export again: oclear export --model"):
        oclear.load(copy, backend="onnx")


def test_the_exported_files_are_published_and_no_other_ones(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "hub"))
    names = {file.path_in_repo for file in model_files(copy, host_names=[], has_card=False)}
    assert {"onnx/query.onnx", "onnx/document.onnx", "onnx/oclear.json"} <= names
    shutil.copy(copy / "onnx/query.onnx", copy / "other.onnx")
    with pytest.raises(ValueError, match="'other.onnx' is not part of a model folder"):
        model_files(copy, host_names=[], has_card=False)


def test_publishing_other_weights_removes_the_export(tmp_path: Path) -> None:
    hub = published(tmp_path, text=None)
    export(hub)
    assert published(tmp_path, text=None) == hub
    with pytest.raises(ValueError, match="write it with: oclear export"):
        oclear.load(hub, backend="onnx")


def test_a_missing_library_is_named_with_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "oclear.onnx_model")
    with pytest.raises(ValueError, match=r"backend 'onnx' needs onnxruntime: pip install 'oclear\[onnx\]'"):
        oclear.load(folder, backend="onnx")
