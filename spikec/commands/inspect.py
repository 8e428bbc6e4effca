"""`spikec inspect`: a file as text."""

from __future__ import annotations

from pathlib import Path

from compiler.ir.file import load_graph
from compiler.ir.text import print_graph
from hwmodel.assembler import disassemble
from hwmodel.errors import CompileError, Loc
from hwmodel.listing import listing
from hwmodel.program_file import load_program
from hwmodel.timing import program_timing
from spikec.commands.talk import print_json


def run_inspect(file: Path, *, full: bool, as_json: bool) -> int:
    """Print a graph or a program; the exit code."""
    match file.suffix:
        case ".spk":
            return _graph(file, as_json=as_json)
        case ".h2l":
            return _program(file, full=full, as_json=as_json)
    raise CompileError("is neither a graph nor a program", Loc(str(file)), hint="known files: .spk, .h2l")


def _graph(file: Path, *, as_json: bool) -> int:
    graph = load_graph(file)
    if not as_json:
        print(print_graph(graph))
        return 0
    print_json(
        {
            "graph": graph.name,
            "timesteps": graph.timesteps,
            "parameters": sum(array.size for array in graph.parameters.values()),
            "nodes": [
                {"name": node.name, "op": type(node.op).__name__, "type": str(graph.types[node.name])}
                for node in graph.nodes
            ],
            "digest_sha256": graph.digest(),
        }
    )
    return 0


def _program(file: Path, *, full: bool, as_json: bool) -> int:
    program = load_program(file)
    if not as_json:
        print(listing(program, full=full))
        return 0
    timing = program_timing(program)
    streams = program.streams.items()
    print_json(
        {
            "program": program.name,
            "config": program.config.name,
            "timesteps": program.timesteps,
            "batch": program.batch,
            "instructions": {str(queue): len(stream) for queue, stream in streams},
            "latency_cycles": timing.latency_cycles,
            "cycles_per_sample": timing.cycles_per_sample,
            "layers": [
                {
                    "name": row.name,
                    "engine": str(row.engine),
                    "compute_cycles": row.compute_cycles,
                    "memory_cycles": row.memory_cycles,
                    "memory_bytes": row.memory_bytes,
                    "latency_cycles": row.latency_cycles,
                }
                for row in timing.layers
            ],
            "listing": {str(queue): [disassemble(i) for i in stream] for queue, stream in streams} if full else None,
        }
    )
    return 0
