"""The command line of governance: run, check, explain, report."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_governance.policy import Policy, load_policy

EXAMPLE = """example:
  python -m data_governance run --behaviour data/behaviour.parquet --queries data/queries.parquet \\
      --catalogue data/train_catalogue.parquet --out governed

manual decisions (CSV, Parquet or JSON lines), applied in the next run:
  side,id,action,category_key,why
  query,q123,relabel,4f1c02ab99d0,shows a fox
  query,q124,keep,,the photo is dark but right
  document,d77,drop,,no longer sold
  ... run ... --out governed --overrides decisions.csv

new rows since an earlier run (its category keys are kept, its images are not decoded again):
  ... run ... --out governed2 --previous governed [--incremental]
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m data_governance",
        description="Turn a click log and a catalogue into labelled categories, with a reason for every row.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--print-policy", action="store_true", help="print the default policy as TOML")
    commands = top.add_subparsers(dest="command")
    for name, text in (("run", "govern the data"), ("check", "validate the inputs without writing output")):
        one = commands.add_parser(
            name, help=text, description=text, epilog=EXAMPLE, formatter_class=top.formatter_class
        )
        one.add_argument("--print-policy", action="store_true", help="print the policy as TOML and stop")
        for table in ("behaviour", "queries", "catalogue"):
            one.add_argument(
                f"--{table}", help="Parquet, CSV, JSON lines, a folder of those, a datasets folder or a Hub id"
            )
        one.add_argument("--policy", type=Path, help="TOML with fields of the policy")
        one.add_argument(
            "--encoder", type=Path, help="folder of a saved model, whose own code is run (default: packaged)"
        )
        one.add_argument("--engine", default="duckdb", choices=("duckdb", "spark"), help="relational engine")
        if name == "check":
            one.add_argument("--html", type=Path, help="also write a page with examples of the rejected rows")
        if name == "run":
            one.add_argument("--out", type=Path, help="governed folder; complete stages in it are reused")
            one.add_argument(
                "--previous",
                type=Path,
                help="earlier governed folder: its category keys are kept, its images are not decoded again",
            )
            one.add_argument(
                "--incremental",
                action="store_true",
                help="with --previous: keep its learned space; only documents touched by new rows are regrouped",
            )
        one.add_argument(
            "--overrides",
            type=Path,
            help="manual decisions: side (query, document), id, action (keep, drop, relabel), category_key, why",
        )
    explain = commands.add_parser(
        "explain", help="print the lineage of a row", description="Print the lineage of a row."
    )
    explain.add_argument("--governed", type=Path, required=True)
    explain.add_argument("id", help="a query_id, a doc_id, or a behaviour row")
    report = commands.add_parser(
        "report", help="write an HTML report", description="Write a self-contained HTML report."
    )
    report.add_argument("--governed", type=Path, required=True)
    report.add_argument("--html", type=Path, required=True)
    return top


def main(argv: list[str] | None = None) -> int:
    top = parser()
    args = top.parse_args(argv)
    try:
        if args.print_policy:
            print(load_policy(getattr(args, "policy", None)).to_toml(), end="")
            return 0
        if args.command is None:
            top.print_help(sys.stderr)
            return 2
        return dispatch(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def dispatch(args: argparse.Namespace) -> int:
    """Run a command; each imports only what it needs, so that --help and explain start fast."""
    if args.command == "explain":
        from data_governance.reports.lineage import row_lineage

        print("\n".join(row_lineage(args.governed, args.id)))
        return 0
    if args.command == "report":
        from data_governance.reports.report import write_report

        write_report(args.governed, args.html)
        return 0
    missing = [f"--{name}" for name in ("behaviour", "queries", "catalogue") if getattr(args, name) is None]
    missing += ["--out"] if args.command == "run" and args.out is None else []
    if missing:
        raise ValueError(f"{args.command} needs {', '.join(missing)}. --help shows an example.")
    from data_governance.context import Request
    from data_governance.pipeline import govern

    request = Request(
        args.behaviour,
        args.queries,
        args.catalogue,
        getattr(args, "out", None) or Path(),
        encoder=args.encoder,
        previous=getattr(args, "previous", None),
        engine=args.engine,
        overrides=args.overrides,
        incremental=getattr(args, "incremental", False),
    )
    policy: Policy = load_policy(args.policy)
    if args.command == "check":
        from data_governance.reports.check import check

        return check(request, policy, html=args.html)
    facts = govern(request, policy)
    for table, rows in facts["rows"].items():
        print(f"{table}: {rows['in']} in, {rows['kept']} kept, {rows['dropped']} dropped")
    for line in file_lines(request.out, facts):
        print(line)
    print(recall_line(facts["notes"]["clean"]))
    for line in override_lines(facts["overrides"]):
        print(line)
    counts = ", ".join(f"{value} {name}" for name, value in facts["categories"].items())
    print(f"categories: {counts}; encoder: {facts['encoder']}; details: {request.out / 'ledger.json'}")
    return 0


def file_lines(out: Path, facts: dict[str, Any]) -> list[str]:
    """The files of a folder that could not be used, each with the reason."""
    if not any(row["table"] == "files" for row in facts["decisions"]):
        return []
    from data_governance.stage import Workspace

    rows = Workspace(out).table("admit", "decisions").to_pylist()
    return [f"not read: {json.loads(row['figures'])['why']}" for row in rows if row["table"] == "files"]


def recall_line(notes: dict[str, Any]) -> str:
    """Search methods of cleaning, with the recall measured on a sample."""
    prototypes = f"clean: nearest prototypes by {notes['prototype_search']}, recall {notes['prototype_recall']:.3f}"
    return f"{prototypes}; neighbours, recall {notes['neighbour_recall']:.3f}; relabelling {notes['relabelling']}"


def override_lines(overrides: dict[str, Any]) -> list[str]:
    """How many overrides were applied, and why others were rejected; empty without overrides."""
    rejected: dict[str, int] = overrides["set_aside"]
    applied = overrides["given"] - sum(rejected.values())
    lines = [f"overrides: {applied} of {overrides['given']} applied"] if overrides["given"] else []
    return lines + [f"overrides: {rows} rejected: {reason}" for reason, rows in rejected.items()]


if __name__ == "__main__":
    sys.exit(main())
