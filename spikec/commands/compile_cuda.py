"""`spikec compile --target cuda`: a network's fused training kernels become CUDA C, a binary and a launch table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from compiler.fused.cuda.compile import compile_cuda, manifest_file
from compiler.fused.cuda.description import CudaReport, LayerLaunch
from hwmodel.errors import CompileError, Loc
from spikec.commands.talk import Json, print_json, progress_bar
from spikec.models import load_model

_MIB = 1 << 20
_WIDEST = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaRequest:
    """The command's arguments."""

    model: str
    output: Path  # folder
    arch: str
    batch: int
    timesteps: int | None = None
    input_shape: str = ""
    seed: int = 0


def run_compile_cuda(request: CudaRequest, *, as_json: bool) -> int:
    """Compile and write the files; the exit code."""
    if request.batch < 1:
        raise CompileError(f"batch is {request.batch}, must be at least 1", Loc(request.model))
    with progress_bar("importing") as bar:
        model = load_model(
            request.model,
            timesteps=request.timesteps,
            seed=request.seed,
            input_shape=request.input_shape,
            progress=bar.training,
        )
        bar.stage("compiling")
        report = compile_cuda(model.graph, request.arch, request.output, batch=request.batch)
    if as_json:
        print_json(_result(request, report))
    else:
        _show(request, report)
    return 0


def _result(request: CudaRequest, report: CudaReport) -> dict[str, Json]:
    return {
        "network": report.network,
        "arch": report.arch,
        "batch": request.batch,
        "source": str(request.output / report.source),
        "binary": None if report.binary is None else str(request.output / report.binary),
        "manifest": str(manifest_file(report, request.output)),
        "compiler": report.compiler,
        "kernels": len(report.kernels),
        "spill_bytes": None if not report.resources else sum(each.spill_bytes for each in report.resources),
        "launches": [_launch(report, launch) for launch in report.launches],
    }


def _launch(report: CudaReport, launch: LayerLaunch) -> dict[str, Json]:
    resources = report.resources_of(launch.symbol)
    return {
        "layer": launch.layer,
        "pass": _pass(launch),
        "kernel": str(launch.name),
        "symbol": launch.symbol,
        "grid": list(launch.launch.grid),
        "threads": launch.launch.threads,
        "registers": None if resources is None else resources.registers,
        "spill_bytes": None if resources is None else resources.spill_bytes,
        "stack_bytes": None if resources is None else resources.stack_bytes,
        "shared_bytes": None if resources is None else resources.shared_bytes,
        "bytes_moved": launch.bytes_moved,
    }


def _pass(launch: LayerLaunch) -> str:
    if not launch.training:
        return "evaluation"
    return "backward" if launch.backward else "forward"


def _show(request: CudaRequest, report: CudaReport) -> None:
    title = f"{request.model} on {report.arch}, batch {request.batch}: launches of a step"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("layer", "pass", "kernel"):
        table.add_column(column)
    for column in ("blocks", "threads", "registers", "spill B", "local B", "shared B", "MiB moved"):
        table.add_column(column, justify="right")
    before = ""
    for launch in report.launches:
        if before and _pass(launch) != before:
            table.add_section()
        before = _pass(launch)
        table.add_row(*_row(report, launch))
    wide = Console(width=_WIDEST)  # names are printed whole, whatever the terminal's width
    width = max(wide.measure(table).maximum, Console().width)
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    console.print(table)
    for line in _lines(request, report):
        console.print(line, soft_wrap=True)


def _row(report: CudaReport, launch: LayerLaunch) -> list[str]:
    resources = report.resources_of(launch.symbol)
    figures: tuple[str, ...] = ("?",) * 4
    if resources is not None:
        values = (resources.registers, resources.spill_bytes, resources.stack_bytes, resources.shared_bytes)
        figures = tuple(map(str, values))
    columns, rows = launch.launch.grid
    moved = f"{launch.bytes_moved / _MIB:.2f}"
    names = (launch.layer, _pass(launch), str(launch.name))
    return [*names, f"{columns}x{rows}", str(launch.launch.threads), *figures, moved]


def _lines(request: CudaRequest, report: CudaReport) -> list[str]:
    training = [launch for launch in report.launches if launch.training]
    moved = sum(launch.bytes_moved for launch in training) / _MIB
    lines = [
        f"{len(report.kernels)} kernels; a training step launches {len(training)} and moves {moved:.1f} MiB",
        f"source    {request.output / report.source}",
        f"manifest  {manifest_file(report, request.output)}",
    ]
    if report.binary is None:
        return [*lines, "no binary: nvcc is not on the path, so registers and spills were not read"]
    return [*lines, f"binary    {request.output / report.binary} ({report.compiler})"]
