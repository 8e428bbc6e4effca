"""How the commands speak: progress and talk on stderr, one JSON object or a table on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from frontends.recipe import Progress as TrainingProgress

Scalar = str | int | float | bool | None
Json = Scalar | Sequence["Json"] | Mapping[str, "Json"]


def print_json(result: Mapping[str, Json]) -> None:
    """The result as one JSON object on one line."""
    print(json.dumps(result))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """The result as names and values."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None)

    def samples(self, done: int, total: int) -> None:
        """Progress counted in samples."""
        self._progress.update(self._task, completed=done, total=total)

    def stage(self, title: str) -> None:
        """What is being done, without an end in sight."""
        self._progress.update(self._task, description=title, completed=0, total=None)

    def training(self, state: TrainingProgress) -> None:
        """Progress of a training run."""
        title = f"training, epoch {state.epoch}/{state.epochs}, loss {state.loss:.4f}"
        self._progress.update(self._task, completed=state.done, total=state.total, description=title)


@contextmanager
def progress_bar(title: str) -> Iterator[Bar]:
    """A bar on stderr while the block runs; nothing is shown when stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        yield Bar(progress, title)
