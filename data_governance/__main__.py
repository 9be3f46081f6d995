"""The command line of governance: run, check, explain, report."""

import argparse
import sys
from pathlib import Path
from typing import Any

from data_governance.policy import Policy, load_policy

EXAMPLE = """example:
  python -m data_governance run --behaviour data/behaviour.parquet --queries data/queries.parquet \\
      --catalogue data/train_catalogue.parquet --out governed

a person's decisions (CSV, Parquet or JSON lines), honoured in the next run:
  side,id,action,category_key,why
  query,q123,relabel,4f1c02ab99d0,shows a fox
  query,q124,keep,,the photo is dark but right
  document,d77,drop,,no longer sold
  ... run ... --out governed --overrides decisions.csv

new rows since an earlier run (its keys live on, its images are not decoded again):
  ... run ... --out governed2 --previous governed [--incremental]
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m data_governance",
        description="From a click log and a catalogue to labelled categories, with a reason for every row.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--print-policy", action="store_true", help="print the default policy as TOML")
    commands = top.add_subparsers(dest="command")
    for name, text in (("run", "govern the data"), ("check", "say what is wrong with the inputs; write nothing")):
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
            "--encoder", type=Path, help="folder of a saved model; its own code is run (default: packaged)"
        )
        one.add_argument("--engine", default="duckdb", choices=("duckdb", "spark"), help="relational engine")
        if name == "run":
            one.add_argument("--out", type=Path, help="governed folder; a finished stage there is used again")
            one.add_argument(
                "--previous",
                type=Path,
                help="earlier governed folder: its category keys live on, its images are not decoded again",
            )
            one.add_argument(
                "--incremental",
                action="store_true",
                help="with --previous: its choices hold, and only documents touched by new rows may change their group",
            )
        one.add_argument(
            "--overrides",
            type=Path,
            help="a person's decisions: side (query, document), id, action (keep, drop, relabel), category_key, why",
        )
    explain = commands.add_parser("explain", help="tell a row's whole story", description="Tell a row's whole story.")
    explain.add_argument("--governed", type=Path, required=True)
    explain.add_argument("id", help="a query_id, a doc_id, or a behaviour row")
    report = commands.add_parser("report", help="write a page", description="Write a self-contained page.")
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
    """Commands import what they need: --help and explain start at once."""
    if args.command == "explain":
        from data_governance.reports.lineage import story

        print("\n".join(story(args.governed, args.id)))
        return 0
    if args.command == "report":
        from data_governance.reports.report import write_report

        write_report(args.governed, args.html)
        return 0
    missing = [f"--{name}" for name in ("behaviour", "queries", "catalogue") if getattr(args, name) is None]
    missing += ["--out"] if args.command == "run" and args.out is None else []
    if missing:
        raise ValueError(f"{args.command} needs {', '.join(missing)}. --help shows an example.")
    from data_governance.pipeline import Request, govern

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

        return check(request, policy)
    facts = govern(request, policy)
    for table, rows in facts["rows"].items():
        print(f"{table}: {rows['in']} in, {rows['kept']} kept, {rows['dropped']} dropped")
    print(recall_line(facts["notes"]["clean"]))
    for line in aside_lines(facts["overrides"]):
        print(line)
    counts = ", ".join(f"{value} {name}" for name, value in facts["categories"].items())
    print(f"categories: {counts}; encoder: {facts['encoder']}; details: {request.out / 'ledger.json'}")
    return 0


def recall_line(notes: dict[str, Any]) -> str:
    """How the nearest were searched when labels were cleaned, and the recall that was measured on a sample."""
    said = f"clean: nearest prototypes by {notes['prototype_search']}, recall {notes['prototype_recall']:.3f}"
    return f"{said}; neighbours, recall {notes['neighbour_recall']:.3f}; relabelling {notes['relabelling']}"


def aside_lines(overrides: dict[str, Any]) -> list[str]:
    """How many decisions of a person were honoured, and why the others could not be; nothing without any."""
    aside: dict[str, int] = overrides["set_aside"]
    honoured = overrides["given"] - sum(aside.values())
    lines = [f"overrides: {honoured} of {overrides['given']} honoured"] if overrides["given"] else []
    return lines + [f"overrides: {rows} set aside: {reason}" for reason, rows in aside.items()]


if __name__ == "__main__":
    sys.exit(main())
