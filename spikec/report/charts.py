"""Charts of a report as SVG text; colours are classes, which the page's style sets for light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from spikec.report.roofline import Roof
from spikec.report.tables import label

WIDTH = 860
LABEL, VALUE = 180, 210  # widths to the left and to the right of the bars
ROW, BAR, LEGEND = 28, 16, 26
_BARS = WIDTH - LABEL - VALUE
_LETTER = 7.2  # assumed: mean width of a letter, to place the legend


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of parts by series, a text behind it, and what the whole is called."""

    name: str
    parts: Mapping[str, float]
    text: str

    @property
    def total(self) -> float:
        """Its length."""
        return math.fsum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure with what it shows in words."""

    title: str
    caption: str
    svg: str


def bar_chart(title: str, caption: str, bars: Sequence[Bar], names: Mapping[str, str], unit: str) -> Chart:
    """Horizontal stacked bars with a common scale; `names` are the series in their order."""
    series = [name for name in names if any(bar.parts.get(name, 0.0) > 0 for bar in bars)]
    legend, top = _legend(series, names)
    longest = max((bar.total for bar in bars), default=0.0) or 1.0
    body = [legend]
    for place, bar in enumerate(bars):
        body.append(_bar(bar, series, names, top + place * ROW, _BARS / longest, unit))
    return Chart(title=title, caption=caption, svg=_svg(title, top + len(bars) * ROW + 4, body))


def _bar(bar: Bar, series: Sequence[str], names: Mapping[str, str], y: float, scale: float, unit: str) -> str:
    middle = y + ROW / 2
    parts = [f'<text class="name" x="{LABEL - 10}" y="{middle:.1f}" text-anchor="end">{_short(bar.name)}</text>']
    parts.append(f'<rect class="track" x="{LABEL}" y="{middle - BAR / 2:.1f}" width="{_BARS}" height="{BAR}"/>')
    x = float(LABEL)
    for name in series:
        width = bar.parts.get(name, 0.0) * scale
        if width > 0:
            tip = f"{bar.name}: {names[name]}, {bar.parts[name]:,.4g} {unit}"
            box = f'x="{x:.2f}" y="{middle - BAR / 2:.1f}" width="{width:.2f}" height="{BAR}"'
            parts.append(f'<rect class="{_class(name)}" {box}><title>{escape(tip)}</title></rect>')
        x += width
    parts.append(f'<text class="value" x="{LABEL + _BARS + 10}" y="{middle:.1f}">{escape(bar.text)}</text>')
    return "".join(parts)


def _legend(series: Sequence[str], names: Mapping[str, str]) -> tuple[str, float]:
    """A swatch and a word for each series, over as many lines as they need; and where the bars begin."""
    if len(series) < 2:
        return "", 4
    x, y, parts = 10.0, 12.0, []
    for name in series:
        width = 24 + len(names[name]) * _LETTER + 14
        if x + width > WIDTH:
            x, y = 10.0, y + LEGEND - 4
        parts.append(f'<rect class="{_class(name)}" x="{x:.1f}" y="{y - 6:.1f}" width="12" height="12"/>')
        parts.append(f'<text class="key" x="{x + 18:.1f}" y="{y:.1f}">{escape(names[name])}</text>')
        x += width
    return "".join(parts), y + LEGEND / 2 + 2


def roof_chart(title: str, caption: str, roofs: Sequence[Roof]) -> Chart:
    """Operations a second over operations a byte, both logarithmic: each engine's roof, and what it attains."""
    drawn = [roof for roof in roofs if roof.memory_bytes]
    height, left, right, top, bottom = 396, 64, 24, 56, 46
    if not drawn:
        return Chart(title=title, caption=caption, svg=_svg(title, 20, ['<text class="key" x="10" y="10">none</text>']))
    ridge = [roof.peak_ops_per_s / roof.bandwidth_bytes_per_s for roof in drawn]
    across = _Axis([roof.intensity_ops_per_byte for roof in drawn] + ridge, left, WIDTH - right)
    heights = [roof.attained_ops_per_s for roof in drawn] + [roof.peak_ops_per_s for roof in drawn]
    heights += [across.low * drawn[0].bandwidth_bytes_per_s]
    up = _Axis(heights, height - bottom, top)
    body = [_grid(across, up, left, WIDTH - right, top, height - bottom)]
    legend, _ = _legend(
        [str(roof.engine) for roof in drawn], {str(roof.engine): label(str(roof.engine)) for roof in drawn}
    )
    body.append(legend)
    body += [_roof(roof, across, up, place) for place, roof in enumerate(drawn)]
    body += [_point(roof, across, up) for roof in drawn]
    words = f'<text class="key" x="{(left + WIDTH - right) / 2}" y="{height - 8}" text-anchor="middle">'
    body.append(words + "operations for each byte of the memory that takes longest</text>")
    body.append(f'<text class="key" x="{left - 8}" y="{top - 18}" text-anchor="end">Tops/s</text>')
    return Chart(title=title, caption=caption, svg=_svg(title, height, body))


