"""The commands of `python -m retrieval`: each reads its inputs, computes and writes."""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path

import faiss
import pyarrow.parquet
import torch

from retrieval.encoder import RetrievalEncoder, load_encoder, load_query_encoder
from retrieval.evaluation.evaluate import EvaluationTables
from retrieval.evaluation.evaluate import evaluate as score_queries
from retrieval.index import changes
from retrieval.index.embed import Changes
from retrieval.index.folder import load_index, save_index, versions
from retrieval.index.search import SearchOptions
from retrieval.index.search import search as search_index
from retrieval.index.store import Index, build_index, describe
from retrieval.report.page import Sources, write_answers, write_report
from retrieval.report.picture import write_sheet
from retrieval.tables import CATALOGUE, FIELDS, GALLERY, MERGE, QRELS, QUERIES, Table, read_table
from runtime.files import only_user
from runtime.threads import num_threads

logger = logging.getLogger(__name__)


def index(options: argparse.Namespace) -> None:
    """Embed a catalogue and write the index folder."""
    _set_threads(options.threads)
    catalogue = read_table(options.catalogue, CATALOGUE)
    out = Path(options.out)
    with only_user(out, lock=out.resolve().with_name(f".{out.resolve().name}.lock")):
        encoder = load_encoder(options.model, bf16=options.bf16, device=options.device)
        found = _build(encoder, catalogue, options)
        save_index(found, out)


def update(options: argparse.Namespace) -> None:
    """Change an index and print what changed as one JSON line; list its versions as one line each."""
    folder = Path(options.index)
    if options.catalogue:
        if not options.model:
            raise ValueError("--catalogue needs --model: the model that the index was built with")
        _set_threads(options.threads)
        catalogue = read_table(options.catalogue, CATALOGUE)
        encoder = load_encoder(options.model, bf16=options.bf16, device=options.device)
        counts = changes.upsert(encoder, folder, catalogue, batch_size=options.batch_size)
    elif options.fields:
        counts = changes.update_fields(folder, read_table(options.fields, FIELDS))
    elif options.delete or options.delete_from:
        ids = options.delete or read_table(options.delete_from, GALLERY).read(["doc_id"])["doc_id"]
        counts = changes.delete(folder, ids)
    elif options.compact:
        counts = changes.compact(folder)
    elif options.rollback is not None:
        counts = changes.rollback(folder, options.rollback or None)
    else:
        for version in versions(folder):
            print(json.dumps(dataclasses.asdict(version)))
        return
    print(json.dumps(counts))


def search(options: argparse.Namespace) -> None:
    """Print one JSON line per answer, and one per picture that cannot be used, with its reason."""
    _set_threads(options.threads)
    found = load_index(Path(options.index))
    encoder = load_query_encoder(options.model, bf16=options.bf16, device=options.device)
    skipped: list[dict[str, str]] = []
    wanted = SearchOptions(k=options.k, where=options.where, group_by=options.group_by, fold=options.fold)
    images = [Path(name) for name in options.image]
    answers = search_index(encoder, found, images, options=wanted, skipped=skipped)
    for line in skipped:
        print(json.dumps(line, ensure_ascii=False))
        logger.warning("skipped %s", line["skipped"])
    for one in answers:
        for line in one.lines(found):
            print(json.dumps(line, ensure_ascii=False))
    if options.html:
        write_answers(answers, found, _writable(options.html))


def evaluate(options: argparse.Namespace) -> None:
    """Write the metrics JSON and, on request, the per-query table."""
    _set_threads(options.threads)
    if options.index and (options.text != "keep" or options.images != "keep"):
        raise ValueError("--text and --images embed the documents again: leave --index out, or index with them")
    tables = EvaluationTables(
        catalogue=read_table(options.catalogue, CATALOGUE),
        queries=read_table(options.queries, QUERIES),
        qrels=read_table(options.qrels, QRELS),
        members=read_table(options.gallery, GALLERY) if options.gallery else None,
        same=read_table(options.merge, MERGE, may_be_empty=True) if options.merge else None,
    )
    out = _writable(options.out)
    encoder = load_query_encoder(options.model, bf16=options.bf16, device=options.device)
    found = _index_for(options, tables.catalogue)
    result = score_queries(encoder, found, tables, calibrate=not options.no_calibration, batch_size=options.batch_size)
    metrics = result.metrics | {"command": command_line()}
    out.write_text(json.dumps(metrics, indent=2) + "\n")
    if options.per_query:
        pyarrow.parquet.write_table(result.per_query, _writable(options.per_query), compression="zstd")
    shown = ("recall_at_1", "recall_at_10", "mrr_at_10", "queries", "documents", "skipped")
    print(", ".join(f"{name} {metrics[name]:.4g}" for name in shown), file=sys.stderr)


def page(options: argparse.Namespace) -> None:
    """Write the report page."""
    _set_threads(options.threads)
    sources = dataclasses.replace(
        _sources(options),
        metrics=Path(options.metrics) if options.metrics else None,
        ledger=Path(options.ledger) if options.ledger else None,
        governed=Path(options.governed) if options.governed else None,
        training=Path(options.training) if options.training else None,
    )
    encoder = load_query_encoder(options.model, bf16=options.bf16, device=options.device)
    write_report(encoder, sources, _writable(options.html), shown=options.shown, seed=options.seed)


def picture(options: argparse.Namespace) -> None:
    """Write the contact sheet."""
    write_sheet(_sources(options), _writable(options.out), rows=options.rows, seed=options.seed)


def _sources(options: argparse.Namespace) -> Sources:
    return Sources(
        index=load_index(Path(options.index)).settled(),
        queries=read_table(options.queries, QUERIES),
        qrels=read_table(options.qrels, QRELS),
        per_query=Path(options.per_query),
    )


def _index_for(options: argparse.Namespace, catalogue: Table) -> Index:
    if options.index:
        return load_index(Path(options.index)).settled()
    return _build(load_encoder(options.model, bf16=options.bf16, device=options.device), catalogue, options)


def _build(encoder: RetrievalEncoder, catalogue: Table, options: argparse.Namespace) -> Index:
    found = build_index(
        encoder,
        catalogue,
        changes=Changes(text=options.text, images=options.images, seed=options.seed),
        batch_size=options.batch_size,
        imputation=not options.no_imputation,
        exact_below=options.exact_below,
        governed=Path(options.governed) if getattr(options, "governed", None) else None,
    )
    logger.info(describe(found))
    return found


def _set_threads(wanted: int | None) -> None:
    threads = wanted or num_threads()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def command_line(arguments: list[str] | None = None) -> str:
    """The command that was run; paths below the working folder stay as they are, others are cut to their name."""
    words = sys.argv[1:] if arguments is None else arguments
    return " ".join(["python -m retrieval", *(_relative(word) for word in words)])


def _relative(word: str) -> str:
    if not (word.startswith("/") or ".." in Path(word).parts):
        return word
    place = Path(word).resolve()
    here = Path.cwd().resolve()
    return str(place.relative_to(here)) if place.is_relative_to(here) else place.name


def _writable(name: str) -> Path:
    """The path of a file to write; its folder is created."""
    path = Path(name)
    if path.is_dir():
        raise ValueError(f"{name} is a folder: name the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


COMMANDS = {"index": index, "update": update, "search": search, "evaluate": evaluate, "page": page, "picture": picture}
