"""`spikec export`: a network as a file for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compiler.ir import CompileError, Graph, Loc
from compiler.passes import FoldBatchNorm
from frontends.findings import Finding
from spikec.commands.import_ import findings_json, print_findings
from spikec.commands.talk import print_json, print_table
from spikec.models import load_model


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export. output: .onnx or .nir. dt: seconds of a time step, for NIR; None is its default."""

    model: str
    output: Path
    timesteps: int | None
    input_shape: str
    seed: int
    dt: float | None
    fold_batch_norm: bool


def run_export(request: ExportRequest, *, as_json: bool) -> int:
    """Write the file, and tell what other readers of it will not see; the exit code.

    Raises: CompileError naming the node that the format cannot express.
    """
    loc = Loc(str(request.output))
    if request.output.suffix not in (".onnx", ".nir"):
        raise CompileError("is no file that networks are exported to", loc, hint="name it net.onnx or net.nir")
    if request.dt is not None and request.output.suffix != ".nir":
        raise CompileError("dt is given, but only NIR files have seconds", loc)
    model = load_model(request.model, timesteps=request.timesteps, seed=request.seed, input_shape=request.input_shape)
    graph = FoldBatchNorm()(model.graph) if request.fold_batch_norm else model.graph
    findings = _write(graph, request)
    size = request.output.stat().st_size
    if as_json:
        print_json(
            {
                "graph": graph.name,
                "file": str(request.output),
                "file_bytes": size,
                "findings": findings_json(findings),
            }
        )
        return 0
    print_findings(f"{request.output}: what other readers do not see", findings)
    print_table(str(request.output), [("graph", graph.name), ("nodes", str(len(graph.nodes))), ("bytes", f"{size:,}")])
    return 0


def _write(graph: Graph, request: ExportRequest) -> tuple[Finding, ...]:
    if request.output.suffix == ".onnx":
        from frontends.to_onnx import to_onnx

        to_onnx(graph, request.output)
        return ()
    from frontends.to_nir import DEFAULT_DT, to_nir

    return to_nir(graph, request.output, dt=DEFAULT_DT if request.dt is None else request.dt)
