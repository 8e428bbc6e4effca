"""Draws the space and its Pareto front: throughput over energy and over area."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hwmodel.errors import CompileError, Loc
from hwmodel.estimate import Estimate
from spikec.explore.quantities import prefix_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REST, _BASE = "#b0b4ba", "#d62728"


def check_matplotlib() -> None:
    """Make sure that figures can be drawn, before anything is calculated for them.

    Raises: CompileError if matplotlib is missing.
    """
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as fault:
        raise CompileError(
            "matplotlib is not installed", Loc("--figure"), hint="pip install 'spikec[explore]'"
        ) from fault


def draw_figure(title: str, designs: Sequence[Estimate], front: Sequence[int], base: Estimate, path: Path) -> None:
    """Write the figure as SVG; the same designs give the same bytes.

    Raises: CompileError if the file cannot be written.
    """
    save_svg(lambda: _figure(title, designs, front, base), path)


def save_svg(draw: Callable[[], Figure], path: Path) -> None:
    """Draw, and write the file whole; the same figure gives the same bytes.

    Raises: CompileError if the file cannot be written.
    """
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "spikec", "font.size": 9.0}):
        content = io.BytesIO()
        draw().savefig(content, format="svg", metadata={"Date": None})
    beside = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        beside.write_bytes(content.getvalue())
        os.replace(beside, path)
    except OSError as fault:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise CompileError(f"cannot be written: {fault.strerror}", Loc(str(path))) from fault


def _figure(title: str, designs: Sequence[Estimate], front: Sequence[int], base: Estimate) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    prefix = prefix_of(found.energy_j_per_sample for found in designs)
    energy = [found.energy_j_per_sample / prefix.factor for found in designs]
    area = [found.area_mm2 for found in designs]
    rate = [found.samples_per_second for found in designs]
    _scatter(left, energy, rate, area, front, "area in mm²")
    _scatter(right, area, rate, energy, front, f"energy per sample in {prefix.symbol}J")
    left.set(xlabel=f"energy per sample in {prefix.symbol}J, external memory not counted", ylabel="samples per second")
    right.set(xlabel="area in mm²")
    marker = {"marker": "*", "s": 170, "color": _BASE, "edgecolor": "white", "linewidth": 0.7, "zorder": 4}
    left.scatter(
        [base.energy_j_per_sample / prefix.factor], [base.samples_per_second], label="base configuration", **marker
    )
    right.scatter([base.area_mm2], [base.samples_per_second], **marker)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _scatter(
    axes: Axes, x: Sequence[float], y: Sequence[float], colour: Sequence[float], front: Sequence[int], name: str
) -> None:
    """All designs in grey, those of the front coloured by the third objective."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    rest = sorted({*range(len(x))} - {*front})
    label = "other designs" if "area" in name else None
    axes.scatter([x[at] for at in rest], [y[at] for at in rest], s=9, color=_REST, label=label, linewidth=0)
    shown = axes.scatter(
        [x[at] for at in front],
        [y[at] for at in front],
        c=[colour[at] for at in front],
        s=30,
        cmap="viridis",
        edgecolor="black",
        linewidth=0.5,
        zorder=3,
        label="Pareto front" if label else None,
    )
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.figure.colorbar(shown, ax=axes, label=name, pad=0.02)
