"""Collects the rows of the items that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hwmodel.config import H2LearnConfig
from hwmodel.errors import CompileError, Loc
from spikec.reproduce.chip import chip_rows
from spikec.reproduce.engines import engine_rows
from spikec.reproduce.facts import Facts, Row, load_facts
from spikec.reproduce.inference import inference_rows
from spikec.reproduce.profile import profile_rows
from spikec.reproduce.training import training_rows

Progress = Callable[[str], None]


def collect_rows(
    config: H2LearnConfig, item: str = "", *, progress: Progress = lambda _: None, simulated: bool = True
) -> tuple[Row, ...]:
    """The rows of a table, figure or single number; all of them by default.

    Raises: CompileError for an item that is not published.
    """
    facts = load_facts()
    if item and not any(_matches(known, item) for known in facts.by_item):
        raise CompileError(
            "is no published item", Loc(item), hint=f"items: {', '.join(facts.groups())}, or one of their numbers"
        )
    rows: list[Row] = []
    for groups, what, source in _sources(facts, config, progress, simulated):
        if item and not any(_matches(group, item) or _matches(item, group) for group in groups):
            continue
        progress(what)
        rows += source()
    return tuple(row for row in rows if not item or _matches(row.item, item))


def _sources(
    facts: Facts, config: H2LearnConfig, progress: Progress, simulated: bool
) -> Iterator[tuple[tuple[str, ...], str, Callable[[], Iterator[Row]]]]:
    yield ("table-3.1", "table-3.2"), "latencies and sparsities", lambda: profile_rows(facts)
    chip = ("table-3.3", "table-3.4", "table-3.5", "table-3.6", "section-3.3.1", "section-3.3.2")
    yield chip, "structure, area and power", lambda: chip_rows(facts, config)
    engines = ("figure-3.10", "figure-3.11", "figure-3.12", "figure-3.13", "figure-3.14")
    yield engines, "engines by themselves", lambda: engine_rows(facts, config)
    yield (
        ("figure-3.15",),
        "training beside the V100",
        lambda: training_rows(facts, config, progress, simulated=simulated),
    )
    yield ("table-3.7",), "inference beside Loihi and the FPGA", lambda: inference_rows(facts, config)


def _matches(item: str, wanted: str) -> bool:
    return item == wanted or item.startswith(f"{wanted}.")
