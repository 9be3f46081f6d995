"""The command `oclear`: one entry point for every step, from click log to search.

Each subcommand runs an existing module in this process, exactly as `python -m MODULE` would, and takes the same flags.
"""

import contextlib
import importlib.util
import io
import os
import re
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from oclear import __version__


@dataclass(frozen=True)
class Command:
    """A subcommand: the module that it runs, with the words that come before the user's.

    Attributes:
        text: one line of help.
        example: a complete call.
        extra: the extra of setup.cfg that installs what the module imports.
    """

    text: str
    example: str
    module: str
    words: tuple[str, ...] = ()
    extra: str = ""


TABLES = "--behaviour behaviour.csv --queries queries.csv --catalogue catalogue.csv"
JUDGED = "--catalogue catalogue.csv --queries test_queries.csv --qrels qrels.csv"
COMMANDS = {
    "check": Command(
        "check the three tables and report what is wrong with them",
        f"oclear check {TABLES}",
        "data_governance",
        ("check",),
        "govern",
    ),
    "govern": Command(
        "turn a click log and a catalogue into labelled categories",
        f"oclear govern {TABLES} --out governed",
        "data_governance",
        ("run",),
        "govern",
    ),
    "explain": Command(
        "show what every governance stage decided about one row",
        "oclear explain --governed governed q17",
        "data_governance",
        ("explain",),
        "govern",
    ),
    "report": Command(
        "write governance as a page: counts, reasons, pictures",
        "oclear report --governed governed --html governance.html",
        "data_governance",
        ("report",),
        "govern",
    ),
    "train": Command(
        "train a model in one process and publish it as RUN/hub",
        "oclear train --data governed --out runs/mine",
        "train.run",
        (),
        "train",
    ),
    "plan": Command(
        "estimate memory, traffic and step time on GPUs",
        "oclear plan --classes 1e7 --hidden-size 512 --vision vit-b16 --gpus 8 --gpu h100",
        "train.planner",
        (),
        "train",
    ),
    "index": Command(
        "embed a catalogue and write its index folder",
        "oclear index --model runs/mine/hub --catalogue catalogue.csv --out index",
        "retrieval",
        ("index",),
        "retrieval",
    ),
    "update": Command(
        "add, replace or delete documents of an index, or change their fields",
        "oclear update --index index --model runs/mine/hub --catalogue new.csv",
        "retrieval",
        ("update",),
        "retrieval",
    ),
    "export": Command(
        "write a published model as ONNX, for ONNX Runtime",
        "oclear export --model runs/mine/hub",
        "oclear.export",
        (),
        "export",
    ),
    "search": Command(
        "search an index with pictures; answers as JSON lines or a page",
        "oclear search --model runs/mine/hub --index index --image photo.png --html answers.html",
        "retrieval",
        ("search",),
        "retrieval",
    ),
    "serve": Command(
        "serve an index over HTTP, with a search page",
        "oclear serve --model runs/mine/hub --index index",
        "oclear.service.command",
        (),
        "serve",
    ),
    "evaluate": Command(
        "rank a catalogue for judged queries and write the metrics",
        f"oclear evaluate --model runs/mine/hub {JUDGED} --out metrics.json",
        "retrieval",
        ("evaluate",),
        "retrieval",
    ),
    "render": Command(
        "render the model card and the data card of a run",
        "oclear render runs/mine",
        "hub_cards",
        ("render",),
        "hub",
    ),
    "push": Command(
        "list what would be uploaded to the Hub; with --yes, upload it",
        "oclear push runs/mine/hub --repo-id org/name",
        "hub_cards",
        ("push",),
        "hub",
    ),
    "demo": Command(
        "run the whole path on emoji drawings (needs a checkout)",
        "oclear demo --out runs/demo",
        "examples.demo",
        (),
        "demo",
    ),
}
SEVERAL_PROCESSES = """
`oclear train` uses one process. For several, start the same module with a launcher; the flags stay the same:
  accelerate launch --config_file train/launch/ddp.yaml train/run.py --data governed --out runs/mine
  accelerate launch --num_processes 2 --module train.run --data governed --out runs/mine    (without a checkout)
"""
NO_DEMO = (
    "error: the demo builds its data with examples/, which an installed package does not contain. Get a checkout of "
    "the repository and run `make demo` there."
)


def help_text() -> str:
    """What `oclear --help` prints: every subcommand with one line and an example."""
    lines = ["usage: oclear COMMAND [flags]", "", "Image search learned from a click log, step by step.", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name:<9} {command.text}", f"            {command.example}"]
    lines += ["", "`oclear COMMAND --help` lists the flags of a command.", SEVERAL_PROCESSES.strip()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: the words after `oclear`; None takes them from the command line.

    Returns:
        The exit status of the subcommand; 2 for an unknown one or a package that is not installed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["--help"], ["-h"], ["help"]):
        print(help_text())
        return 0
    if words[:1] == ["--version"]:
        print(f"oclear {__version__}")
        return 0
    if not words or words[0] not in COMMANDS:
        problem = f"error: {words[0]!r} is not a command. " if words else ""
        print(f"{problem}Choose one of {', '.join(COMMANDS)}; `oclear --help` explains them.", file=sys.stderr)
        return 2
    command = COMMANDS[words[0]]
    if words[0] == "demo" and not find_examples():
        print(NO_DEMO, file=sys.stderr)
        return 2
    if words[0] == "train" and {"--help", "-h"} & set(words):
        from train.command import argument_parser  # train.run itself imports torch and takes seconds

        print(f"{argument_parser().format_help()}\n{SEVERAL_PROCESSES.strip()}")
        return 0
    return run_module(command, words)


def find_examples() -> bool:
    """Whether `examples.demo` can be imported; the working folder counts, as it does for `python -m`."""
    if os.path.isfile(os.path.join("examples", "demo.py")):
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.util.find_spec("examples.demo") is not None
    except ModuleNotFoundError:
        return False


def as_typed(text: str) -> str:
    """A help text with the commands that it names in the form that is typed here: `oclear govern` and so on.

    >>> as_typed("usage: python -m data_governance run [flags]; then python -m retrieval index")
    'usage: oclear govern [flags]; then oclear index'
    """
    for name, command in COMMANDS.items():
        words = ["python", "-m", *map(re.escape, [command.module, *command.words])]
        text = re.sub(r"\s+".join(words), f"oclear {name}", text)
    return re.sub(r"\n {9,}\[", "\n    [", text)  # the usage was indented for the longer name


def run_module(command: Command, words: list[str]) -> int:
    """Run a module as `python -m` does, with the user's words after its own; returns its exit status."""
    before = sys.argv
    sys.argv = [f"oclear {words[0]}", *command.words, *words[1:]]
    help_only = io.StringIO()
    asks = bool({"--help", "-h"} & set(words))
    try:
        with contextlib.redirect_stdout(help_only) if asks else contextlib.nullcontext():
            runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    except ModuleNotFoundError as error:
        print(
            f"error: `oclear {words[0]}` needs the package {error.name!r}, which is not installed: "
            f"pip install 'oclear[{command.extra}]'",
            file=sys.stderr,
        )
        return 2
    finally:
        sys.argv = before
        if asks:
            print(as_typed(help_only.getvalue()), end="")
    return 0
