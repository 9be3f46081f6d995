"""Search, calibration and imputation over plain arrays, against their formulas and exact search."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval.index import calibration, vector_search
from retrieval.index.calibration import calibrated_documents, calibrated_queries, load_calibration
from retrieval.index.imputation import impute


def unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(count: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Vectors in clusters, as embeddings of categories are."""
    centre = np.random.default_rng(99).normal(size=(60, width))
    generator = np.random.default_rng(seed)
    return unit(centre[generator.integers(60, size=count)] + 0.6 * generator.normal(size=(count, width)))


def test_exact_search_equals_the_plain_product_and_breaks_ties_by_row() -> None:
    vectors = clustered(37, 11)
    vectors[20] = vectors[3]
    query = vectors[[3, 5]]
    rows, scores = vector_search.build(vectors).search(query, 37)
    product = np.round((query @ vectors.T).astype(np.float64), 6)
    expected = np.lexsort((np.broadcast_to(np.arange(37), (2, 37)), -product), axis=1)
    assert rows.tolist() == expected.tolist()
    assert rows[0, :2].tolist() == [3, 20]
    np.testing.assert_allclose(scores, np.take_along_axis(product, expected, axis=1), atol=2e-6)


def test_more_answers_than_documents_gives_them_all() -> None:
    rows, _ = vector_search.build(clustered(5, 7)).search(clustered(2, 7), 99)
    assert rows.shape == (2, 5)
    assert sorted(rows[0].tolist()) == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def large() -> Any:
    """3,001 vectors of odd width above a lowered threshold."""
    vectors = clustered(3001, 33)
    return vectors, vector_search.build(vectors, exact_below=2000)


def test_search_is_approximate_from_the_threshold_and_finds_the_exact_answers(large: Any) -> None:
    vectors, approximate = large
    exact = vector_search.build(vectors, exact_below=3002)
    assert exact.exact
    assert not approximate.exact
    assert approximate.kind.startswith("IVF")
    assert approximate.kind.endswith("x4fsr,RFlat")
    query = clustered(200, 33, seed=1)
    found, truth = approximate.search(query, 10)[0], exact.search(query, 10)[0]
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    assert approximate.recall_at_10 >= 0.95
    assert overlap >= 0.9


def test_an_approximate_index_stores_full_vectors_and_can_be_saved(large: Any, tmp_path: Path) -> None:
    vectors, approximate = large
    np.testing.assert_array_equal(approximate.vectors(), vectors)
    path = str(tmp_path / "index.faiss")
    vector_search.write(approximate, path)
    again = vector_search.read(path, width=33, kind=approximate.kind, recall_at_10=1.0)
    query = clustered(9, 33, seed=2)
    assert again.search(query, 10)[0].tolist() == approximate.search(query, 10)[0].tolist()


