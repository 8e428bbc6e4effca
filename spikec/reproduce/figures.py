"""Figures 3.10 to 3.15, drawn from our numbers in the order of the dissertation's."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from hwmodel.config import H2LearnConfig
from hwmodel.engine_study import lut_partitions, lut_study
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Queue
from hwmodel.whole_files import write_whole
from spikec.reproduce.collect import belong, is_part
from spikec.reproduce.engines import scalings, study_of
from spikec.reproduce.facts import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Sequence[Axes]", H2LearnConfig, Sequence[Row]], None]

ENGINES = {"forward": (Queue.FE, "Forward Engine"), "weight_update": (Queue.WUE, "Weight Update Engine")}
COLOURS = ("#33658a", "#f6ae2d", "#758e4f", "#86198f")


def check_figures(item: str, folder: Path) -> str:
    """Make sure, before anything is calculated, that an item's figures can be drawn; the item whose rows they need.

    Raises: CompileError where no figure belongs to the item, matplotlib is missing or the folder cannot be written.
    """
    wanted = [name for name in _FIGURES if belong(name, item)]
    if not wanted:
        raise CompileError("no figure belongs to it", Loc(item), hint=f"figures: {', '.join(_FIGURES)}")
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as fault:
        raise CompileError("matplotlib is missing", Loc(str(folder)), hint="pip install 'spikec[report]'") from fault
    made = _make(folder)
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        raise CompileError(f"cannot write into it: {fault.strerror}", Loc(str(folder))) from fault
    finally:
        _remove(made)
    return wanted[0] if is_part(item, wanted[0]) else item


def draw_figures(config: H2LearnConfig, rows: Sequence[Row], folder: Path) -> tuple[Path, ...]:
    """One SVG a figure; those of which no row was asked for are left out. What fails leaves no new folder.

    Raises: CompileError where the folder cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    wanted = {row.item.rsplit(".", 1)[0] for row in rows}
    with mpl.rc_context():
        mpl.rc("font", size=9)
        mpl.rc("axes.spines", top=False, right=False)
        mpl.rc("svg", hashsalt="spikec", fonttype="none")  # the same numbers, the same bytes
        drawn = {
            folder / f"{name}.svg": _drawn(_PANELS[name], draw, config, rows)
            for name, draw in _FIGURES.items()
            if name in wanted
        }
    made = _make(folder)
    try:
        for path, content in drawn.items():
            write_whole(path, content, example="figure-3.10.svg")
    except BaseException:
        for path in drawn if made else ():
            with suppress(OSError):
                path.unlink()
        _remove(made)
        raise
    return tuple(drawn)


def _drawn(panels: Sequence[float], draw: Draw, config: H2LearnConfig, rows: Sequence[Row]) -> bytes:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(sum(panels), 3.2), squeeze=False, gridspec_kw={"width_ratios": panels}
    )
    try:
        draw(list(axes[0]), config, rows)
        figure.tight_layout()
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    finally:
        plt.close(figure)
    return content.getvalue()


def _make(folder: Path) -> list[Path]:
    """The folders that were made for it, innermost first."""
    missing: list[Path] = []
    try:
        for path in (folder, *folder.parents):
            if path.exists():
                break
            missing.append(path)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        _remove(missing)
        raise CompileError(f"cannot write into it: {fault.strerror}", Loc(str(folder))) from fault
    return missing


def _remove(made: Sequence[Path]) -> None:
    """Folders that are empty; anything else stays."""
    for path in made:
        with suppress(OSError):
            path.rmdir()


def _partitions(axes: Sequence[Axes], config: H2LearnConfig, rows: Sequence[Row]) -> None:
    for panel, (engine, title) in zip((axes[:2], axes[2:]), ENGINES.values(), strict=True):
        found = lut_partitions(config, engine)
        names = [f"{part.sub_luts}x{part.entries}" for part in found]
        for axis, values, unit in (
            (panel[0], [part.area_mm2 for part in found], "area, mm2"),
            (panel[1], [part.energy_mj for part in found], "energy, mJ"),
        ):
            axis.bar(names, values, color=COLOURS[0])
            axis.set(title=title, xlabel="sub-LUTs x entries", ylabel=unit)


def _luts(axes: Sequence[Axes], config: H2LearnConfig, rows: Sequence[Row]) -> None:
    study = lut_study(config)
    for axis, (name, (engine, title)) in zip(axes, ENGINES.items(), strict=True):
        ours = [study[engine].area_saving, study[engine].energy_saving]
        items = [f"figure-3.11.{name}_{what}_saving" for what in ("area", "energy")]
        _pairs(axis, ["area", "energy"], ours, [_published(rows, item) for item in items], "saving over adders, x")
        axis.set_title(title)


