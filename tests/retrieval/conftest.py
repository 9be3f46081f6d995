"""Fixtures: a tiny published model with random weights, tables of tiny drawings, an index, an evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.images import encode
from tests.support.tiny_retrieval import (
    COLOURS,
    SHAPES,
    Evaluated,
    TinyTask,
    drawing,
    image_column,
    retrieval,
    tiny_model,
    write,
)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> TinyTask:
    """A published folder with calibration, and a catalogue with incomplete and damaged documents."""
    from safetensors.numpy import save_file

    import modeling_oclear

    folder = tmp_path_factory.mktemp("task")
    model, processor = tiny_model()
    modeling_oclear.publish(model, processor, folder / "hub")
    sample = np.random.default_rng(0).normal(size=(31, 24))
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    save_file({"query_embeds": sample.astype(np.float16)}, folder / "hub" / "calibration.safetensors")

    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    documents: list[tuple[str, bytes | None, str, str]] = []
    queries, qrels = [], []
    for place, (colour, shape) in enumerate(kinds):
        for copy in (1, 2):
            text = f"a {colour} {shape}" if (place + copy) % 3 else ""
            documents.append(
                (f"d{(place * 37) % 101:03d}-{copy}", encode(drawing(colour, shape, shift=copy)), text, shape)
            )
            qrels.append((f"q{place:02d}", documents[-1][0], copy))
        queries.append(
            (f"q{place:02d}", encode(drawing(colour, shape)), "warm" if colour in ("red", "orange") else "cold")
        )
    documents += [
        ("x-text", None, "a red box", "box"),
        ("x-empty", None, "", "box"),
        ("x-damaged", b"no", "a box", "box"),
    ]
    ids, images, texts, leaves = zip(*documents, strict=True)
    write(folder, "catalogue", doc_id=ids, image=image_column(images), text=texts, leaf=leaves)
    ids, images, warmth = zip(*queries, strict=True)
    write(folder, "queries", query_id=ids, image=image_column(images), warmth=warmth)
    names, answers, values = zip(*qrels, strict=True)
    write(folder, "qrels", query_id=names, doc_id=answers, relevance=values)
    return TinyTask(folder, folder / "hub")


@pytest.fixture(scope="session")
def built(task: TinyTask) -> Path:
    """The index of the task, written by the command."""
    out = task.folder / "index"
    done = retrieval("index", "--model", task.model, "--catalogue", task.table("catalogue"), "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def evaluated(task: TinyTask, built: Path) -> Evaluated:
    """Metrics and the per-query table of the task, written by the command."""
    out, table = task.folder / "metrics.json", task.folder / "per_query.parquet"
    done = retrieval("evaluate", *task.flags, "--index", built, "--out", out, "--per-query", table)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), table
