"""Runs passes one after the other: names the one that broke the graph, prints on request, takes times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from compiler.ir import CompileError, Graph


class Pass(Protocol):
    """Graph to graph; the input stays as it is. The docstring of each pass says Needs and Ensures."""

    def __call__(self, graph: Graph) -> Graph:
        """The transformed graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """What one pass cost."""

    name: str
    seconds: float


def pass_name(step: Pass) -> str:
    """The name that `--print-after` takes."""
    return type(step).__name__


def run_passes(
    graph: Graph,
    passes: Sequence[Pass],
    *,
    print_after: str = "",
    show: Callable[[str], None] = print,
) -> tuple[Graph, tuple[PassReport, ...]]:
    """Apply the passes in order; every graph between them is verified as it is built.

    Raises: CompileError of the user's fault, or with the name of the pass that built a faulty graph.
    """
    reports = []
    for step in passes:
        start = time.perf_counter()
        try:
            result = step(graph)
        except CompileError as fault:
            fault.add_note(f"in pass {pass_name(step)}")
            raise
        seconds = time.perf_counter() - start
        reports.append(
            PassReport(
                name=pass_name(step),
                seconds=seconds,
            )
        )
        graph = result
        if print_after == pass_name(step):
            from compiler.ir.text import print_graph

            show(print_graph(graph))
    return graph, tuple(reports)
