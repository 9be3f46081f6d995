"""Plant bad rows among good ones and measure what admission does with them.

Two sets of tables: the good rows alone, and the same with one bad row in every `--every`, of every kind in turn. The
admit stage processes them alternately, `--repeats` times each after one run that is not counted. Times are CPU seconds
of this process and include writing the log's shards. Images go through all checks, but to a stand-in encoder that costs
nothing: a real one would hide a slowdown. Only a few catalogue rows have an image, since decoding a million images
takes hours.

Then tables and files that are broken as a whole: a missing column, a wrong type and an empty table must end with an
error that names them; a folder with one truncated file must keep the rows of the others.
"""

import io
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import processes, result_file
from data_governance.context import GovernanceContext, Inputs
from data_governance.inputs import behaviour_log, shards
from data_governance.inputs.behaviour_log import log_of
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.engine import Engine
from data_governance.inputs.tables import source_of
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
from data_governance.stages import admit

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAN = float("nan")
QUERIES, DRAWN_DOCUMENTS = 500, 250
FILES = 10
# Few, because each is ten million characters.
LONG_TEXTS = 3
Row = dict[str, Any]


class StandIn(Encoder):
    """Encoder that costs almost nothing: mean colours of the four quarters of a square."""

    def __init__(self) -> None:
        self.name = "stand-in"

    def block_widths(self, image_size: int) -> list[int]:
        return [12]

    def maps_key(self, processor: Any) -> str | None:
        return None

    def features(self, squares_NSSC: np.ndarray, *, maps: list[dict[str, np.ndarray]] | None = None) -> np.ndarray:
        half = squares_NSSC.shape[1] // 2
        quarters = squares_NSSC[:, : 2 * half, : 2 * half].reshape(-1, 2, half, 2, half, 3).mean(axis=(2, 4))
        return np.asarray(quarters.reshape(len(quarters), 12), dtype=np.float16)


