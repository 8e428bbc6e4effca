"""Draws an attack: some of its examples, and how many cases succeed within a perturbation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.attack.settings import Case, Status
from hwmodel.errors import CompileError, Loc
from spikec.attack.records import Record
from spikec.explore.figure import save_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

Floats = npt.NDArray[np.float32]
Draw = Callable[["Picture", "FigureBase"], None]

SUFFIX = ".svg"
_OTHERS = (".eps", ".jpeg", ".jpg", ".pdf", ".png")  # who names such a file wants no folder of that name
SHOWN = 8  # examples
EXAMPLES, CURVE = "examples.svg", "success.svg"
_KEPT, _ADDED, _REMOVED, _LINE = "#b0b4ba", "#d62728", "#1f77b4", "#33658a"
_IMAGE_AXES = (("dissertation", "mean square perturbation"), ("linf", "largest change, linf"))
_SPIKE_AXES = (("l0", "flipped spikes, l0"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is drawn: all records in order, their cases, and whether the network takes spikes."""

    title: str
    records: Sequence[Record]
    cases: Sequence[Case]
    is_spikes: bool

    @property
    def shown(self) -> list[tuple[Case, Record, Floats]]:
        """The first successes, with their examples."""
        found = []
        for case, record in zip(self.cases, self.records, strict=True):
            if record.status is Status.SUCCESS and record.example is not None:
                found.append((case, record, record.example))
        return found[:SHOWN]


def check_place(path: Path) -> None:
    """Raises: CompileError if the figures' file or folder cannot be there."""
    loc = Loc(str(path))
    if path.suffix == SUFFIX:
        if path.is_dir():
            raise CompileError("is a folder, not a file", loc, hint="name a file inside it")
    elif not path.is_dir() and (path.exists() or path.suffix.lower() in _OTHERS):
        raise CompileError(f"is no folder, and does not end in {SUFFIX}", loc, hint=f"name a folder or FILE{SUFFIX}")
    if not path.parent.is_dir():
        raise CompileError(f"the folder {path.parent} does not exist", loc, hint="create it first")


def draw_attack(picture: Picture, path: Path) -> tuple[Path, ...]:
    """Write one SVG with both parts, or both into a folder; the same records give the same bytes.

    Raises: CompileError if they cannot be written.
    """
    if path.suffix == SUFFIX:
        save_svg(lambda: _both(picture), path)
        return (path,)
    try:
        path.mkdir(exist_ok=True)
    except OSError as fault:
        raise CompileError(f"cannot be made: {fault.strerror}", Loc(str(path))) from fault
    save_svg(lambda: _alone(picture, _draw_examples, (11.0, _height(picture))), path / EXAMPLES)
    save_svg(lambda: _alone(picture, _draw_curve, (9.0, 4.0)), path / CURVE)
    return path / EXAMPLES, path / CURVE


def _height(picture: Picture) -> float:
    """Of the examples, in inches."""
    if not picture.shown:
        return 1.0
    return 0.6 + 2.6 * -(-len(picture.shown) // 4) if picture.is_spikes else 4.2


def _both(picture: Picture) -> Figure:
    from matplotlib.figure import Figure

    top = _height(picture)
    figure = Figure(figsize=(11.0, top + 4.0), layout="constrained")
    figure.suptitle(picture.title)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[top, 3.6])
    _draw_examples(picture, parts[0, 0])
    _draw_curve(picture, parts[1, 0])
    return figure


