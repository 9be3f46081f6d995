"""Reference pages of the docs site, generated from parsers, dataclasses and docstrings.

Nothing here is committed: `benchmarks/render/site.py` adds the pages while mkdocs builds.
"""

import argparse
import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import data_governance.__main__ as governance
import hub_cards.__main__ as cards
import retrieval.__main__ as search
from data_governance.policy import Policy
from oclear import export
from oclear.command import COMMANDS, help_text
from oclear.service import command as service
from train import command as training
from train.planner import plan
from train.recipes.recipe import Recipe
from train.recipes.registry import RECIPES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "oclear",
    "runtime",
    "modeling_oclear",
    "data_governance",
    "train",
    "retrieval",
    "hub_cards",
    "examples",
    "benchmarks",
)
# Modules whose public names a user of the library needs; every other file is in the code map.
API = {
    "oclear": ("oclear", "oclear.governed", "oclear.trained", "oclear.model"),
    "modeling_oclear": (
        "modeling_oclear.modeling_oclear",
        "modeling_oclear.configuration_oclear",
        "modeling_oclear.processing_oclear",
        "modeling_oclear.fusion_oclear",
        "modeling_oclear.classification_oclear",
        "modeling_oclear.partial_softmax_oclear",
        "modeling_oclear.proxy_anchor_oclear",
        "modeling_oclear.margins_oclear",
        "modeling_oclear.publishing",
    ),
    "data_governance": ("data_governance.pipeline", "data_governance.policy"),
    "train": ("train.command", "train.recipes.registry", "train.recipes.recipe"),
    "retrieval": (
        "retrieval",
        "retrieval.encoder",
        "retrieval.tables",
        "retrieval.index.store",
        "retrieval.index.search",
        "retrieval.evaluation.evaluate",
        "retrieval.evaluation.metrics",
    ),
    "hub_cards": ("hub_cards.render", "hub_cards.push"),
}


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown of every generated page."""
    found = {
        "reference/cli.md": command_page(),
        "reference/recipe.md": recipe_page(),
        "reference/policy.md": policy_page(),
        "reference/code_map.md": code_map_page(),
    }
    return found | {f"reference/api/{name}.md": api_page(name, modules) for name, modules in API.items()}


def command_page() -> str:
    """`--help` of every command."""
    lines = ["# Command line", "", "Printed by the commands themselves.", "", *block(help_text()), ""]
    parsers = command_parsers()
    for name, command in COMMANDS.items():
        if name not in parsers:
            continue
        module = " ".join(("python -m", command.module, *command.words))
        lines += [f"## oclear {name}", "", f"{command.text.capitalize()}. The same as `{module}`.", ""]
        lines += [*block(help_of(parsers[name])), ""]
    for name, parser in further_parsers().items():
        lines += [f"## {name}", "", *block(help_of(parser)), ""]
    return "\n".join(lines)


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Parser of each subcommand of `oclear`; the demo is left out: it is no part of the packages."""
    found: dict[str, argparse.ArgumentParser] = {"train": training.argument_parser(), "plan": plan._arguments()}
    found["export"] = export.argument_parser()
    found["serve"] = service.argument_parser()
    tops = {"data_governance": governance.parser(), "retrieval": search.build_parser(), "hub_cards": cards._parser()}
    for name, command in COMMANDS.items():
        if command.words:
            found[name] = subparsers(tops[command.module])[command.words[0]]
    return found


def further_parsers() -> dict[str, argparse.ArgumentParser]:
    """Subcommands that `oclear` does not have."""
    actions = subparsers(search.build_parser())
    return {f"python -m retrieval {name}": actions[name] for name in ("page", "picture")}


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name -> parser of the subcommands of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def help_of(parser: argparse.ArgumentParser) -> str:
    """The help text, at one width on every machine."""
    kind: Any = parser.formatter_class
    parser.formatter_class = lambda prog: kind(prog, width=100)
    return parser.format_help().rstrip()


def block(text: str) -> list[str]:
    """A fenced block without language."""
    return ["```text", text, "```"]


def recipe_page() -> str:
    """Every field of `Recipe` with its meaning, then the shipped recipes with the fields that they set."""
    lines = [
        "# Recipe",
        "",
        "A recipe says what to learn. `--recipe` takes the name of a shipped recipe or a JSON file:",
    ]
    lines += ["copy `recipe.json` of a run, edit it and pass its path.", "", *field_tables(Recipe), ""]
    lines += ["## Shipped recipes", ""]
    for name, function in RECIPES.items():
        lines += [f"### `{name}`", "", one_line(function), ""]
    return "\n".join(lines)


