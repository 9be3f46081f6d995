"""Bar charts as inline SVG, coloured by the light or dark style of the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH = 560
ROW = 24
LABEL = 230
VALUE = 64


@dataclass(frozen=True)
class Bar:
    """One bar: label, value, value as text, style class, and whether it is a heading without a bar."""

    label: str
    value: float
    shown: str
    style: str = "bar"
    heading: bool = False


def horizontal(bars: Sequence[Bar], *, title: str) -> Markup:
    """Labelled bars from the top down; the longest fills the width, headings take a row of their own."""
    top = max((bar.value for bar in bars if not bar.heading), default=0.0) or 1.0
    room = WIDTH - LABEL - VALUE
    parts = []
    for row, bar in enumerate(bars):
        middle = row * ROW + ROW / 2
        if bar.heading:
            parts.append(f'<text class="stage" x="0" y="{middle + 4:.1f}">{escape(bar.label)}</text>')
            continue
        length = max(1.0, room * bar.value / top) if bar.value > 0 else 0.0
        parts.append(
            f'<text x="{LABEL - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(_short(bar.label))}</text>'
        )
        parts.append(
            f'<rect class="{bar.style}" x="{LABEL}" y="{middle - 7:.1f}" width="{length:.1f}" height="14" rx="3"/>'
        )
        parts.append(
            f'<text class="value" x="{LABEL + length + 7:.1f}" y="{middle + 4:.1f}">{escape(bar.shown)}</text>'
        )
    return _svg(parts, len(bars) * ROW, title)


@dataclass(frozen=True)
class Column:
    """One column: its label below and its stacked parts (count, style class) from the bottom up."""

    label: str
    parts: Sequence[tuple[int, str]]


def columns(data: Sequence[Column], *, title: str) -> Markup:
    """Stacked columns with their total above."""
    height, base = 190, 158
    top = max((sum(count for count, _ in column.parts) for column in data), default=0) or 1
    step = WIDTH / max(len(data), 1)
    parts = [f'<line class="axis" x1="0" x2="{WIDTH}" y1="{base}" y2="{base}"/>']
    for place, column in enumerate(data):
        centre, level = step * (place + 0.5), float(base)
        for count, style in column.parts:
            tall = 128 * count / top
            level -= tall
            parts.append(
                f'<rect class="{style}" x="{centre - step * 0.36:.1f}" y="{level:.1f}" width="{step * 0.72:.1f}" '
                f'height="{tall:.1f}" rx="2"/>'
            )
        total = sum(count for count, _ in column.parts)
        parts.append(f'<text class="value" x="{centre:.1f}" y="{level - 6:.1f}" text-anchor="middle">{total:,}</text>')
        parts.append(f'<text x="{centre:.1f}" y="{base + 18}" text-anchor="middle">{escape(column.label)}</text>')
    return _svg(parts, height, title)


def _short(label: str) -> str:
    return label if len(label) <= 34 else label[:33] + "..."


def _svg(parts: Sequence[str], height: float, title: str) -> Markup:
    name = escape(title, quote=True)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{name}">{"".join(parts)}</svg>')
