"""`spikec import`: a network of another program as a `.spk` file, with what was read and what was assumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from compiler.ir import CompileError, Loc
from compiler.ir.file import save_graph
from compiler.ir.ops import Li, Lif
from frontends.findings import Finding
from spikec.commands.talk import Json, print_json, print_table
from spikec.models import Model, StepOptions, resolve_model
from spikec.network_files import NirOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What to import, and where to. output: None only tells."""

    model: str
    output: Path | None
    timesteps: int | None
    input_shape: str
    seed: int
    nir: NirOptions
    steps: StepOptions


def run_import(request: ImportRequest, *, as_json: bool) -> int:
    """Import a network, save it, and tell what was found; the exit code.

    Raises: CompileError naming the part of the network that the graph cannot express.
    """
    if request.output is not None and request.output.suffix != ".spk":
        hint = "name it net.spk; `spikec export` writes .onnx and .nir"
        raise CompileError("an import is saved as .spk", Loc(str(request.output)), hint=hint)
    model = resolve_model(
        request.model,
        timesteps=request.timesteps,
        seed=request.seed,
        input_shape=request.input_shape,
        nir=request.nir,
        steps=request.steps,
    )
    if request.output is not None:
        save_graph(model.graph, request.output)
    if as_json:
        print_json(_as_json(request, model))
        return 0
    print_findings(f"{request.model}: what was found", model.findings)
    print_table(str(request.output or request.model), _summary(model))
    return 0


def print_findings(title: str, findings: tuple[Finding, ...]) -> None:
    """One row for each statement; nothing where there is none."""
    if not findings:
        return
    table = Table(title=title, title_justify="left")
    table.add_column("part", style="bold", overflow="fold")
    table.add_column("ground")
    table.add_column("statement", overflow="fold")
    for finding in findings:
        table.add_row(finding.place, str(finding.ground), finding.text)
    Console(markup=False, highlight=False, emoji=False).print(table)


def findings_json(findings: tuple[Finding, ...]) -> Json:
    """The statements for machines."""
    return [{"place": item.place, "ground": str(item.ground), "text": item.text} for item in findings]


def _facts(model: Model) -> dict[str, str | int]:
    graph = model.graph
    neurons = [node for node in graph.nodes if isinstance(node.op, Lif | Li)]
    return {
        "input": str(graph.types[graph.input.name]),
        "output": str(graph.types[graph.output]),
        "timesteps": graph.timesteps,
        "nodes": len(graph.nodes),
        "neuron_groups": len(neurons),
        "parameters": sum(array.size for array in graph.parameters.values()),
    }


def _summary(model: Model) -> list[tuple[str, str]]:
    facts = _facts(model)
    return [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value) for name, value in facts.items()
    ]


def _as_json(request: ImportRequest, model: Model) -> dict[str, Json]:
    return {
        "graph": model.graph.name,
        "file": str(request.output) if request.output is not None else None,
        **_facts(model),
        "digest_sha256": model.graph.digest(),
        "findings": findings_json(model.findings),
    }