class _Axis:
    """A logarithmic axis over whole decades from `begin` to `end` of the picture."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.low = 10.0 ** math.floor(math.log10(min(values)) - 1e-9)
        self.high = 10.0 ** math.ceil(math.log10(max(values)) + 1e-9)
        self._begin, self._end = begin, end

    @property
    def lines(self) -> list[float]:
        """Its decades; 2 and 5 of each too where there are few."""
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        steps = (1, 2, 5) if last - first < 3 else (1,)
        found = [step * 10.0**power for power in range(first, last) for step in steps]
        return [*found, 10.0**last]

    def at(self, value: float) -> float:
        """Where a value lies."""
        share = math.log10(value / self.low) / math.log10(self.high / self.low)
        return self._begin + share * (self._end - self._begin)


def _grid(across: _Axis, up: _Axis, left: float, right: float, top: float, bottom: float) -> str:
    parts = []
    for value in across.lines:
        x = across.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>')
    for value in up.lines:
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y:.1f}" text-anchor="end">{value / 1e12:g}</text>')
    return "".join(parts)


def _roof(roof: Roof, across: _Axis, up: _Axis, place: int) -> str:
    """The line of what is possible, and the way up to it; lines of equal roofs stand side by side."""
    name, shift = str(roof.engine), 2.5 * place
    ridge = roof.peak_ops_per_s / roof.bandwidth_bytes_per_s
    begin = (across.at(across.low), up.at(max(across.low * roof.bandwidth_bytes_per_s, up.low)) + shift)
    corner = (across.at(max(ridge, across.low)), up.at(roof.peak_ops_per_s) + shift)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (begin, corner, (across.at(across.high), corner[1])))
    x, y, possible = across.at(roof.intensity_ops_per_byte), up.at(roof.attained_ops_per_s), up.at(roof.roof_ops_per_s)
    return (
        f'<polyline class="line {_class(name)}" points="{line}"/>'
        f'<line class="drop" x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{possible:.1f}"/>'
    )


def _point(roof: Roof, across: _Axis, up: _Axis) -> str:
    """What is attained, with its name."""
    name, x, y = str(roof.engine), across.at(roof.intensity_ops_per_byte), up.at(roof.attained_ops_per_s)
    tip = f"{label(name)}: {roof.attained_ops_per_s / 1e12:.3f} of {roof.roof_ops_per_s / 1e12:.3f} Tops/s"
    text = f"{label(name)}, {100 * roof.attained_ops_per_s / roof.roof_ops_per_s:.0f} %"
    anchor, side = ("end", -12) if x > WIDTH / 2 else ("start", 12)
    return (
        f'<circle class="{_class(name)}" cx="{x:.1f}" cy="{y:.1f}" r="7"><title>{escape(tip)}</title></circle>'
        f'<text class="value halo" x="{x + side:.1f}" y="{y + 1:.1f}" text-anchor="{anchor}">{text}</text>'
    )


def _svg(title: str, height: float, body: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return head + "".join(body) + "</svg>"


def _class(series: str) -> str:
    return "s-" + series.replace(".", "-").replace("_", "-")


def _short(name: str, letters: int = 25) -> str:
    """A name that fits beside the bars; its end tells more than its beginning."""
    return escape(name if len(name) <= letters else "…" + name[1 - letters :])
