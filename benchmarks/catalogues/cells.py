"""The named cells: a base cell for each domain, and one setting changed at a time."""

from dataclasses import dataclass, fields, replace

from benchmarks.catalogues.cell import Cell

ICONS = Cell(domain="icons", categories=1000, documents=(1, 3), pictures=1.0, clicks=4.0, noise=0.2)
EMOJI = Cell(domain="emoji", categories=1000, documents=(2, 2), pictures=1.0, clicks=3.0, noise=0.2, leaf=True)
FURNITURE = Cell(domain="furniture", categories=400, documents=(1, 2), test_categories=100, pictures=3.0, leaf=True)


@dataclass(frozen=True)
class NamedCell:
    """A cell of the list; `base` names the one it is compared with, "" for a base cell."""

    name: str
    cell: Cell
    base: str = ""


def _few(base: Cell, **changes: object) -> Cell:
    """Fewer categories where each has more documents or pictures, so that a cell stays small."""
    return replace(base, test_queries=200, **changes)  # type: ignore[arg-type]


CELLS = (
    NamedCell("icons", ICONS),
    NamedCell("icons-clicked-40", replace(ICONS, clicked=0.4, pictures=2.0), "icons"),
    NamedCell("icons-clicked-10", replace(ICONS, categories=3000, clicked=0.1, pictures=2.0), "icons"),
    NamedCell("icons-categories-150", _few(ICONS, categories=150, test_categories=50, pictures=4.0), "icons"),
    NamedCell("icons-categories-3000", replace(ICONS, categories=3000, pictures=0.4), "icons"),
    NamedCell("icons-documents-1", replace(ICONS, documents=(1, 1), categories=1500), "icons"),
    NamedCell("icons-documents-10", _few(ICONS, documents=(6, 14), categories=300, test_categories=60), "icons"),
    NamedCell("icons-documents-40", _few(ICONS, documents=(30, 50), categories=100, test_categories=30), "icons"),
    NamedCell("icons-pictures-10", _few(ICONS, pictures=10.0, categories=160, test_categories=50), "icons"),
    NamedCell("icons-clicks-1", replace(ICONS, clicks=1.0), "icons"),
    NamedCell("icons-clicks-10", replace(ICONS, clicks=10.0), "icons"),
    NamedCell("icons-noise-0", replace(ICONS, noise=0.0), "icons"),
    NamedCell("icons-noise-50", replace(ICONS, noise=0.5), "icons"),
    NamedCell("icons-skew-2", replace(ICONS, skew=2.0, pictures=1.5), "icons"),
    NamedCell("icons-text-rich", replace(ICONS, text="rich"), "icons"),
    NamedCell("icons-text-none", replace(ICONS, text="none"), "icons"),
    NamedCell(
        "icons-shop",
        replace(ICONS, categories=3500, pictures=0.22, clicks=8.0, noise=0.3, test_categories=300),
    ),
    NamedCell("emoji", EMOJI),
    NamedCell("emoji-clicked-40", replace(EMOJI, clicked=0.4, pictures=3.0), "emoji"),
    NamedCell("emoji-clicked-10", replace(EMOJI, clicked=0.1, pictures=5.0), "emoji"),
    NamedCell("emoji-noise-0", replace(EMOJI, noise=0.0), "emoji"),
    NamedCell("emoji-noise-50", replace(EMOJI, noise=0.5), "emoji"),
    NamedCell("emoji-text-rich", replace(EMOJI, text="rich"), "emoji"),
    NamedCell("emoji-text-other", replace(EMOJI, text="other"), "emoji"),
    NamedCell("emoji-text-none", replace(EMOJI, text="none"), "emoji"),
    NamedCell("furniture", FURNITURE),
    NamedCell("furniture-clicked-40", replace(FURNITURE, clicked=0.4, pictures=6.0), "furniture"),
    NamedCell("furniture-text-other", replace(FURNITURE, text="other"), "furniture"),
)


def chosen(names: list[str] | None) -> list[NamedCell]:
    """Return the cells of these names, all without names, in the order of the list.

    Raises:
        ValueError: for a name that is not in the list.
    """
    known = {one.name: one for one in CELLS}
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise ValueError(f"no cell is called {', '.join(unknown)}; the names are {', '.join(known)}")
    return [one for one in CELLS if names is None or one.name in names]


def listed(cells: list[NamedCell]) -> str:
    """The cells as a table for a terminal."""
    names = [one.name for one in fields(Cell) if one.name not in ("domain", "seed")]
    rows = [["cell", *names]]
    for one in cells:
        values = one.cell.as_json()
        rows.append([one.name, *(shown(values[name]) for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def shown(value: object) -> str:
    """A setting for people: "1-3" for a range, "yes" or "no" for a flag."""
    if isinstance(value, list | tuple):
        return f"{value[0]}-{value[1]}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
