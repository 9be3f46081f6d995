"""Command line of retrieval: index, update, search, evaluate, page, picture."""

import argparse
import sys
from collections.abc import Sequence

from retrieval.index import EXACT_BELOW
from runtime import logs
from runtime.devices import DEVICES

EXAMPLES = {
    "index": "python -m retrieval index --model runs/x/hub --catalogue data/catalogue.parquet --out index",
    "update": "python -m retrieval update --index index --model runs/x/hub --catalogue new.csv",
    "search": "python -m retrieval search --model runs/x/hub --index index --image photo.png --html answers.html",
    "evaluate": "python -m retrieval evaluate --model runs/x/hub --catalogue data/catalogue.parquet "
    "--queries data/test_queries.parquet --qrels data/test_qrels.parquet --out metrics.json",
    "page": "python -m retrieval page --model runs/x/hub --index index --queries data/test_queries.parquet "
    "--qrels data/test_qrels.parquet --per-query per_query.parquet --html report.html",
    "picture": "python -m retrieval picture --per-query per_query.parquet --index index "
    "--queries data/test_queries.parquet --qrels data/test_qrels.parquet --out answers.png",
}
HELP = {
    "index": "embed a catalogue and write its index folder",
    "update": "add, replace or delete documents of an index, change their fields, compact it, or go back",
    "search": "search with query pictures and print one JSON line per answer",
    "evaluate": "rank a gallery for test queries and write the metrics",
    "page": "write the report page: answers, attention maps, metrics; one HTML file that needs no network",
    "picture": "draw a contact sheet of answers as a PNG",
}


def build_parser() -> argparse.ArgumentParser:
    """The argument parser with all commands; a test freezes the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m retrieval",
        description="Search a catalogue of image + text documents with a picture.",
        epilog=f"example: {EXAMPLES['index']}",
    )
    actions = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    added = {
        name: actions.add_parser(name, help=HELP[name], description=HELP[name], epilog=f"example: {EXAMPLES[name]}")
        for name in HELP
    }
    _index_flags(added["index"])
    _update_flags(added["update"])
    _search_flags(added["search"])
    _evaluate_flags(added["evaluate"])
    _page_flags(added["page"])
    _picture_flags(added["picture"])
    return parser


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="FOLDER", help="published folder (runs/x/hub) or Hub id")
    _compute_flags(parser)


def _compute_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: OCLEAR_THREADS, else the idle cores")
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="pictures per forward pass")
    parser.add_argument(
        "--bf16", action="store_true", help="compute in bfloat16: faster, embeddings differ by about .4%%"
    )
    parser.add_argument("--device", default="auto", help=f"{DEVICES}; default %(default)s: a GPU where there is one")


def _document_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", choices=("keep", "remove", "shuffle"), default="keep", help="ablation of the texts")
    parser.add_argument("--images", choices=("keep", "remove"), default="keep", help="ablation of the pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of --text shuffle")
    parser.add_argument("--no-imputation", action="store_true", help="no imputed text shift for documents without text")
    parser.add_argument(
        "--exact-below", type=_positive, default=EXACT_BELOW, metavar="N", help="approximate search from N documents on"
    )


def _index_flags(parser: argparse.ArgumentParser) -> None:
    _model_flags(parser)
    _document_flags(parser)
    parser.add_argument("--catalogue", required=True, metavar="TABLE", help="doc_id, image, text, optional leaf")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the index folder to write")
    parser.add_argument(
        "--governed", metavar="FOLDER", help="governed folder: what it kept of the same pictures is not computed again"
    )


def _update_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", required=True, metavar="FOLDER", help="index folder")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--catalogue", metavar="TABLE", help="doc_id, image, text: add these, or replace them")
    action.add_argument("--fields", metavar="TABLE", help="doc_id and columns to change, such as a price")
    action.add_argument("--delete", nargs="+", metavar="ID", help="remove these documents")
    action.add_argument("--delete-from", metavar="TABLE", help="doc_id: remove these documents")
    action.add_argument("--compact", action="store_true", help="write all changes into a new base")
    action.add_argument(
        "--rollback", nargs="?", type=_positive, const=0, metavar="N", help="go back to version N; default: the last"
    )
    action.add_argument("--versions", action="store_true", help="list the versions that can be gone back to")
    _compute_flags(parser)
    parser.add_argument("--model", metavar="FOLDER", help="for --catalogue: the model that the index was built with")


def _search_flags(parser: argparse.ArgumentParser) -> None:
    _model_flags(parser)
    parser.add_argument("--index", required=True, metavar="FOLDER", help="index folder")
    parser.add_argument(
        "--image", required=True, action="append", metavar="FILE", help="query picture; may be repeated"
    )
    parser.add_argument("--k", type=_positive, default=10, metavar="N", help="answers per picture")
    parser.add_argument(
        "--where", metavar="CONDITION", help="""search among these only, such as "price < 50 and brand = 'x'\""""
    )
    parser.add_argument("--group-by", metavar="COLUMN", help="one answer for each value, such as a product number")
    parser.add_argument(
        "--fold",
        type=float,
        metavar="COSINE",
        help="leave out documents this close to a better answer, such as .99",
    )
    parser.add_argument("--html", metavar="FILE", help="also write the answers as a page")


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    _model_flags(parser)
    _document_flags(parser)
    parser.add_argument("--catalogue", required=True, metavar="TABLE", help="doc_id, image, text, optional leaf")
    parser.add_argument("--queries", required=True, metavar="TABLE", help="query_id, image; further columns slice")
    parser.add_argument("--qrels", required=True, metavar="TABLE", help="query_id, doc_id, relevance")
    parser.add_argument("--out", required=True, metavar="FILE", help="metrics as JSON")
    parser.add_argument("--gallery", metavar="TABLE", help="doc_id: search among these only")
    parser.add_argument("--merge", metavar="TABLE", help="doc_id, same_as: ids that are one document")
    parser.add_argument("--per-query", metavar="FILE", help="also write one Parquet row per query")
    parser.add_argument("--index", metavar="FOLDER", help="use this index instead of embedding the catalogue again")
    parser.add_argument("--no-calibration", action="store_true", help="ignore the calibration of the index")


