"""Ids that look alike and are not equal: a likely mistake, which is warned about and never mended.

Governance compares ids as they are written. `lookalike` is strict: two ids of one table that share it can hardly be
told apart. `nearest_form` is loose: a click on an unknown id that shares it with a known one was probably meant for it.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_governance.entities import DOCUMENT, QUERY, Side
from data_governance.inputs import shards
from modeling_oclear.visible_text_oclear import is_visible

SHOWN = 3
# Reason in the log -> the side whose id is unknown.
UNKNOWN = {"unknown_query": QUERY, "unknown_document": DOCUMENT}
WHOLE = re.compile(r"0*(\d+)(\.0*)?", re.ASCII)


def lookalike(name: str) -> str:
    """An id as it looks: two ids with the same value differ only in composition, width, spaces at the ends, invisibles.

    >>> lookalike("e\u0301 ") == lookalike("\u00e9")
    True
    """
    if name.isascii() and name.isprintable():
        return name.strip()
    shown = "".join(letter for letter in unicodedata.normalize("NFKC", name) if is_visible(letter) or letter == " ")
    return unicodedata.normalize("NFC", shown).strip()


def nearest_form(name: str) -> str:
    """`lookalike` without case, leading zeros and the decimals of a whole number.

    >>> nearest_form(" 31.0"), nearest_form("000031"), nearest_form("SKU-7")
    ('31', '31', 'sku-7')
    """
    found = lookalike(name).casefold()
    number = WHOLE.fullmatch(found)
    return number[1] if number else found


def lookalikes(table: pa.Table | None, side: Side) -> list[str]:
    """A warning for ids of a table that look alike and are not equal."""
    first: dict[str, str] = {}
    pairs = []
    for row_id in [] if table is None else table.column(side.key).to_pylist():
        other = first.setdefault(lookalike(row_id), row_id)
        if other != row_id:
            pairs.append(f"{other!a} and {row_id!a}")
    if not pairs:
        return []
    shown = "; ".join(pairs[:SHOWN])
    return [f"{side.source}: {len(pairs)} ids look like another one ({shown}): they are different ids here"]


@dataclass
class _NearMiss:
    """Rows whose unknown id nearly is a known one, and the first such pair."""

    rows: int = 0
    pair: tuple[str, str] = ("", "")


def near_misses(dropped: Iterable[Path], known: Mapping[str, pa.Table]) -> list[str]:
    """Warnings for rows of the log that were dropped for an unknown id which nearly is a known one, one per side.

    Args:
        dropped: shards of dropped rows. known: id column -> table with the ids that a row may name.
    """
    forms: dict[str, dict[str, str]] = {}
    found: dict[str, _NearMiss] = {}
    for part in shards.batches(dropped, ["reason", *known]):
        for reason, side in UNKNOWN.items():
            mine = part.filter(pc.equal(part.column("reason"), reason))
            if not mine.num_rows:
                continue
            if side.key not in forms:
                forms[side.key] = {nearest_form(name): name for name in known[side.key].column(side.key).to_pylist()}
            for count in pc.value_counts(mine.column(side.key)).to_pylist():
                name = forms[side.key].get(nearest_form(count["values"]))
                if name is not None:
                    miss = found.setdefault(side.key, _NearMiss(pair=(count["values"], name)))
                    miss.rows += count["counts"]
    return [
        f"behaviour: {miss.rows} rows name an unknown {key} that nearly is a known one, such as {miss.pair[0]!a} for "
        f"{miss.pair[1]!a}: they are rejected. Write ids alike in all tables, as text"
        for key, miss in found.items()
    ]
