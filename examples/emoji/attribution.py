"""ATTRIBUTION.md of the demo data: source, version, licence and changes."""

from collections.abc import Sequence
from pathlib import Path

from examples.emoji.packages import WORDS_LICENCE, WORDS_PACKAGE, WORDS_PROJECT, Style, package_version

CHANGES = {
    "query": "rendered at 128 px; query events: cropped, rotated, recoloured, put on a background, JPEG; "
    "validation, test and seen queries: on white, PNG",
    "document": "rendered at 128 px on white, PNG",
    "extra": "rendered at 128 px on white, PNG; only as extra queries",
}
LICENCES = {
    "MIT": "https://opensource.org/license/mit",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}
HEAD = """# Attribution

Drawings and words in this folder come from the projects below, through their npm packages. The clicks are simulated.
The drawings keep their licences: who passes them on names the artists, and shares openmoji's (and changes to them)
under CC BY-SA 4.0. The artists endorse nothing here.

| source | package | version | licence | project | what was done |
|---|---|---|---|---|---|
"""


def attribution(node_modules: Path, styles: Sequence[Style]) -> str:
    """Return the Markdown text that names every source of the data."""
    rows = [(one.name, one.package, one.licence, one.project, CHANGES[one.role]) for one in styles]
    words = "tags, shortcodes and groups became the text and leaf of documents; hard setting: label words removed"
    rows.append(("words", WORDS_PACKAGE, WORDS_LICENCE, WORDS_PROJECT, words))
    lines = []
    for name, package, licence, project, changes in rows:
        version = package_version(node_modules, package)
        lines.append(f"| {name} | {package} | {version} | [{licence}]({LICENCES[licence]}) | <{project}> | {changes} |")
    return HEAD + "\n".join(lines) + "\n"