def _page_flags(parser: argparse.ArgumentParser) -> None:
    _model_flags(parser)
    _shown_flags(parser)
    parser.add_argument("--ledger", metavar="FILE", help="ledger.json of the governance run")
    parser.add_argument("--metrics", metavar="FILE", help="metrics.json with the systems to compare")
    parser.add_argument("--governed", metavar="FOLDER", help="governed folder, for the sizes of its categories")
    parser.add_argument("--training", metavar="FILE", help="training.json of the run: what was published and why")
    parser.add_argument("--shown", type=_positive, default=60, metavar="N", help="number of queries on the page")
    parser.add_argument("--html", required=True, metavar="FILE", help="the page to write")


def _picture_flags(parser: argparse.ArgumentParser) -> None:
    _shown_flags(parser)
    parser.add_argument("--rows", type=_positive, default=6, metavar="N", help="number of queries in the picture")
    parser.add_argument("--out", required=True, metavar="FILE", help="the PNG to write")


def _shown_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", required=True, metavar="FOLDER", help="index folder")
    parser.add_argument("--queries", required=True, metavar="TABLE", help="query_id, image")
    parser.add_argument("--qrels", required=True, metavar="TABLE", help="query_id, doc_id, relevance")
    parser.add_argument("--per-query", required=True, metavar="FILE", help="per-query table written by evaluate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of queries")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after an error of the caller."""
    options = build_parser().parse_args(arguments)
    # torch and transformers take seconds to import: --help and a wrong flag need neither.
    from pyarrow import ArrowException

    from retrieval import commands

    logs.configure()
    try:
        commands.COMMANDS[options.command](options)
    except (ValueError, OSError, ArrowException) as error:
        lines = str(error).strip().split("\n")
        print(f"error: {lines[0] or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
