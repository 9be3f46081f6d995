"""Write a cell as a folder of tables, in the formats that users bring."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Features

from benchmarks.catalogues.cell import Cell
from benchmarks.catalogues.domain import Artist, Domain
from benchmarks.catalogues.pictures import Job, document_picture, query_picture
from benchmarks.catalogues.plan import Document, Picture, Plan, make_plan
from examples.emoji import tables
from examples.emoji.drawings import distinct_pictures, map_in_order

NOTE = "The behaviour is SIMULATED: popularity, positions and wrong clicks were drawn at random, not observed."
SUMMARY = "cell.json"
WITHOUT_LEAF = Features({name: kind for name, kind in tables.CATALOGUE.items() if name != "leaf"})
TRUTH_DOCUMENTS = Features(dict.fromkeys(("doc_id", "category", "artist", "role"), tables.ID))
TRUTH_QUERIES = Features(dict.fromkeys(("query_id", "category", "artist", "part"), tables.ID))


def build(cell: Cell, domain: Domain, out: Path, *, workers: int) -> dict[str, Any]:
    """Write the folder of a cell and return the content of cell.json.

    The folder is written under a temporary name and renamed when it is complete; an older one is replaced.

    Raises:
        ValueError: the domain has too few categories, or `out` is a folder of something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / SUMMARY).is_file():
        raise ValueError(f"{out} exists and holds no {SUMMARY}, so it is not replaced; name another folder")
    plan = make_plan(cell, domain)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        summary = _write(cell, domain, plan, partial, workers=workers)
        if out.exists():
            shutil.rmtree(out)
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _write(cell: Cell, domain: Domain, plan: Plan, folder: Path, *, workers: int) -> dict[str, Any]:
    seed = cell.seed
    rows = {"behaviour": _behaviour(plan, folder, seed=seed)}
    rows["catalogue"] = _catalogue(cell, domain, plan, folder, workers=workers)
    parts = {"": plan.events, "test_": plan.test, "seen_": plan.seen}
    for name, pictures in parts.items():
        data = _query_pictures(cell, domain, pictures, workers=workers)
        table = [
            {"query_id": one.query_id, "image": tables.picture(image)}
            for one, image in zip(pictures, data, strict=True)
        ]
        path = folder / f"{name}queries.parquet"
        rows[path.stem] = tables.write_table(path, table, tables.QUERIES, seed=seed)
        if name:
            path = folder / f"{name}qrels.parquet"
            rows[path.stem] = tables.write_table(path, _qrels(pictures, plan.documents), tables.QRELS, seed=seed)
    _write_truth(plan, folder, seed=seed)
    summary = _summary(cell, domain, plan, rows)
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _behaviour(plan: Plan, folder: Path, *, seed: int) -> int:
    names = tuple(tables.BEHAVIOUR)
    rows = [{name: getattr(one, name) for name in names} | {"position": float(one.position)} for one in plan.clicks]
    return tables.write_table(folder / "behaviour.parquet", rows, tables.BEHAVIOUR, seed=seed)


def _catalogue(cell: Cell, domain: Domain, plan: Plan, folder: Path, *, workers: int) -> int:
    documents = [one for rows in plan.documents.values() for one in rows]
    jobs = [_document_job(cell, domain, one) for one in documents]
    pictures = map_in_order(document_picture, jobs, workers=workers, description="documents")
    leaf = {one.key: one.leaf for one in plan.categories}
    rows = [
        {"doc_id": one.doc_id, "image": tables.picture(data), "text": one.text}
        | ({"leaf": leaf[one.category]} if cell.leaf else {})
        for one, data in zip(documents, pictures, strict=True)
    ]
    features = tables.CATALOGUE if cell.leaf else WITHOUT_LEAF
    return tables.write_table(folder / "catalogue.parquet", rows, features, seed=cell.seed)


def _document_job(cell: Cell, domain: Domain, one: Document) -> Job:
    png = domain.drawings[one.category][one.artist][one.drawing]
    # One artist shows all drawings alike; every copy has colours of its own.
    name = one.doc_id if one.copy else f"{one.artist} {one.drawing}"
    return Job(png, cell.seed, name, one.copy, domain.painted)


def _query_pictures(cell: Cell, domain: Domain, pictures: Sequence[Picture], *, workers: int) -> list[bytes]:
    jobs = [
        Job(domain.drawings[one.category][one.artist][one.drawing], cell.seed, one.query_id, one.number, domain.painted)
        for one in pictures
    ]
    return distinct_pictures(query_picture, jobs, workers=workers, description="query pictures")


def _qrels(pictures: Sequence[Picture], documents: Mapping[str, Sequence[Document]]) -> list[dict[str, Any]]:
    return [
        {"query_id": one.query_id, "doc_id": document.doc_id, "relevance": 1}
        for one in pictures
        for document in documents[one.category]
    ]


def _write_truth(plan: Plan, folder: Path, *, seed: int) -> None:
    """Tables that only scoring reads: categories of documents and queries, and which clicks are right."""
    documents = [
        {"doc_id": one.doc_id, "category": one.category, "artist": one.artist, "role": plan.roles[one.category]}
        for rows in plan.documents.values()
        for one in rows
    ]
    queries = [
        {"query_id": one.query_id, "category": one.category, "artist": one.artist, "part": part}
        for part, pictures in (("behaviour", plan.events), ("seen", plan.seen), ("test", plan.test))
        for one in pictures
    ]
    clicks = [{name: getattr(one, name) for name in tables.TRUTH_CLICKS} for one in plan.clicks]
    tables.write_table(folder / "truth/catalogue.parquet", documents, TRUTH_DOCUMENTS, seed=seed)
    tables.write_table(folder / "truth/queries.parquet", queries, TRUTH_QUERIES, seed=seed)
    tables.write_table(folder / "truth/clicks.parquet", clicks, tables.TRUTH_CLICKS, seed=seed)


def _summary(cell: Cell, domain: Domain, plan: Plan, rows: Mapping[str, int]) -> dict[str, Any]:
    documents = [one for found in plan.documents.values() for one in found]
    clicked = {one.doc_id for one in plan.clicks}
    outside = [one for one in documents if plan.roles[one.category] != "test"]
    total = sum(one.clicks for one in plan.clicks)
    wrong = sum(one.clicks for one in plan.clicks if not one.right)
    pictures = (*plan.events, *plan.seen, *plan.test)
    used = {one.artist for one in documents} | {one.artist for one in pictures}
    count: Callable[[Sequence[bool]], int] = sum
    return {
        "simulated": True,
        "note": NOTE,
        "settings": cell.as_json(),
        "rows": dict(sorted(rows.items())),
        "categories": dict(sorted(Counter(plan.roles.values()).items())),
        "documents": {
            "first drawings": count([one.drawing == one.copy == 0 for one in documents]),
            "other drawings of an artist": count([one.drawing > 0 for one in documents]),
            "recoloured copies": count([one.copy > 0 for one in documents]),
            "ever clicked": round(len(clicked) / len(outside), 4),
            "without text": round(count([not one.text for one in documents]) / len(documents), 4),
        },
        "clicks": total,
        "wrong_click_share": round(wrong / total, 4),
        "attribution": [
            _source(one) for one in (*domain.artists, *domain.words) if one.name in used or one in domain.words
        ],
    }


def _source(one: Artist) -> dict[str, str]:
    return {"package": one.package, "version": one.version, "licence": one.licence, "project": one.project}
