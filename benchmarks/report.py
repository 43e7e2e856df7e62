"""Results as a table for a terminal, as JSON, and as a picture. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

import orjson
from rich.table import Table
from rich.text import Text

from benchmarks.results import Figure, Result

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 860, 400, 70, 34, 64
_BAR = 16
_REACHED, _MISSED, _UNJUDGED = "#2e7d32", "#c62828", "#546e7a"


def table(results: Sequence[Result], title: str, caption: str) -> Table:
    """Path, absolute figures, ratio, target, reached? Notes stand below."""
    caption = "\n".join([caption, *(f"{result.scenario.name}: {result.note}" for result in results if result.note)])
    shown = Table(title=title, caption=Text(caption), caption_justify="left", title_justify="left")
    shown.add_column("path", overflow="fold")
    for name in ("relay", "ours", "ratio (low-high)", "target", "reached?"):
        shown.add_column(name, justify="right", no_wrap=True)
    for result in results:
        target = result.scenario.target
        shown.add_row(
            Text(result.scenario.path),
            f"{_short(result.relay.median)} {result.scenario.unit}",
            f"[bold]{_short(result.ours.median)}[/] {result.scenario.unit}",
            _spread(result.ratio),
            f"{target:g}x" if target is not None else "-",
            {True: "[green]yes[/]", False: "[bold red]no[/]", None: "-"}[result.reached],
        )
    return shown


def as_json(results: Sequence[Result], about: Mapping[str, Any]) -> bytes:
    """`about` (when, where, what) and the results."""
    data = {**about, "results": [result.as_dict() for result in results]}
    return orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def as_svg(results: Sequence[Result], title: str) -> str:
    """The ratios as bars on a logarithmic scale, targets as lines across. Rows without a ratio are not drawn."""
    rows = [(result, result.ratio) for result in results if result.ratio is not None]
    highest = max((max(ratio.high, result.scenario.target or 1) for result, ratio in rows), default=1.0)
    lowest = min((ratio.low for _, ratio in rows), default=1.0)
    scale = _Scale(min(1.0, lowest), max(2.0, highest))
    height = _TOP + _ROW * len(rows) + 30
    parts = svg_head(title, height)
    parts += [_grid(scale, tick, height) for tick in scale.ticks()]
    for number, (result, ratio) in enumerate(rows):
        parts += _bar(scale, _TOP + number * _ROW, result, ratio)
    return "\n".join([*parts, "</svg>\n"])


def svg_head(title: str, height: int) -> list[str]:
    """The beginning of a picture 860 pixels wide: white, with a title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="15" font-weight="600">{escape(title)}</text>',
    ]


class _Scale:
    """Ratios to pixels, logarithmically: twice as much is as far everywhere."""

    def __init__(self, low: float, high: float) -> None:
        self._low = math.log(low)
        self._span = math.log(high * 1.15) - self._low
        self._ends = (low, high)

    def x(self, ratio: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log(ratio) - self._low) / self._span

    def ticks(self) -> list[float]:
        low, high = self._ends
        return [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= tick <= high]


def _grid(scale: _Scale, tick: float, height: int) -> str:
    x = scale.x(tick)
    colour, label = ("#111111", "relay") if tick == 1 else ("#dddddd", f"{tick:g}x")
    return (
        f'<line x1="{x:.1f}" y1="{_TOP - 10}" x2="{x:.1f}" y2="{height - 24}" stroke="{colour}"/>'
        f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle" fill="#555555">{label}</text>'
    )


def _bar(scale: _Scale, top: float, result: Result, ratio: Figure) -> list[str]:
    colour = {True: _REACHED, False: _MISSED, None: _UNJUDGED}[result.reached]
    begin, end = sorted((scale.x(1), scale.x(ratio.median)))
    middle = top + _BAR / 2
    parts = [
        f'<text x="{_LEFT - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(result.scenario.path)}</text>',
        f'<rect x="{begin:.1f}" y="{top:.1f}" width="{max(end - begin, 1):.1f}" height="{_BAR}" fill="{colour}"/>',
        f'<line x1="{scale.x(ratio.low):.1f}" y1="{middle:.1f}" x2="{scale.x(ratio.high):.1f}" y2="{middle:.1f}" '
        'stroke="#000000" stroke-opacity="0.5"/>',
        f'<text x="{scale.x(max(ratio.high, 1)) + 8:.1f}" y="{middle + 4:.1f}" font-weight="600">'
        f"{_short(ratio.median)}x</text>",
    ]
    if result.scenario.target is not None:
        x = scale.x(result.scenario.target)
        parts.append(
            f'<line x1="{x:.1f}" y1="{top - 5:.1f}" x2="{x:.1f}" y2="{top + _BAR + 5:.1f}" stroke="#f57c00" '
            f'stroke-width="3"><title>target {result.scenario.target:g}x</title></line>'
        )
    return parts


def _spread(ratio: Figure | None) -> str:
    if ratio is None:
        return "-"
    return f"[bold]{_short(ratio.median)}x[/] ({_short(ratio.low)}-{_short(ratio.high)})"


def _short(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"
