"""`spikec import MODEL --ann DATA`: a trained network with ReLU becomes a spiking one, and what that costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compiler.ir.file import save_graph
from frontends.ann import PERCENTILE, Converted, convert_ann
from frontends.datasets import Samples, train_and_test
from frontends.findings import Finding
from hwmodel.errors import CompileError, Loc
from spikec.commands.import_ import findings_json, print_findings
from spikec.commands.talk import print_json, print_table, progress_bar
from spikec.explore.figure import check_matplotlib, save_svg
from spikec.models import DEFAULT_TIMESTEPS, load_module
from spikec.training.request import SUFFIX, check_place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURE, _ONNX = ".svg", ".onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertRequest:
    """The command's arguments.

    data: whose training samples balance the thresholds, and whose test samples measure the accuracies.
    samples: how many training samples; 0 for all. figure: where to draw accuracy over time steps.
    """

    model: str
    data: str
    output: Path | None
    timesteps: int | None = None
    percentile: float = PERCENTILE
    samples: int = 1000
    seed: int = 0
    figure: Path | None = None

    def verify(self) -> None:
        """Refuse what can be told before the model is loaded.

        Raises: CompileError naming the option or the file.
        """
        if self.model.startswith("zoo:") or not (":" in self.model or self.model.endswith(_ONNX)):
            hint = "give FILE.onnx, or module:function that returns a torch network with ReLU"
            raise CompileError("is no network with ReLU", Loc(self.model), hint=hint)
        if self.samples < 0:
            raise CompileError(f"is {self.samples}, must be at least 1, or 0 for all", Loc("--samples"))
        if self.timesteps is not None and self.timesteps < 1:
            raise CompileError(f"is {self.timesteps}, must be at least 1", Loc("--timesteps"))
        if not 0.0 < self.percentile <= 100.0:
            raise CompileError(f"is {self.percentile:g}, must be above 0 and at most 100", Loc("--percentile"))
        if self.output is not None:
            if self.output.suffix != SUFFIX:
                raise CompileError(f"a network's file must end in {SUFFIX}", Loc(str(self.output)))
            check_place(self.output)
        if self.figure is not None:
            if self.figure.suffix != _FIGURE:
                raise CompileError(f"a figure's file must end in {_FIGURE}", Loc(str(self.figure)))
            check_place(self.figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport:
    """What the conversion gave. Fractions of the test samples; seconds of this machine."""

    network: str
    data: str
    timesteps: int
    percentile: float
    calibration_samples: int
    accuracy_ann: float
    accuracy_snn: float  # at `timesteps`
    accuracy_by_timesteps: Mapping[str, float]
    thresholds: Mapping[str, float]
    findings: tuple[Finding, ...]
    parameters: int
    output: str | None
    figure: str | None
    seconds: float


def run_convert_ann(request: ConvertRequest, *, as_json: bool) -> int:
    """Convert, save, measure, report."""
    start = time.perf_counter()
    request.verify()
    if request.figure is not None:
        check_matplotlib()
    train, test = train_and_test(request.data)
    timesteps = request.timesteps or DEFAULT_TIMESTEPS
    calibration = _chosen(train, request.samples)
    module, example = _network(request, train.x.shape[1:])
    with progress_bar("converting and measuring"), redirect_stdout(sys.stderr):  # what the user's forward prints
        converted = convert_ann(
            module,
            example,
            calibration,
            timesteps=timesteps,
            percentile=request.percentile,
            held_out=test,
            name=Path(request.model.rpartition(":")[2]).stem,
        )
    if request.output is not None:
        save_graph(converted.graph, request.output)
    report = _report(request, converted, timesteps, len(calibration), start)
    if request.figure is not None:
        save_svg(lambda: _figure(report), request.figure)
    if as_json:
        print_json({**asdict(report), "findings": findings_json(report.findings)})
    else:
        _show(report)
    return 0


def _network(request: ConvertRequest, features: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The network with ReLU, and an example of its input."""
    if request.model.endswith(_ONNX):
        from frontends.ann_conversion.onnx_network import onnx_network

        return onnx_network(Path(request.model), features)
    return load_module(request.model, seed=request.seed, input_shape="x".join(map(str, features)))


def _chosen(train: Samples, count: int) -> Samples:
    """Evenly spaced ones, since a file may be sorted by class."""
    if count == 0 or count >= len(train):
        return train
    return train.take((torch.arange(count) * len(train) // count).numpy())


def _report(
    request: ConvertRequest, converted: Converted, timesteps: int, calibration: int, start: float
) -> ConvertReport:
    assert converted.accuracy_ann is not None
    return ConvertReport(
        network=request.model,
        data=request.data,
        timesteps=timesteps,
        percentile=request.percentile,
        calibration_samples=calibration,
        accuracy_ann=converted.accuracy_ann,
        accuracy_snn=converted.accuracy_by_timesteps[timesteps],
        accuracy_by_timesteps={str(steps): value for steps, value in converted.accuracy_by_timesteps.items()},
        thresholds=dict(converted.thresholds),
        findings=converted.findings,
        parameters=sum(array.size for array in converted.graph.parameters.values()),
        output=str(request.output) if request.output is not None else None,
        figure=str(request.figure) if request.figure is not None else None,
        seconds=time.perf_counter() - start,
    )


def _show(report: ConvertReport) -> None:
    print_findings(f"{report.network}: what was found", report.findings)
    rows = [
        ("accuracy with ReLU", f"{report.accuracy_ann:.4f}"),
        *(
            (f"accuracy with spikes, T = {steps}", f"{accuracy:.4f}")
            for steps, accuracy in report.accuracy_by_timesteps.items()
        ),
        ("parameters", f"{report.parameters:,}"),
    ]
    files = (("network", report.output), ("figure", report.figure))
    rows += [(name, path) for name, path in files if path is not None]
    rows.append(("seconds in all", f"{report.seconds:.1f}"))
    print_table(f"{report.network} converted to spikes, T = {report.timesteps}, on {report.data}", rows)


def _figure(report: ConvertReport) -> Figure:
    """Accuracy over the number of time steps, beside that of the network with ReLU."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = [int(text) for text in report.accuracy_by_timesteps]
    axes.plot(steps, list(report.accuracy_by_timesteps.values()), marker="o", label="spikes")
    axes.axhline(report.accuracy_ann, color="black", linestyle="--", linewidth=1, label="ReLU")
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.set_xlabel("time steps")
    axes.set_ylabel(f"accuracy on {report.data}")
    axes.legend(frameon=False)
    return figure
