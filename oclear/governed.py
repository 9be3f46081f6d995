"""Governance from Python: `govern` and the folder that it writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_governance.context import Request
from data_governance.pipeline import govern as govern_folder
from data_governance.policy import Policy, load_policy
from oclear.frames import as_file


class Governed:
    """A governed folder: categories, samples, and a reason for every rejected row.

    Args:
        folder: as `oclear.govern` or `oclear govern` wrote it.

    Raises:
        ValueError: the folder holds no finished governance.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "ledger.json").is_file():
            raise ValueError(
                f"{self.folder} holds no ledger.json; write it with oclear.govern(..., out={str(folder)!r})"
            )

    @property
    def ledger(self) -> dict[str, Any]:
        """Counts of every stage and table, as in ledger.json."""
        found: dict[str, Any] = json.loads((self.folder / "ledger.json").read_text(encoding="utf-8"))
        return found

    @property
    def categories(self) -> pa.Table:
        """One row a category: category_id, category_key, size, documents, queries, leaf, band and more."""
        return pq.read_table(self.folder / "categories.parquet")

    def dropped(self, table: str) -> pa.Table:
        """The rejected rows of one table, with `reason` and `detail`.

        Args:
            table: "behaviour", "queries" or "catalogue".

        Raises:
            ValueError: another name.
        """
        path = self.folder / "dropped" / f"{table}.parquet"
        if not path.is_file():
            names = ", ".join(sorted(one.stem for one in path.parent.glob("*.parquet")))
            raise ValueError(f"{table!r} is no table of rejected rows; {self.folder} has {names}")
        return pq.read_table(path)

    def explain(self, row_id: str) -> str:
        """What every stage decided about one query, document or row of the log, as lines of text.

        Raises:
            ValueError: no such id in this run.
        """
        from data_governance.reports.lineage import row_lineage

        return "\n".join(row_lineage(self.folder, row_id))

    def report(self, html: str | Path | None = None) -> Path:
        """Write the report page and return its path; default `governance.html` in the folder."""
        from data_governance.reports.report import write_report

        path = Path(html) if html is not None else self.folder / "governance.html"
        write_report(self.folder, path)
        return path

    def __repr__(self) -> str:
        rows = self.ledger["rows"]
        shown = ", ".join(f"{name} {one['kept']} of {one['in']}" for name, one in rows.items())
        return f"Governed({str(self.folder)!r}: rows kept: {shown}; {self.categories.num_rows} categories)"


def govern(
    *,
    behaviour: Any,
    queries: Any,
    catalogue: Any,
    out: str | Path = "governed",
    policy: Policy | str | Path | Mapping[str, Any] | None = None,
    overrides: Any = None,
    previous: "Governed | str | Path | None" = None,
    incremental: bool = False,
    encoder: str | Path | None = None,
    engine: str = "duckdb",
) -> Governed:
    """Turn a click log, query pictures and a catalogue into labelled categories.

    Complete stages in `out` are reused, so that a second call goes on where the first one stopped.

    Args:
        behaviour: query_id, doc_id, clicks and more; a path, a Hub id, a pandas or polars DataFrame, a pyarrow Table, a
            `datasets.Dataset`, a list of dicts or a dict of columns.
        queries: query_id, image; an image is a PIL image, bytes, a path, or the struct of `datasets`.
        catalogue: doc_id, image, text; each document has one of both at least.
        out: governed folder; tables in memory are kept in `out/inputs`.
        policy: fields of the policy, or a TOML file of them; None is the default policy.
        overrides: manual decisions: side, id, action, category_key, why.
        previous: earlier governed folder, whose category keys are kept and whose images are not decoded again.
        incremental: with `previous`: regroup only documents that new rows touch.
        encoder: folder of a saved model; its own code is run. None is the packaged encoder.
        engine: "duckdb" or "spark".

    Raises:
        ValueError: a mistake in a table, a column or a value, with its place and its remedy.
    """
    folder, settings = Path(out), _policy(policy)
    tables = {"behaviour": behaviour, "queries": queries, "catalogue": catalogue}
    paths = {name: as_file(data, name=name, folder=folder / "inputs") for name, data in tables.items()}
    decisions = None if overrides is None else Path(as_file(overrides, name="overrides", folder=folder / "inputs"))
    request = Request(
        **paths,
        out=folder,
        encoder=None if encoder is None else Path(encoder),
        previous=previous.folder if isinstance(previous, Governed) else None if previous is None else Path(previous),
        engine=engine,
        overrides=decisions,
        incremental=incremental,
    )
    govern_folder(request, settings)
    return Governed(folder)


def _policy(given: Policy | str | Path | Mapping[str, Any] | None) -> Policy:
    if isinstance(given, Policy):
        return given
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(Policy.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"policy has no field {', '.join(unknown)}; the fields are listed by oclear govern --print-policy"
            )
        return Policy(**given)
    return load_policy(None if given is None else Path(given))