def png(seed: int) -> Row:
    """Value of an image column: a small drawing of coloured fields."""
    out = io.BytesIO()
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((40, 40), Image.Resampling.NEAREST).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def header_only(width: int, height: int) -> bytes:
    """PNG whose header gives width x height and which has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def good_tables(rows: int, seed: int) -> dict[str, pa.Table]:
    """Draw `rows` rows of behaviour and of catalogue, and the queries."""
    rng = np.random.default_rng(seed)
    drawn = [png(i) for i in range(DRAWN_DOCUMENTS)] + [None] * (rows - DRAWN_DOCUMENTS)
    catalogue = {
        "doc_id": pc.binary_join_element_wise("d", pa.array(np.arange(rows)).cast(pa.string()), ""),
        "image": pa.array(drawn, IMAGE),
        "text": pc.binary_join_element_wise("thing", pa.array(rng.integers(0, 99, rows)).cast(pa.string()), " "),
        "leaf": pa.array(["leaf"] * rows),
    }
    behaviour = {
        "query_id": pc.binary_join_element_wise("q", pa.array(rng.integers(0, QUERIES, rows)).cast(pa.string()), ""),
        "doc_id": pc.binary_join_element_wise("d", pa.array(rng.integers(0, rows, rows)).cast(pa.string()), ""),
        "clicks": pa.array(rng.integers(0, 3, rows).astype(float)),
        "impressions": pa.array(rng.integers(3, 9, rows).astype(float)),
        "position": pa.array(rng.integers(1, 9, rows).astype(float)),
    }
    queries = {
        "query_id": [f"q{i}" for i in range(QUERIES)],
        "image": pa.array([png(i) for i in range(QUERIES)], IMAGE),
    }
    tables = {"behaviour": behaviour, "queries": queries, "catalogue": catalogue}
    return {name: pa.table(columns) for name, columns in tables.items()}


def planted_rows(rows: int, every: int) -> dict[str, list[tuple[str, Row]]]:
    """(reason, bad row) of every kind in turn: one for every `every` good rows of a table."""
    click: Row = {"query_id": "q0", "doc_id": "d0", "clicks": 1.0, "impressions": 3.0, "position": 1.0}
    item: Row = {"doc_id": "", "image": None, "text": "a thing", "leaf": "leaf"}
    behaviour: list[tuple[str, Row]] = [
        ("missing_id", {"query_id": None}),
        ("unknown_query", {"query_id": "nobody"}),
        ("unknown_document", {"doc_id": "nothing"}),
        ("clicks_missing", {"clicks": NAN}),
        ("clicks_negative", {"clicks": -1.0}),
        ("clicks_not_whole", {"clicks": 0.5}),
        ("impressions_negative", {"impressions": -2.0}),
        ("fewer_impressions_than_clicks", {"clicks": 9.0}),
        ("position_below_one", {"position": 0.0}),
    ]
    cells: list[tuple[str, Row]] = [
        ("image_undecodable", {"bytes": b"no image", "path": None}),
        ("image_too_many_pixels", {"bytes": header_only(50_000, 50_000), "path": None}),
        ("image_path_escapes_folder", {"bytes": None, "path": "../x.png"}),
        ("image_file_missing", {"bytes": None, "path": "x.png"}),
    ]
    catalogue: list[tuple[str, Row]] = [("missing_id", {}), ("duplicate_id", {"doc_id": "d1"})]
    catalogue += [("neither_image_nor_text", {"doc_id": "bad{}", "text": " "})]
    catalogue += [(reason, {"doc_id": "bad{}", "image": cell}) for reason, cell in cells]
    asked: list[tuple[str, Row]] = [
        ("duplicate_id", {"query_id": "q1", "image": png(1)}),
        ("image_missing", {"query_id": "bad{}", "image": None}),
    ]
    asked += [(reason, {"query_id": "bad{}", "image": cell}) for reason, cell in cells]
    found = {
        "behaviour": in_turn(behaviour, click, rows // every),
        "queries": in_turn(asked, {}, max(QUERIES // every, len(asked))),
        "catalogue": in_turn(catalogue, item, rows // every),
    }
    long_text = {**item, "text": "x" * 10_000_000}
    found["catalogue"] += [("text_too_long", {**long_text, "doc_id": f"long{i}"}) for i in range(LONG_TEXTS)]
    return found


def in_turn(kinds: list[tuple[str, Row]], whole: Row, count: int) -> list[tuple[str, Row]]:
    """`count` copies of `whole`, each with the changes of one kind; {} in an id becomes the number of the row."""
    rows = []
    for i in range(count):
        reason, change = kinds[i % len(kinds)]
        named = {name: value.format(i) if isinstance(value, str) else value for name, value in change.items()}
        rows.append((reason, {**whole, **named}))
    return rows


def mixed(sound: pa.Table, rows: list[Row], seed: int) -> tuple[pa.Table, np.ndarray]:
    """Insert bad rows at random places among the good ones, which keep their order.

    Returns:
        The table, and the row numbers of the good rows.
    """
    both = pa.concat_tables([sound, pa.Table.from_pylist(rows, schema=sound.schema)])
    # The first good row stays first: a duplicate is the later row of one id.
    place = np.random.default_rng(seed).uniform(2, sound.num_rows, len(rows))
    order = np.argsort(np.concatenate([np.arange(sound.num_rows), place]), kind="stable")
    return both.take(pa.array(order)), np.flatnonzero(order < sound.num_rows)


def admitted(tables: dict[str, pa.Table], folder: Path) -> tuple[float, StageResult]:
    """CPU seconds and result of the admit stage on one thread."""
    queries, catalogue = (source_of(tables[name], name=name, folder=folder) for name in ("queries", "catalogue"))
    inputs, policy = Inputs(log_of(tables["behaviour"]), queries, catalogue), Policy(threads=1)
    context = GovernanceContext(Workspace(folder), inputs, policy, Engine(policy), StandIn())
    start = time.process_time()
    result = admit.admit(context)
    return time.process_time() - start, result


def kept_tables(result: StageResult) -> dict[str, pa.Table]:
    """Tables of the accepted rows, without row numbers, which bad rows before them shift."""
    log = pa.concat_tables(shards.batches(result.shards("behaviour")))
    return {
        name: table.drop_columns([c for c in ("row", "row_id") if c in table.column_names]).combine_chunks()
        for name, table in {**result.tables, "behaviour": log}.items()
    }


def rejected_rows(result: StageResult) -> Counter[tuple[str, str]]:
    """Number of rejected rows by table and reason."""
    counts = Counter((row["table"], row["reason"]) for row in result.decisions)
    for part in shards.batches(result.shards("behaviour_dropped"), ["reason"]):
        counts.update(("behaviour", reason) for reason in part.column("reason").to_pylist())
    return counts


def slowdown(rows: int, *, every: int, repeats: int, seed: int) -> dict[str, Any]:
    """Compare CPU seconds with and without bad rows (minimum over repeats), and check that each was found."""
    sound, planted = good_tables(rows, seed), planted_rows(rows, every)
    dirty = {name: mixed(table, [row for _, row in planted[name]], seed)[0] for name, table in sound.items()}
    seconds: dict[str, list[float]] = {"good": [], "mixed": []}
    with tempfile.TemporaryDirectory() as folder:
        # The first run of a process is faster than all later ones, with either input: its heap is still empty.
        first, _ = admitted(sound, Path(folder))
        for _ in range(repeats):
            for name, tables in (("good", sound), ("mixed", dirty)):
                taken, result = admitted(tables, Path(folder))
                seconds[name].append(round(taken, 2))
                if name == "good":
                    alone = kept_tables(result)
        kept, rejected = kept_tables(result), rejected_rows(result)
    expected = Counter((name, reason) for name, rows_of in planted.items() for reason, _ in rows_of)
    return {
        "good_rows": {name: table.num_rows for name, table in sound.items()},
        "bad_rows": {name: len(rows_of) for name, rows_of in planted.items()},
        "kinds": len(expected),
        "every_bad_row_found_for_its_reason": rejected == expected,
        "good_rows_equal": all(kept[name].equals(alone[name]) for name in alone),
        "cpu_seconds_of_the_first_run": round(first, 2),
        "cpu_seconds": seconds,
        "seconds_mixed_over_good": round(min(seconds["mixed"]) / min(seconds["good"]), 4),
        "peak_gib": processes.peak_gib(),
    }


def refused(rows: int, seed: int) -> dict[str, str | None]:
    """Error message for each table that cannot be used at all; None where none was raised."""
    sound = good_tables(rows, seed)["behaviour"]
    broken = {
        "missing column": sound.drop_columns(["doc_id"]),
        "wrong type": sound.set_column(2, "clicks", pa.array([True] * rows)),
        "no rows": sound.slice(0, 0),
    }
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, table in broken.items():
            pq.write_table(table, Path(folder) / "behaviour.parquet")
            try:
                behaviour_log.open_log(str(Path(folder) / "behaviour.parquet"))
                found[name] = None
            except ValueError as error:
                found[name] = str(error).replace(folder, "...")
    return found


def one_bad_file(rows: int, seed: int) -> dict[str, Any]:
    """Read a folder of `FILES` files with one truncated: lost files, rows of the other files, rows kept."""
    sound = good_tables(rows, seed)["behaviour"]
    part = -(-rows // FILES)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(FILES):
            pq.write_table(sound.slice(i * part, part), Path(folder) / f"{i}.parquet")
        cut = Path(folder) / "3.parquet"
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        log = behaviour_log.open_log(folder)
        kept = sum(table.num_rows for part in log.parts for table in part.batches())
    others = rows - sound.slice(3 * part, part).num_rows
    return {
        "files": FILES,
        "lost": [file for file, _ in log.lost],
        "rows_of_the_others": others,
        "rows_kept": kept,
    }


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "governance.bad_rows", str(__doc__), example="python -m benchmarks.governance.bad_rows --rows 1000000"
    )
    parser.add_argument("--rows", type=int, default=20_000, help="good rows of behaviour and of catalogue")
    parser.add_argument("--every", type=int, default=100, help="one bad row for so many good ones")
    parser.add_argument("--repeats", type=int, default=3, help="runs with and without bad rows, alternating")
    options = parser.parse_args(words)
    if min(options.rows // max(options.every, 1), options.repeats) < 1 or options.rows < DRAWN_DOCUMENTS:
        print(
            f"error: --rows {options.rows}: at least {DRAWN_DOCUMENTS} and --every; --repeats at least 1",
            file=sys.stderr,
        )
        return 2
    found = slowdown(options.rows, every=options.every, repeats=options.repeats, seed=options.seed)
    found |= {"refused": refused(options.rows, options.seed), "one_bad_file": one_bad_file(options.rows, options.seed)}
    result_file.write_result("governance.bad_rows", {"simulated": True, **found}, options.json, words)
    sound = found["every_bad_row_found_for_its_reason"] and found["good_rows_equal"] and all(found["refused"].values())
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
