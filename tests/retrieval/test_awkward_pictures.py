"""The same bytes give the same pixels, or the same reason, in governance, training, index, evaluation and search."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_governance.inputs.images import decode_square
from data_governance.inputs.tables import open_source
from data_governance.policy import Policy
from data_governance.stages import admit
from modeling_oclear import OclearImageProcessor, OclearQueryProcessor
from modeling_oclear.image_decoding_oclear import MAX_IMAGE_PIXELS, ImageRefused, decode_image
from retrieval.encoder import RetrievalEncoder, load_encoder
from retrieval.evaluation import evaluate
from retrieval.evaluation.evaluate import embed_queries
from retrieval.index import embed
from retrieval.index.embed import NO_CHANGES, embed_documents
from retrieval.pictures import PictureError, decode, read_picture
from retrieval.tables import CATALOGUE, QUERIES, read_table
from tests.support.awkward_images import all_images, plain_rows, png_chunk, png_of
from tests.support.tiny_retrieval import TinyTask, image_column, write
from train.inputs.views import UnreadableImage, Views

# Empty bytes are a missing image where a table is read.
FILES = {name: data for name, (data, _) in all_images().items() if data}


@pytest.fixture(scope="module")
def encoder(task: TinyTask) -> RetrievalEncoder:
    return load_encoder(str(task.model))


@pytest.fixture(scope="module")
def refused() -> dict[str, ImageRefused]:
    """What the decoder refuses."""
    found = {}
    for name, data in FILES.items():
        try:
            decode_image(data)
        except ImageRefused as error:
            found[name] = error
    return found


@pytest.fixture(scope="module")
def squares(encoder: RetrievalEncoder) -> dict[str, np.ndarray]:
    """The governance square of every picture, of the side that the model reads."""
    side = encoder.processor.image_processor.size
    found = {name: decode_square(data, size=side, max_pixels=MAX_IMAGE_PIXELS)[0] for name, data in FILES.items()}
    return {name: square for name, square in found.items() if square is not None}


def test_governance_rejects_the_same_rows_with_the_reason(tmp_path: Path, refused: dict[str, ImageRefused]) -> None:
    write(tmp_path, "queries", query_id=list(FILES), image=image_column(FILES.values()))
    source = open_source(str(tmp_path / "queries.parquet"), name="queries")
    faults = [facts[0] for _, _, batch in admit.decoded_batches(source, policy=Policy()) for facts in batch]
    assert {name: fault for name, fault in zip(FILES, faults, strict=True) if fault} == {
        name: error.reason for name, error in refused.items()
    }


def test_the_clean_view_of_training_is_the_square_of_governance(
    encoder: RetrievalEncoder, squares: dict[str, np.ndarray], refused: dict[str, ImageRefused]
) -> None:
    names = list(FILES)
    side: Any = SimpleNamespace(image=lambda row: (names[row], FILES[names[row]]))
    views = Views(side, encoder.processor, views=0, seed=0)
    for row, name in enumerate(names):
        found = views.of(row, [0])
        if name in refused:
            assert isinstance(found, UnreadableImage)
            assert f"sample {name!r} cannot be read ({refused[name]})" in found.reason
        else:
            assert isinstance(found, torch.Tensor)
            assert np.array_equal(np.asarray(encoder.seen(found)[0]), squares[name])


def test_index_and_evaluation_skip_the_same_rows_by_id(
    tmp_path: Path, encoder: RetrievalEncoder, refused: dict[str, ImageRefused]
) -> None:
    names, images = list(FILES), image_column(FILES.values())
    write(tmp_path, "catalogue", doc_id=names, image=images, text=["a red box"] * len(names))
    write(tmp_path, "queries", query_id=names, image=images)
    expected = {name: str(error) for name, error in refused.items()}
    catalogue = read_table(tmp_path / "catalogue.parquet", CATALOGUE)
    found = embed_documents(encoder, catalogue, changes=NO_CHANGES, batch_size=16)
    assert {row["doc_id"]: row["reason"] for row in found.skipped} == expected
    assert sorted(found.doc_id) == sorted(set(names) - set(expected))
    ids, _, unreadable = embed_queries(encoder, read_table(tmp_path / "queries.parquet", QUERIES), batch_size=16)
    assert {row["query_id"]: row["reason"] for row in unreadable} == expected
    assert sorted(ids) == sorted(found.doc_id)


def test_search_sees_the_square_or_names_the_path(
    tmp_path: Path, encoder: RetrievalEncoder, squares: dict[str, np.ndarray], refused: dict[str, ImageRefused]
) -> None:
    for name, data in FILES.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(data)
        if name in refused:
            with pytest.raises(PictureError) as caught:
                read_picture(path, **encoder.decoding)
            assert str(caught.value) == f"image {path}: {refused[name]}"
        else:
            _, [seen] = encoder.queries([read_picture(path, **encoder.decoding)])
            assert np.array_equal(np.asarray(seen), squares[name])


def test_a_raised_limit_holds_in_governance_and_for_the_model(encoder: RetrievalEncoder) -> None:
    large = png_of(40, 40, plain_rows(40, 40))
    assert decode_square(large, size=8, max_pixels=1_000)[1] == "image_too_many_pixels"
    square, _ = decode_square(large, size=8, max_pixels=2_000)
    assert square is not None
    assert (square == 0x40).all()
    raised = replace(encoder, processor=OclearImageProcessor(size=8, max_image_pixels=2_000))
    picture = decode(large, folder=None, **raised.decoding)
    assert picture is not None
    assert np.array_equal(raised.processor.square(picture), square)


def test_one_limit_of_bytes_holds_for_governance_training_and_retrieval(
    tmp_path: Path, encoder: RetrievalEncoder
) -> None:
    small, large = FILES["png"], png_of(40, 40, plain_rows(40, 40), png_chunk(b"tEXt", b"a\0" + b"b" * 900))
    (tmp_path / "large.png").write_bytes(large)
    cells = pa.array(
        [{"bytes": small, "path": None}, {"bytes": large, "path": None}, {"bytes": None, "path": "large.png"}]
    )
    write(tmp_path, "queries", query_id=["small", "bytes", "path"], image=cells)
    limit = len(large) - 1
    source = open_source(str(tmp_path / "queries.parquet"), name="queries")
    policy = Policy(max_image_bytes=limit)
    faults = [facts[0] for _, _, batch in admit.decoded_batches(source, policy=policy) for facts in batch]
    assert faults == [None, "image_file_too_large", "image_file_too_large"]
    assert decode_square(large, size=8, max_bytes=limit) == (None, "image_file_too_large")
    lower = OclearImageProcessor(size=32, max_image_bytes=limit)
    names = ["small", "bytes"]
    side: Any = SimpleNamespace(image=lambda row: (names[row], [small, large][row]))
    found = Views(side, SimpleNamespace(image_processor=lower), views=0, seed=0).of(1, [0])
    assert isinstance(found, UnreadableImage)
    assert f"image file of {len(large)} bytes is over {limit} bytes" in found.reason
    strict = replace(encoder, processor=OclearQueryProcessor(lower))
    _, _, unreadable = embed_queries(strict, read_table(tmp_path / "queries.parquet", QUERIES), batch_size=2)
    assert [row["query_id"] for row in unreadable] == ["bytes", "path"]
    assert {row["reason"] for row in unreadable} == {f"image file of {len(large)} bytes is over {limit} bytes"}
    with pytest.raises(PictureError, match=r"large.png: image file of .* is over"):
        read_picture(tmp_path / "large.png", **strict.decoding)


def test_pictures_that_wait_for_their_batch_are_bounded(
    tmp_path: Path, encoder: RetrievalEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    documents, queries = RetrievalEncoder.documents, RetrievalEncoder.queries

    def counted(function: Any) -> Any:
        def call(self: RetrievalEncoder, pictures: Any, *more: Any, **settings: Any) -> Any:
            waiting.append(sum(picture.width * picture.height for picture in pictures if picture is not None))
            return function(self, pictures, *more, **settings)

        return call

    monkeypatch.setattr(RetrievalEncoder, "documents", counted(documents))
    monkeypatch.setattr(RetrievalEncoder, "queries", counted(queries))
    content = png_of(1000, 900, plain_rows(1000, 900))
    names = [f"{number}" for number in range(9)]
    write(tmp_path, "catalogue", doc_id=names, image=image_column([content] * 9), text=["a"] * 9)
    write(tmp_path, "queries", query_id=names, image=image_column([content] * 9))
    for module in (embed, evaluate):
        monkeypatch.setattr(module, "MOST_PIXELS_AT_ONCE", 2_000_000)
    table = read_table(tmp_path / "catalogue.parquet", CATALOGUE)
    assert sorted(embed_documents(encoder, table, changes=NO_CHANGES, batch_size=9).doc_id) == names
    assert embed_queries(encoder, read_table(tmp_path / "queries.parquet", QUERIES), batch_size=9)[0] == names
    assert waiting == 2 * [1_800_000, 1_800_000, 1_800_000, 1_800_000, 900_000]
