"""The result: one row per contender and setting, and the same as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.bench.training_contenders.names import OWN
from tests.bench.training_contenders.networks import NETWORKS
from tests.bench.training_contenders.preparation import Prepared
from tests.bench.training_contenders.setting import Setting


@dataclass(frozen=True, slots=True)
class Times:
    """What the turns of one process gave."""

    output_spikes: int | None = None  # of a trained network
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
    trained: bool
    output_spikes: int | None  # of the last layer, with fixed statistics; all contenders' are the same
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
        trained=bool(setting.trained),
        output_spikes=times.output_spikes,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A contender of our own against the fastest of the other frameworks, and against plain PyTorch's memory."""

    contender: str
    setting: str
    fastest_other: str
    ratio: float  # its time over our own
    saved_of_vanilla: float | None  # saved activations over those of `vanilla time-merged`
    peak_rise_of_vanilla: float | None  # the resident set's rise less the parameters' gradients


def comparisons(rows: list[Row]) -> Iterator[Comparison]:
    """Of each setting in which both ran."""
    for title, group in _by_setting(rows).items():
        for r in group:
            other = fastest_other(r, group)
            if r.contender not in OWN or other is None:
                continue
            yield Comparison(
                contender=r.contender,
                setting=title,
                fastest_other=other.contender,
                ratio=other.step_s_median / r.step_s_median,
                saved_of_vanilla=_of_vanilla(r, group, lambda r: r.saved_activation_mb),
                peak_rise_of_vanilla=_of_vanilla(r, group, lambda r: r.peak_rss_rise_less_gradients_mb),
            )


def fastest_other(r: Row, group: list[Row]) -> Row | None:
    """Of other frameworks' rows, besides the row itself."""
    others = [other for other in group if other is not r and other.contender not in OWN]
    return min(others, key=lambda other: other.step_s_median, default=None)


def table(rows: list[Row], networks: list[Prepared]) -> Iterator[str]:
    """Lines for a reader, a block per setting, the fastest contender first; trained networks' densities before all."""
    for network in networks:
        yield from network.lines()
        yield ""
    for title, group in _by_setting(rows).items():
        yield title
        yield LINE.format(*HEAD)
        for r in sorted(group, key=lambda r: r.step_s_median):
            yield LINE.format(*_cells(r, group))
        yield ""


def _by_setting(rows: list[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for r in rows:
        weights = "trained" if r.trained else "fresh weights"
        title = f"{r.network}, {weights}, batch {r.batch}, T = {r.timesteps}, {r.input} input"
        groups.setdefault(f"{title}, malloc {r.malloc}, {r.threads} threads", []).append(r)
    return groups


def _of_vanilla(r: Row, group: list[Row], value: Callable[[Row], float | None]) -> float | None:
    own = value(r)
    base = next((value(other) for other in group if other.contender == "vanilla time-merged"), None)
    return own / base if own is not None and base else None


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
    other, rise = fastest_other(r, group), _of_vanilla(r, group, lambda r: r.peak_rss_rise_mb)
    return (
        r.contender,
        r.layout,
        f"{r.step_s_median * 1e3:.1f}",
        "-".join(f"{value * 1e3:.1f}" for value in r.step_s_quartiles),
        f"{other.step_s_median / r.step_s_median:.2f}" if other is not None else "-",
        f"{r.others_cpu_share:.0%}",
        "-" if r.saved_activation_mb is None else f"{r.saved_activation_mb:.1f}",
        f"{r.peak_rss_rise_mb:.1f}",
        f"{rise:.2f}" if rise is not None else "-",
    )
