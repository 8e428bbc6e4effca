"""The result: one row per contender and setting, and the same as a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.bench.training_contenders.networks import NETWORKS
from tests.bench.training_contenders.setting import Setting


@dataclass(frozen=True, slots=True)
class Times:
    """What the turns of one process gave."""

    step_s: list[float] = field(default_factory=list)
    others_cpu_share: list[float] = field(default_factory=list)  # one value a turn

    @property
    def median_s(self) -> float:
        return statistics.median(self.step_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender in one setting: step times over all rounds, memory from a process of its own."""

    contender: str
    network: str
    timesteps: int
    input: str
    malloc: str
    layout: str  # the faster one
    threads: int
    batch: int
    steps: int
    step_s_median: float
    step_s_min: float
    step_s_max: float
    step_s_quartiles: tuple[float, float]
    step_s_median_by_layout: dict[str, float]
    others_cpu_share: float  # of all cores, taken by other processes in the median turn
    saved_activation_mb: float | None
    peak_rss_rise_mb: float
    parameter_gradient_mb: float
    peak_rss_rise_less_gradients_mb: float


def row(setting: Setting, malloc: str, by_layout: dict[str, Times], memory: dict[str, float]) -> Row:
    """The row of a setting, whose layout is the one that counts."""
    times = by_layout[setting.layout]
    first, _, third = quartiles(times.step_s)
    return Row(
        contender=setting.contender,
        network=setting.network,
        timesteps=setting.timesteps,
        input=setting.input,
        malloc=malloc,
        layout=setting.layout,
        threads=setting.threads,
        batch=NETWORKS[setting.network].batch,
        steps=len(times.step_s),
        step_s_median=times.median_s,
        step_s_min=min(times.step_s),
        step_s_max=max(times.step_s),
        step_s_quartiles=(first, third),
        step_s_median_by_layout={layout: of_layout.median_s for layout, of_layout in by_layout.items()},
        others_cpu_share=statistics.median(times.others_cpu_share),
        **memory,
    )


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def table(rows: list[Row]) -> Iterator[str]:
    """Lines for a reader, a block per setting, the fastest contender first."""
    groups: dict[str, list[Row]] = {}
    for r in rows:
        title = f"{r.network}, batch {r.batch}, T = {r.timesteps}, {r.input} input"
        groups.setdefault(f"{title}, malloc {r.malloc}, {r.threads} threads", []).append(r)
    for title, group in groups.items():
        yield title
        yield LINE.format(*HEAD)
        for r in sorted(group, key=lambda r: r.step_s_median):
            yield LINE.format(*_cells(r, group))
        yield ""


HEAD = (
    "contender",
    "layout",
    "ms",
    "quartiles",
    "fastest other / own",
    "others' CPU",
    "saved MB",
    "peak rise MB",
    "of time-merged",
)
LINE = "{:20} {:>13} {:>8} {:>15} {:>19} {:>11} {:>9} {:>12} {:>14}"


def _cells(r: Row, group: list[Row]) -> tuple[str, ...]:
    others = [other.step_s_median for other in group if other is not r]
    bases = [other.peak_rss_rise_mb for other in group if other.contender == "vanilla time-merged"]
    return (
        r.contender,
        r.layout,
        f"{r.step_s_median * 1e3:.1f}",
        "-".join(f"{value * 1e3:.1f}" for value in r.step_s_quartiles),
        f"{min(others) / r.step_s_median:.2f}" if others else "-",
        f"{r.others_cpu_share:.0%}",
        "-" if r.saved_activation_mb is None else f"{r.saved_activation_mb:.1f}",
        f"{r.peak_rss_rise_mb:.1f}",
        f"{r.peak_rss_rise_mb / bases[0]:.2f}" if bases else "-",
    )