def policy_page() -> str:
    """Every field of `Policy` with its meaning."""
    lines = ["# Policy", "", "The policy holds every threshold of governance. `oclear govern --policy my.toml` reads a"]
    lines += ["TOML file with the fields to change; `oclear govern --print-policy` prints the defaults.", ""]
    return "\n".join([*lines, *field_tables(Policy)])


def field_tables(kind: type[Any], *, place: str = "", level: int = 2) -> list[str]:
    """Tables of the fields of a dataclass; a field that is a dataclass itself becomes a section of its own.

    Args:
        place: dotted name of the field that holds this dataclass.
    """
    meanings = described(kind)
    hints = typing.get_type_hints(kind)
    rows: list[str] = []
    nested: list[tuple[str, type[Any]]] = []
    for field in dataclasses.fields(kind):
        inner = [one for one in parts_of(hints[field.name]) if isinstance(one, type) and dataclasses.is_dataclass(one)]
        nested += [(f"{place}{field.name}", one) for one in inner]
        default = "see below" if inner else f"`{field_default(field)}`" if field_default(field) else "required"
        meaning = cell(meanings.get(field.name) or " ".join(one_line(one) for one in inner))
        rows.append(f"| `{field.name}` | `{type_name(field)}` | {default} | {meaning[:1].upper()}{meaning[1:]} |")
    lines = [] if place else [f"{'#' * level} Fields", ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    for name, inner_kind in nested:
        lines += [f"{'#' * (level + 1)} `{name}`: {inner_kind.__name__}", "", one_line(inner_kind), ""]
        lines += field_tables(inner_kind, place=f"{name}.", level=level)
    return lines


def described(kind: type[Any]) -> dict[str, str]:
    """Field -> meaning, from the section Attributes of the class docstring and from docstrings below the fields."""
    found = {}
    fields = {field.name for field in dataclasses.fields(kind)}
    text = inspect.getdoc(kind) or ""
    if "Attributes:" in text:
        section = textwrap.dedent(text.split("Attributes:", 1)[1].split("\n\nRaises:")[0].strip("\n"))
        for entry in re.split(r"\n+(?=\S)", section):
            for names, meaning in sentences(" ".join(entry.split()), fields):
                found.update(dict.fromkeys(names, meaning))
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return found


def sentences(entry: str, fields: set[str]) -> Iterator[tuple[list[str], str]]:
    """An entry "a: x. b, c: y." as ([a], "x.") and ([b, c], "y.")."""
    one = "|".join(sorted(fields, key=len, reverse=True))
    pieces = re.split(rf"(?:^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*): ", entry)
    for names_of, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
        yield names_of.split(", "), meaning.strip().removesuffix(";")


def parts_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else (hint,)


def type_name(field: dataclasses.Field[Any]) -> str:
    """A type as the source writes it, fit for a table cell."""
    name = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    return (name if isinstance(field.type, type) else str(field.type)).replace("|", "or")


def field_default(field: dataclasses.Field[Any]) -> str | None:
    """The default as Python source; None where there is none."""
    if field.default is not dataclasses.MISSING:
        return repr(field.default).replace("|", "\\|")
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return None


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def one_line(documented: Callable[..., object]) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def code_map_page() -> str:
    """Every source file with the first line of its docstring, by package and folder."""
    lines = ["# Code map", "", "Every source file with the first line of its docstring.", ""]
    for package in PACKAGES:
        lines += ["", f"## {package}"]
        folder = None
        for path in sorted((ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name)):
            if path.name == "__init__.py" and path.parent != ROOT / package:
                continue
            if path.parent != folder:
                folder = path.parent
                where = str(folder.relative_to(ROOT)) + "/"
                lines += ["", f"### {where}", "", "| file | content |", "|---|---|"]
            if sentence := first_line(path):
                lines.append(f"| `{path.name}` | {cell(sentence)} |")
    return "\n".join(lines)


def first_line(path: Path) -> str:
    """First line of a file's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n")[0].removesuffix(".")


def api_page(name: str, modules: tuple[str, ...]) -> str:
    """One page of mkdocstrings directives."""
    lines = [f"# {name}", ""]
    for module in modules:
        lines += [f"::: {module}", ""]
    return "\n".join(lines)
