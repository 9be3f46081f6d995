"""Measure what an --incremental governance run saves and what it keeps.

New are the last `--share` of the query events (by first click) and as many documents, drawn at random; an earlier run
has seen the rest. Then all rows are governed twice with the earlier run as --previous, each in its own process: in full
and with --incremental. The full run embeds its images again. An untouched document is an old one whose queries are all
old and have no new click: a document that lost clicks to a new one answers the same queries.

    cpu_share             CPU seconds of the incremental run / of the full one, start of Python and export included
    keys_kept             share of untouched documents that keep their category_key
    keys_kept_same_clicks the same for every old document whose own clicks are unchanged, its queries' clicks or not
    pair_f1               F1 of pairs of documents in one category: incremental against full
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import processes, result_file
from benchmarks.governance.organising import pair_scores

TABLES = ("behaviour", "queries", "catalogue")


def split_tables(data: Path, folder: Path, *, share: float, seed: int) -> dict[str, Any]:
    """Write the rows of the earlier run to `folder`; return counts of new rows and the untouched documents.

    Raises:
        ValueError: when the share leaves no new or no old rows.
    """
    behaviour, queries = pq.read_table(data / "behaviour.parquet"), pq.read_table(data / "queries.parquet")
    catalogue = pq.read_table(data / "train_catalogue.parquet")
    first = behaviour.group_by("query_id").aggregate([("at", "min")]).sort_by([("at_min", "ascending")])
    late = first.column("query_id").slice(round((1 - share) * first.num_rows))
    doc_ids = catalogue.column("doc_id").to_numpy(zero_copy_only=False)
    fresh = np.random.default_rng(seed).choice(doc_ids, round(share * len(doc_ids)), replace=False)
    if not 0 < len(late) < first.num_rows or not 0 < len(fresh) < len(doc_ids):
        raise ValueError(f"--share {share}: it must leave new and old rows among {first.num_rows} queries.")
    new_click = pc.or_(pc.is_in(behaviour["query_id"], late), pc.is_in(behaviour["doc_id"], pa.array(fresh)))
    clicked = set(behaviour.filter(new_click).column("doc_id").to_pylist())
    asking = pc.is_in(behaviour["query_id"], behaviour.filter(new_click)["query_id"].combine_chunks())
    near = set(behaviour.filter(asking).column("doc_id").to_pylist())
    known = behaviour.filter(pc.invert(new_click))
    # A query whose every click fell on a new document is new as well.
    asked = pc.is_in(queries["query_id"], known["query_id"])
    old = pc.invert(pc.is_in(catalogue["doc_id"], pa.array(fresh)))
    pq.write_table(known, folder / "behaviour.parquet")
    pq.write_table(queries.filter(asked), folder / "queries.parquet")
    pq.write_table(catalogue.filter(old), folder / "train_catalogue.parquet")
    counts = {"queries_new": int(pc.sum(pc.invert(asked)).as_py()), "documents_new": len(fresh)}
    counts["clicks_new"] = behaviour.num_rows - known.num_rows
    old_ids = set(doc_ids.tolist()) - set(fresh.tolist())
    return {"counts": counts, "same_clicks": sorted(old_ids - clicked), "untouched": sorted(old_ids - near)}


def run(data: Path, out: Path, *words: object) -> float:
    """CPU seconds of `python -m data_governance run`, over all of its threads.

    Raises:
        ValueError: when it fails; the message ends with its error output.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = processes.governance_command(data, out, *words)
    done = subprocess.run(command, cwd=processes.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"data_governance run failed: {done.stderr.strip()[-300:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)


def keys(governed: Path) -> dict[str, str]:
    """Document -> category_key."""
    table = pq.read_table(governed / "categories.parquet", columns=["category_id", "category_key"])
    key = dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    names = ["sample_id", "category_id"]
    rows = pq.read_table(governed / "samples", columns=names, filters=[("side", "=", "document")])
    return {doc: key[category] for doc, category in zip(*(rows.column(n).to_pylist() for n in names), strict=True)}


def compared(
    earlier: dict[str, str], full: dict[str, str], again: dict[str, str], split: dict[str, Any]
) -> dict[str, float]:
    """Metrics of the module's docstring, from the keys of all three runs and the result of `split_tables`."""
    both = sorted(set(full) & set(again))
    code = {key: i for i, key in enumerate(sorted({*full.values(), *again.values()}))}
    pairs = pair_scores(np.array([code[again[doc]] for doc in both]), np.array([code[full[doc]] for doc in both]))

    def kept(documents: list[str]) -> float:
        held = [doc for doc in documents if doc in earlier]
        return round(sum(again.get(doc) == earlier[doc] for doc in held) / max(len(held), 1), 4)

    found = {"untouched": len(split["untouched"]), "keys_kept": kept(split["untouched"])}
    return {**found, "keys_kept_same_clicks": kept(split["same_clicks"]), "pair_f1": pairs["f1"]}


def measured(data: Path, out: Path, *, share: float, seed: int) -> dict[str, Any]:
    """Run all three below `out`."""
    part = out / "earlier_data"
    part.mkdir(parents=True, exist_ok=True)
    split = split_tables(data, part, share=share, seed=seed)
    run(part, out / "earlier")
    seconds = {"incremental": run(data, out / "incremental", "--previous", out / "earlier", "--incremental")}
    seconds["full"] = run(data, out / "full")
    earlier, full, again = (keys(out / name) for name in ("earlier", "full", "incremental"))
    metrics = compared(earlier, full, again, split)
    speed = {f"{name}_cpu_seconds": value for name, value in seconds.items()}
    return {**split["counts"], **metrics, **speed, "cpu_share": round(seconds["incremental"] / seconds["full"], 4)}


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "governance.incremental",
        str(__doc__),
        example="python -m benchmarks.governance.incremental --data runs/demo/data",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of python -m examples.emoji")
    parser.add_argument("--share", type=float, default=0.01, help="share of queries and of documents that are new")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: a temporary one)")
    options = parser.parse_args(words)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(options.data, options.out or Path(folder), share=options.share, seed=options.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result_file.write_result(
        "governance.incremental", {"simulated_clicks": True, "share": options.share, **found}, options.json, words
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
