"""Collects the rows of the items that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from hwmodel.config import H2LearnConfig
from hwmodel.errors import CompileError, Loc
from spikec.reproduce.attack import GROUPS, attack_rows
from spikec.reproduce.attack_study import Subjects
from spikec.reproduce.attack_subjects import default_subjects
from spikec.reproduce.chip import chip_rows
from spikec.reproduce.engines import engine_rows
from spikec.reproduce.facts import Facts, Row, load_facts
from spikec.reproduce.fused import fused_rows
from spikec.reproduce.inference import inference_rows
from spikec.reproduce.profile import profile_rows
from spikec.reproduce.robust import GROUPS as ROBUST_GROUPS
from spikec.reproduce.robust import robust_rows
from spikec.reproduce.robust_study import RobustStudy
from spikec.reproduce.training import training_rows

CHAPTER = "chapter"

Progress = Callable[[str], None]
Source = tuple[tuple[str, ...], str, Callable[[], Iterator[Row]]]  # its groups, what it is, its rows


def collect_rows(
    config: H2LearnConfig,
    item: str = "",
    *,
    progress: Progress = lambda _: None,
    simulated: bool = True,
    subjects: Callable[[], Subjects] = default_subjects,
) -> tuple[Row, ...]:
    """The rows of a chapter, table, figure or single number; all of them by default.

    simulated: also what takes minutes: simulated training programs, measured training steps, attacks, robust
        training.
    subjects: of chapter 5's attacks.
    Raises: CompileError for an item that is not published.
    """
    facts = load_facts()
    check_item(facts, item)
    rows: list[Row] = []
    attacked = partial(attack_rows, facts, progress, subjects if simulated else None, partial(_holds, item))
    study = partial(RobustStudy, progress) if simulated else None
    trained = partial(robust_rows, facts, progress, study, partial(_holds, item))
    sources: list[Source] = [*_sources(facts, config, progress, simulated), (GROUPS, "attacks", attacked)]
    sources.append((ROBUST_GROUPS, "robust training", trained))
    for groups, what, source in sources:
        if any(belong(group, item) for group in groups):
            progress(what)
            rows += source()
    return tuple(row for row in rows if is_part(row.item, item))


def check_item(facts: Facts, item: str) -> None:
    """Make sure that an item is published; none stands for all.

    Raises: CompileError for any other item.
    """
    if not any(is_part(known, item) for known in facts.by_item):
        known = ", ".join(facts.groups())
        hint = f"items: {known}, one of their numbers, or {CHAPTER}-3 and the like"
        raise CompileError("is no published item", Loc(item), hint=hint)


def is_part(item: str, whole: str) -> bool:
    """Whether an item is the whole or inside it; all items are part of none."""
    kind, _, number = whole.partition("-")
    if kind == CHAPTER:
        return item.partition("-")[2].startswith(f"{number}.")
    return not whole or item == whole or item.startswith(f"{whole}.")


def belong(group: str, item: str) -> bool:
    """Whether a table or figure holds something of an item."""
    return is_part(group, item) or is_part(item, group)


def _holds(item: str, group: str) -> bool:
    return belong(group, item)


def _sources(facts: Facts, config: H2LearnConfig, progress: Progress, simulated: bool) -> Iterator[Source]:
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
    fused = ("figure-4.2", "figure-4.6", "figure-4.7", "figure-4.8", "figure-4.9")
    yield fused, "fused training on GPUs, predicted", lambda: fused_rows(facts, progress, measured=simulated)
