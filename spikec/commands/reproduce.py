"""`spikec reproduce`: published number, ours, ratio, kind and assumption."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hwmodel.config import load_config
from hwmodel.errors import CompileError, Loc
from spikec.commands.talk import print_json, progress_bar
from spikec.reproduce.attack_study import Subjects
from spikec.reproduce.attack_subjects import default_subjects, own_subjects
from spikec.reproduce.collect import check_item, collect_rows, is_part
from spikec.reproduce.facts import Kind, Row, Value, load_facts

SMALL = 1e-3  # below it seconds and joules are shown as us and uJ
NUMBERS_WIDTH = 56  # what the columns beside the item need
VALUE_WIDTH = 20  # longer texts are broken
OF_VARIANTS = (Kind.PREDICTED, Kind.MEASURED)  # whose rows all say for what they hold


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceRequest:
    """The command's arguments; networks, data and per_class are for chapter 5's attacks, "" for its own."""

    item: str
    config: str
    simulated: bool
    networks: str
    data: str
    per_class: str
    figures: Path | None

    def subjects(self) -> Callable[[], Subjects]:
        """What chapter 5 attacks.

        Raises: CompileError for networks without their data, or the other way round.
        """
        if not self.networks:
            given = {"--data": self.data, "--per-class": self.per_class}
            for option in (name for name, value in given.items() if value):
                raise CompileError("means nothing without --networks", Loc(option))
            return default_subjects
        if not self.data:
            raise CompileError("needs the data that they were trained on", Loc("--networks"), hint="give --data DATA")
        return partial(own_subjects, self.networks, self.data, self.per_class)


def run_reproduce(request: ReproduceRequest, *, as_json: bool) -> int:
    """Print the rows of an item, all by default, and draw the figures on request; the exit code.

    Raises: CompileError for an unknown item or configuration, one without figures if they are to be drawn, for a
        folder that cannot be written, and for networks that cannot be attacked.
    """
    item, figures = request.item, request.figures
    chosen, subjects = load_config(request.config), request.subjects()
    check_item(load_facts(), item)
    collected = item
    drawn: tuple[Path, ...] = ()
    if figures is not None:
        from spikec.reproduce.figures import check_figures, draw_figures

        collected = check_figures(item, figures)
    with progress_bar("reproducing") as bar:
        rows = collect_rows(chosen, collected, progress=bar.stage, simulated=request.simulated, subjects=subjects)
        if figures is not None:
            bar.stage("drawing")
            drawn = draw_figures(chosen, rows, figures)
    rows = tuple(row for row in rows if is_part(row.item, item))
    if as_json:
        print_json({"rows": [row.as_json() for row in rows]})
    else:
        _print(rows)
    if drawn:
        Console(stderr=True, soft_wrap=True).print(f"drawn: {', '.join(str(path) for path in drawn)}")
    return 0


def _print(rows: Sequence[Row]) -> None:
    """A table a group; what a number rests on stands below, once."""
    notes = {text: index for index, text in enumerate(dict.fromkeys(row.assumption for row in rows), 1)}
    console = Console(markup=False, highlight=False, emoji=False)
    for group, members in _groups(rows).items():
        console.print(group, style="bold")
        console.print(_table(group, members, notes, console.width - NUMBERS_WIDTH))
        console.print()
    for text, index in notes.items():
        console.print(f"[{index}] {text}")
    counts = {kind: sum(row.kind is kind and (kind in OF_VARIANTS or not row.variant) for row in rows) for kind in Kind}
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each table or figure, in the order of its first row."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.item.rpartition(".")[0], []).append(row)
    return groups


def _table(group: str, rows: Sequence[Row], notes: Mapping[str, int], width: int) -> Table:
    """`width` is what variants may take; names take what they need."""
    names = [row.item.removeprefix(f"{group}.") for row in rows]
    width = max(width, *map(len, names))
    rated = any(row.ratio is not None for row in rows)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("item", no_wrap=True)
    table.add_column("published", justify="right", overflow="fold")
    table.add_column("ours", justify="right", overflow="fold")
    table.add_column("unit", overflow="fold")
    for column in ("ratio",) if rated else ():
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("note", justify="right", no_wrap=True)
    for name, row in zip(names, rows, strict=True):
        variant = textwrap.wrap(row.variant, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        item = "\n".join((name, *variant))
        ratio = ("" if row.ratio is None else f"{row.ratio:.3f}",) if rated else ()
        table.add_row(item, *_numbers(row), *ratio, str(row.kind), f"[{notes[row.assumption]}]")
    return table


def _numbers(row: Row) -> tuple[str, str, str]:
    """Published, ours and the unit of both."""
    values = [value for value in (row.published, row.ours) if isinstance(value, float) and value]
    if row.unit in ("s", "J") and values and max(map(abs, values)) < SMALL:
        row = replace(row, published=_micro(row.published), ours=_micro(row.ours), unit=f"u{row.unit}")
    return _shown(row.published), _shown(row.ours), row.unit


def _micro(value: Value) -> Value:
    return 1e6 * value if isinstance(value, float) else value


def _shown(value: Value) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "holds" if value else "does not hold"
        case float():
            return f"{value:.4g}"
        case str():
            return _broken(value)
    return str(value)


def _broken(text: str) -> str:
    """Into lines, behind a comma, a hyphen or an underscore."""
    lines = [""]
    for part in re.split(r"(?<=[-,_])", text):
        if lines[-1] and len(lines[-1]) + len(part) > VALUE_WIDTH:
            lines.append("")
        lines[-1] += part if lines[-1] else part.lstrip()
    return "\n".join(lines)