def _alone(picture: Picture, draw: Draw, size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(picture.title)
    draw(picture, figure)
    return figure


# -- examples ---------------------------------------------------------------------------------------------------------


def _draw_examples(picture: Picture, figure: FigureBase) -> None:
    if not picture.shown:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no example was found", ha="center", va="center", transform=axes.transAxes)
    elif picture.is_spikes:
        _draw_rasters(picture, figure)
    else:
        _draw_images(picture, figure)


def _draw_images(picture: Picture, figure: FigureBase) -> None:
    """Clean, adversarial, difference, one above the other; differences share a scale."""
    grid = figure.subplots(3, SHOWN, squeeze=False)
    largest = max(float(np.abs(example - case.x).max()) for case, _, example in picture.shown)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, name in enumerate(("clean", "adversarial", "difference")):
        grid[row, 0].set_ylabel(name)
    for column, (case, record, example) in enumerate(picture.shown):
        clean, changed, difference = (_pixels(x) for x in (case.x, example, example - case.x))
        grid[0, column].imshow(clean, cmap="gray", vmin=0, vmax=1)
        grid[1, column].imshow(changed, cmap="gray", vmin=0, vmax=1)
        signed = difference if difference.ndim == 2 else difference.mean(2)
        shade = grid[2, column].imshow(signed, cmap="RdBu_r", vmin=-largest, vmax=largest)
        grid[0, column].set_title(_named(case), fontsize=8)
        grid[2, column].set_xlabel(f"linf {record.perturbation.linf:.3g}\nl2 {record.perturbation.l2:.3g}", fontsize=8)
    figure.colorbar(shade, ax=grid[2, :].tolist(), label="change", pad=0.01)


def _pixels(x: Floats) -> Floats:
    """As matplotlib takes it: (H, W), or (H, W, 3) of three channels; sequences by their mean over time."""
    image = x.mean(0) if x.ndim == 4 else x
    if image.ndim == 1:
        return image[None]
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image.mean(0)


def _draw_rasters(picture: Picture, figure: FigureBase) -> None:
    """Neurons over time steps: spikes that stay, that were added and that were removed."""
    from matplotlib.ticker import MaxNLocator

    rows = -(-len(picture.shown) // 4)
    grid = figure.subplots(rows, min(len(picture.shown), 4), squeeze=False)
    for axes in grid.flat[len(picture.shown) :]:
        axes.set_axis_off()
    for axes, (case, record, example) in zip(grid.flat, picture.shown, strict=False):
        before, after = (x.reshape(len(x), -1) > 0 for x in (case.x, example))
        size = 9.0 if before.shape[1] <= 256 else 1.5
        marks = (
            (before & after, _KEPT, "stays"),
            (after & ~before, _ADDED, "added"),
            (before & ~after, _REMOVED, "removed"),
        )
        for spikes, colour, label in marks:
            time, neuron = np.nonzero(spikes)
            is_flip = colour != _KEPT
            axes.scatter(
                time, neuron, s=14.0 if is_flip else size, c=colour, label=label, linewidth=0, rasterized=not is_flip
            )
        axes.set_title(f"{_named(case)}, {record.perturbation.l0} flips", fontsize=8)
        axes.set(xlim=(-0.5, len(before) - 0.5), ylim=(-0.5, before.shape[1] - 0.5))
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("input neuron")
    for axes in grid[-1, :]:
        axes.set_xlabel("time step")
    for axes in grid.flat:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)


def _named(case: Case) -> str:
    aim = "" if case.target is None else f" to {case.target}"
    return f"sample {case.sample}: {case.label}{aim}"


# -- curve ------------------------------------------------------------------------------------------------------------


def _draw_curve(picture: Picture, figure: FigureBase) -> None:
    """The share of attacked cases that succeed with a perturbation of at most so much."""
    names = _SPIKE_AXES if picture.is_spikes else _IMAGE_AXES
    grid = figure.subplots(1, len(names), squeeze=False, sharey=True)
    for axes, (measure, name) in zip(grid[0], names, strict=True):
        _draw_steps(axes, picture.records, measure)
        axes.set(xlabel=f"{name}, at most", ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    grid[0, 0].set_ylabel("share of attacked cases that succeed")


def _draw_steps(axes: Axes, records: Sequence[Record], measure: str) -> None:
    attacked = sum(record.status is not Status.CLEAN_ERROR for record in records)
    sizes = curve(records, measure)
    if not sizes:
        axes.text(0.5, 0.5, "no success", ha="center", va="center", transform=axes.transAxes)
        return
    shares = np.arange(1, len(sizes) + 1) / attacked
    x = np.concatenate([[0.0], sizes, [sizes[-1] * 1.05]])
    y = np.concatenate([[0.0], shares, shares[-1:]])
    axes.step(x, y, where="post", color=_LINE)
    axes.set_xlim(0, x[-1])


def curve(records: Sequence[Record], measure: str) -> list[float]:
    """Sizes of the successes, in order; the n-th is what n successes need."""
    return sorted(record.perturbation.named()[measure] for record in records if record.status is Status.SUCCESS)