def test_a_small_catalogue_is_always_searched_exactly() -> None:
    assert vector_search.build(clustered(500, 8), exact_below=1).exact


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.zeros((0, 3), np.float32), "no document"), (np.full((2, 3), np.nan, np.float32), "finite")],
)
def test_empty_or_infinite_vectors_are_rejected(vectors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vector_search.build(vectors)


def test_queries_of_another_width_are_rejected(tmp_path: Path) -> None:
    searcher = vector_search.build(clustered(5, 7))
    with pytest.raises(ValueError, match="width 7"):
        searcher.search(clustered(1, 8), 3)
    with pytest.raises(ValueError, match="k is 0"):
        searcher.search(clustered(1, 7), 0)
    (tmp_path / "x.faiss").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no readable FAISS index"):
        vector_search.read(str(tmp_path / "x.faiss"), width=7, kind="Flat", recall_at_10=1.0)


def hubness(embeds: Any, sample: Any) -> Any:
    return calibration.hubness(torch.from_numpy(embeds), torch.from_numpy(sample)).numpy()


def test_hubness_is_the_mean_of_the_five_largest_products() -> None:
    document, sample = unit([[1, 0], [0, 1]]), unit([[1, 0], [1, 1], [0, 1], [1, 2], [2, 1], [-1, 0], [1, 3]])
    by_hand = [np.mean(sorted((document[row] @ sample.T).tolist())[-5:]) for row in range(2)]
    np.testing.assert_allclose(hubness(document, sample), by_hand, atol=1e-6)
    np.testing.assert_allclose(hubness(document, sample[:2]), (document @ sample[:2].T).mean(axis=1), atol=1e-6)


def test_calibration_takes_half_the_hubness_from_every_score() -> None:
    document, query, sample = clustered(9, 6), clustered(3, 6, seed=1), clustered(40, 6, seed=2)
    wide, _ = calibrated_documents(document, sample, has_image=np.ones(9, bool))
    assert wide.shape == (9, 7)
    score = calibrated_queries(query, index_width=7) @ wide.T
    np.testing.assert_allclose(score, query @ document.T - 0.5 * hubness(document, sample)[None], atol=1e-6)
    ignored = calibrated_queries(query, index_width=7, calibrate=False) @ wide.T
    np.testing.assert_allclose(ignored, query @ document.T, atol=1e-6)


def test_documents_without_image_are_as_near_to_their_queries_on_average_as_the_others() -> None:
    document, sample = clustered(9, 6), clustered(40, 6, seed=2)
    has_image = np.arange(9) < 5
    plain, _ = calibrated_documents(document, sample, has_image=np.ones(9, bool))
    wide, _ = calibrated_documents(document, sample, has_image=has_image)
    np.testing.assert_array_equal(wide[has_image], plain[has_image])
    factor = hubness(document[has_image], sample).mean() / hubness(document[~has_image], sample).mean()
    assert abs(factor - 1) > 0.01
    np.testing.assert_allclose(wide[~has_image], plain[~has_image] * factor, rtol=1e-5)
    np.testing.assert_array_equal(calibrated_documents(document, sample, has_image=np.zeros(9, bool))[0], plain)
    away = np.where(has_image[:, None], sample[:1], -sample[:1])  # a mean of r that is no length
    apart, _ = calibrated_documents(away, sample[:1], has_image=has_image)
    np.testing.assert_array_equal(apart[:, :6], away)


def test_without_a_calibration_nothing_changes(tmp_path: Path) -> None:
    document = clustered(9, 6)
    assert load_calibration(tmp_path, width=6) is None
    assert calibrated_documents(document, None, has_image=np.zeros(9, bool))[0] is document
    assert calibrated_queries(document, index_width=6).shape == (9, 6)
    with pytest.raises(ValueError, match="6 dimensions, the index has 9"):
        calibrated_queries(document, index_width=9)


def test_a_calibration_of_another_width_is_rejected(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"query_embeds": np.zeros((3, 5), np.float16)}, tmp_path / "calibration.safetensors")
    with pytest.raises(ValueError, match=r"\(queries, 6\)"):
        load_calibration(tmp_path, width=6)
    sample = load_calibration(tmp_path, width=5)
    assert sample is not None
    assert sample.dtype == np.float32
    (tmp_path / "calibration.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="export the model again"):
        load_calibration(tmp_path, width=5)


def test_imputation_is_the_mean_shift_of_the_nearest_ten_with_both() -> None:
    image = clustered(23, 5)
    shift = np.random.default_rng(1).normal(size=(23, 5)).astype(np.float32)
    has_image, has_text = np.ones(23, bool), np.ones(23, bool)
    has_text[[0, 4]] = False
    has_image[7] = False
    embeds = unit(image + shift)
    embeds[[0, 4]] = image[[0, 4]]
    filled, imputed = impute(embeds, image, shift, has_image=has_image, has_text=has_text)
    assert np.flatnonzero(imputed).tolist() == [0, 4]
    untouched = [row for row in range(23) if row not in (0, 4)]
    assert (filled[untouched] == embeds[untouched]).all()
    source = np.flatnonzero(has_image & has_text)
    near = source[np.argsort(-(image[source] @ image[4]))[:10]]
    np.testing.assert_allclose(filled[4], unit((image[4] + shift[near].mean(axis=0))[None])[0], atol=1e-6)


def test_nothing_is_imputed_without_documents_that_have_both() -> None:
    image = clustered(4, 5)
    filled, imputed = impute(image, image, image, has_image=np.ones(4, bool), has_text=np.zeros(4, bool))
    assert filled is image
    assert not imputed.any()


@pytest.mark.parametrize("exact_below", [1000, 9999])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_filter_that_leaves_many_rows_is_searched_with_a_selector(
    exact_below: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_search, "COMPARED_ONE_BY_ONE", 10)
    vectors, queries = clustered(3001, 33), clustered(20, 33)
    searcher = vector_search.build(vectors, exact_below=exact_below)
    assert searcher.exact == (exact_below == 9999)
    allowed = np.random.default_rng(1).random(3001) < share
    rows, scores = searcher.search(queries, 10, allowed_N=allowed)
    assert allowed[rows].all()
    truth = np.sort((queries @ vectors.T)[:, allowed], axis=1)[:, -10]
    assert (scores >= truth[:, None] - 1e-5).mean() >= (1.0 if searcher.exact else 0.95)