def _skips(axes: Sequence[Axes], config: H2LearnConfig, rows: Sequence[Row]) -> None:
    found = study_of(config).rows.values()
    names = [str(row.skips) for row in found]
    bottom = [0.0] * len(names)
    for colour, label in zip(COLOURS, ("PEs", "GLB", "leakage"), strict=False):
        part = {"PEs": "pe_array_mj", "GLB": "glb_mj", "leakage": "leakage_mj"}[label]
        values = [float(getattr(row, part)) for row in found]
        axes[0].bar(names, values, bottom=bottom, label=label, color=colour)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    axes[0].set(xlabel="zeros skipped", ylabel="energy, mJ")
    axes[0].legend(frameon=False)
    axes[1].bar(names, [row.speedup for row in found], color=COLOURS[0])
    axes[1].set(xlabel="zeros skipped", ylabel="speedup, x")


def _design_space(axes: Sequence[Axes], config: H2LearnConfig, rows: Sequence[Row]) -> None:
    panels = dict(zip(("forward", "backward", "weight_update"), axes, strict=True))
    marks = {"rows": "o", "columns": "s", "parallelism": "^"}
    for (engine, setting, scaling), colour in zip(scalings(config), COLOURS[:3] * 3, strict=True):
        values = [scaling.halved, 1.0, scaling.doubled]
        panels[engine].plot(["half", "preset", "twice"], values, marker=marks[setting], label=setting, color=colour)
    for engine, axis in panels.items():
        axis.set(title=engine.replace("_", " "), ylabel="throughput, x", ylim=(0, 2.1))
        axis.legend(frameon=False)


def _rivals(axes: Sequence[Axes], config: H2LearnConfig, rows: Sequence[Row]) -> None:
    for axis, what in zip(axes, ("energy", "area at equal throughput"), strict=True):
        found = [row for row in rows if row.item == "figure-3.14.spinalflow" and row.variant.endswith(what)]
        names = [row.variant.split(":")[0].removeprefix("layers.") for row in found]
        axis.bar(names, [float(row.ours or 0) for row in found], color=COLOURS[0])
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(title="SpinalFlow-like over H2Learn", ylabel=f"{what}, x")


def _training(axes: Sequence[Axes], config: H2LearnConfig, rows: Sequence[Row]) -> None:
    bars = [row for row in rows if row.item == "figure-3.15.bars"]
    axes[0].bar([row.variant for row in bars], [float(row.ours or 0) for row in bars], color=COLOURS[0])
    for item in ("speedup_low", "speedup_high"):
        axes[0].axhline(_published(rows, f"figure-3.15.{item}"), color=COLOURS[1], linewidth=1)
    axes[0].set(title="lines: published ends", ylabel="speedup over V100, x")
    variants = [row for row in rows if row.item == "figure-3.15.speedup_low" and row.variant]
    values = [float(row.ours or 0) for row in variants]
    names = [row.variant if len(row.variant) < 70 else f"{row.variant[:67]}..." for row in variants]
    axes[1].barh(names, values, color=COLOURS[2])
    axes[1].axvline(_published(rows, "figure-3.15.speedup_low"), color=COLOURS[1], linewidth=1)
    axes[1].invert_yaxis()
    axes[1].tick_params(axis="y", labelsize=7)
    axes[1].set(title="lowest speedup, one choice otherwise", xlabel="x")


def _pairs(axis: Axes, names: Sequence[str], ours: Sequence[float], published: Sequence[float], unit: str) -> None:
    places = range(len(names))
    axis.bar([place - 0.2 for place in places], published, 0.4, label="published", color=COLOURS[1])
    axis.bar([place + 0.2 for place in places], ours, 0.4, label="ours", color=COLOURS[0])
    axis.set_xticks(list(places), list(names))
    axis.set(ylabel=unit, ylim=(0, 1.3 * max(*published, *ours)))
    axis.legend(frameon=False, ncols=2, loc="upper center")


def _published(rows: Sequence[Row], item: str) -> float:
    value = next((row.published for row in rows if row.item == item), None)
    return float(value) if isinstance(value, int | float) else float("nan")


_FIGURES = {
    "figure-3.10": _partitions,
    "figure-3.11": _luts,
    "figure-3.12": _skips,
    "figure-3.13": _design_space,
    "figure-3.14": _rivals,
    "figure-3.15": _training,
}
_PANELS = {  # widths in inches
    "figure-3.10": (3.6, 3.6, 3.6, 3.6),
    "figure-3.11": (3.6, 3.6),
    "figure-3.12": (3.6, 3.6),
    "figure-3.13": (3.6, 3.6, 3.6),
    "figure-3.14": (3.6, 3.6),
    "figure-3.15": (3.2, 6.8),
}
