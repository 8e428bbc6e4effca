"""`spikec reproduce`: published number, ours, ratio, kind and assumption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hwmodel.config import load_config
from spikec.commands.talk import print_json, progress_bar
from spikec.reproduce.collect import collect_rows
from spikec.reproduce.facts import Kind, Row, Value


def run_reproduce(item: str, *, config: str, simulated: bool, figures: Path | None, as_json: bool) -> int:
    """Print the rows of an item, all by default, and draw the figures on request; the exit code.

    Raises: CompileError for an unknown item or configuration, and for a folder that cannot be written.
    """
    chosen = load_config(config)
    with progress_bar("reproducing") as bar:
        rows = collect_rows(chosen, item, progress=bar.stage, simulated=simulated)
        if figures is not None:
            from spikec.reproduce.figures import draw_figures

            bar.stage("drawing")
            drawn = draw_figures(chosen, rows, figures)
    if as_json:
        print_json({"rows": [row.as_json() for row in rows]})
        return 0
    _print(rows)
    if figures is not None:
        Console(stderr=True).print(f"drawn: {', '.join(str(path) for path in drawn)}")
    return 0


def _print(rows: Sequence[Row]) -> None:
    """A line a number; what a number rests on stands below, once."""
    notes = {text: index for index, text in enumerate(dict.fromkeys(row.assumption for row in rows), 1)}
    table = Table(title="published and ours", title_justify="left")
    for name in ("item", "published", "ours", "unit", "ratio", "kind", "note"):
        table.add_column(name, justify="left" if name in ("item", "kind", "unit") else "right", overflow="fold")
    for row in rows:
        name = f"{row.item}\n  {row.variant}" if row.variant else row.item
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        note = f"[{notes[row.assumption]}]"
        table.add_row(name, _shown(row.published), _shown(row.ours), row.unit, ratio, str(row.kind), note)
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(table)
    for text, index in notes.items():
        console.print(f"[{index}] {text}")
    counts = {kind: sum(row.kind is kind and not row.variant for row in rows) for kind in Kind}
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))


def _shown(value: Value) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "holds" if value else "does not hold"
        case float():
            return f"{value:.4g}"
    return str(value)
