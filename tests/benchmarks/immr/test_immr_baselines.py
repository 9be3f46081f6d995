"""Baselines: labelled rows, batches and document representations."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from benchmarks.immr.baselines.documents import DocumentFusion, TextHead
from benchmarks.immr.baselines.labels import ClassSampler, PairSampler, raw_rows, restricted
from benchmarks.immr.baselines.method import LOSS_VALUES, METHODS, Method

LOG = pa.table(
    {
        "query_id": ["a", "a", "b", "b", "c", "c", "stranger", "d"],
        "doc_id": ["x", "y", "y", "y", "z", "x", "x", "w"],
        "clicks": [1, 3, 1, 1, 2, 2, 5, 0],
    }
)
ROWS = raw_rows(LOG, ["a", "b", "c", "d"], ["w", "x", "y", "z"])
VIEWS = (1, 2)  # of queries and of documents


def test_the_raw_class_of_a_query_is_its_most_clicked_document() -> None:
    assert ROWS.document.rows.tolist() == [1, 2, 3]  # w was never clicked
    assert ROWS.num_classes == 3
    pairs = zip(ROWS.pairs.rows.tolist(), ROWS.pairs.labels.tolist(), ROWS.pairs.weights.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0, 1.0), (0, 1, 3.0), (1, 1, 2.0), (2, 0, 2.0), (2, 2, 2.0)]
    # Ties go to the first document; a query without clicks has no class.
    assert dict(zip(ROWS.query.rows.tolist(), ROWS.query.labels.tolist(), strict=True)) == {0: 1, 1: 1, 2: 0}
    assert ROWS.calibration.tolist() == [0, 1, 2]


def test_a_batch_pairs_each_query_with_a_clicked_document() -> None:
    sampler = PairSampler(ROWS, per_class=1, balance=1.0, seed=3, views=VIEWS)
    clicked = {(0, 1), (0, 2), (1, 2), (2, 1), (2, 3)}
    drawn_views = set()
    for step in range(20):
        drawn = sampler.draw(step, count=6)
        pairs = list(zip(drawn.query_rows.tolist(), drawn.document_rows.tolist(), strict=True))
        assert set(pairs) <= clicked
        for i, (query, _) in enumerate(pairs):
            for j, (_, document) in enumerate(pairs):
                same = drawn.labels.query_labels_B[i] == drawn.labels.document_labels_B[j]
                assert bool(drawn.labels.positive_BB[i, j]) == (bool(same) or (query, document) in clicked)
        # One round contains every class once.
        assert sorted(drawn.labels.query_labels_B.tolist()) == [0, 0, 1, 1, 2, 2]
        drawn_views |= {("q", view) for view in drawn.query_views} | {("d", view) for view in drawn.document_views}
    assert drawn_views == {("q", 0), ("q", 1), ("d", 0), ("d", 1), ("d", 2)}


def test_the_documents_drawn_for_a_class_are_distinct_if_it_has_enough() -> None:
    two = raw_rows(
        pa.table({"query_id": ["a", "b"], "doc_id": ["x", "y"], "clicks": [1, 1]}), ["a", "b"], ["x", "y", "z"]
    )
    governed = restricted(two, np.array([True, True, True]))
    side = governed.document
    both = type(governed)(
        pairs=type(side)(np.array([0, 1, 2]), np.array([0, 0, 0]), np.array([1.0, 1.0, 8.0])),
        document=type(side)(np.array([4, 7]), np.array([0, 0]), np.ones(2)),
        query=side,
        num_classes=1,
        calibration=np.arange(3),
    )
    sampler = PairSampler(both, per_class=2, balance=1.0, seed=0, views=VIEWS)
    drawn = [sampler.draw(step, count=2) for step in range(300)]
    assert all(sorted(one.document_rows.tolist()) == [4, 7] for one in drawn)
    frequencies = np.bincount(np.concatenate([one.query_rows for one in drawn]), minlength=3) / 600
    assert frequencies == pytest.approx([0.1, 0.1, 0.8], abs=0.05)
    with pytest.raises(ValueError, match="a batch of 3 cannot hold 2 rows"):
        sampler.draw(0, count=3)


def test_without_class_balance_classes_are_drawn_in_proportion_to_their_clicks() -> None:
    sampler = PairSampler(ROWS, per_class=1, balance=0.0, seed=1, views=VIEWS)
    labels = np.concatenate([sampler.draw(step, count=10).labels.query_labels_B.numpy() for step in range(200)])
    assert np.bincount(labels) / len(labels) == pytest.approx([0.3, 0.5, 0.2], abs=0.03)


def test_restricting_documents_drops_classes_without_a_document() -> None:
    kept = restricted(ROWS, np.array([True, True, False, True]))
    assert kept.num_classes == 2
    assert kept.document.rows.tolist() == [1, 3]
    assert kept.document.labels.tolist() == [0, 1]
    assert sorted(zip(kept.pairs.rows.tolist(), kept.pairs.labels.tolist(), strict=True)) == [(0, 0), (2, 0), (2, 1)]
    assert kept.query.rows.tolist() == [2]  # the best document of the other queries is removed
    with pytest.raises(ValueError, match="nothing to train on"):
        restricted(ROWS, np.zeros(4, dtype=bool))


def test_batches_of_classes_are_repeatable_and_contain_every_class() -> None:
    drawn = ClassSampler(ROWS, balance=1.0, seed=0, views=VIEWS).draw(2, count=3)
    assert (
        drawn.query_rows.tolist()
        == ClassSampler(ROWS, balance=1.0, seed=0, views=VIEWS).draw(2, count=3).query_rows.tolist()
    )
    assert set(drawn.labels.query_labels_B.tolist()) <= {0, 1}
    assert sorted(drawn.labels.document_labels_B.tolist()) == [0, 1, 2]


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_document_fusion_agrees_with_its_definition_row_by_row() -> None:
    sentences, images = rows(30, 9, 1), functional.normalize(rows(4, 5, 2), dim=1)
    head = TextHead(sentences, width=5, dropout=0.5).eval()
    text = head(sentences[:4])
    has_image, has_text = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    expected = {
        "image": [images[0], images[1], None, None],
        "text": [text[0], None, text[2], None],
        "mean": [functional.normalize(images[0] + text[0], dim=0), images[1], text[2], None],
    }
    expected["concat"] = expected["mean"]  # at initialisation
    for kind, wanted in expected.items():
        fusion = DocumentFusion(kind, None if kind == "image" else head, width=5).eval()
        found = fusion(images, sentences[:4], has_image, has_text)
        for row, want in zip(found, wanted, strict=True):
            assert torch.allclose(row, torch.zeros(5) if want is None else want, atol=1e-6)
        readable = fusion.readable(has_image, has_text)
        assert readable.tolist() == [want is not None for want in wanted]
    with pytest.raises(ValueError, match="documents are 'text' without a text head"):
        DocumentFusion("text", None, width=5)


def test_the_text_head_starts_with_the_principal_directions_of_its_texts() -> None:
    spread = torch.tensor([9.0, 5.0, 1.0, 0.5])
    mixed = rows(400, 4, 3) * spread @ torch.linalg.qr(rows(4, 4, 4))[0]
    head = TextHead(mixed, width=2, dropout=0.0).eval()
    assert torch.allclose(head(mixed).norm(dim=1), torch.ones(400), atol=1e-5)
    standardised = (mixed - mixed.mean(0)) / mixed.std(0, correction=0)
    kept = head.projection(standardised).detach().var(0, correction=0).sum()
    top = torch.linalg.eigvalsh(standardised.T @ standardised / 400)[-2:].sum()
    assert float(kept) == pytest.approx(float(top), rel=1e-4)
    wide = TextHead(mixed, width=6, dropout=0.0).eval()
    assert torch.allclose(wide(mixed)[:, :4].norm(dim=1), torch.ones(400), atol=1e-5)
    with pytest.raises(ValueError, match="no training document has text"):
        TextHead(mixed[:0], width=2, dropout=0.0)


def test_every_method_has_search_values_and_a_name_that_can_be_parsed() -> None:
    assert len({method.name for method in METHODS}) == 6 * 2 * 4
    assert all(Method.named(method.name) == method and len(LOSS_VALUES[method.loss]) == 3 for method in METHODS)
    with pytest.raises(ValueError, match="'clip' is no part of a method"):
        Method("clip", "raw", "image")
