"""spikec: hardware-software co-design compiler for spiking neural networks. The one name to import."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compiler.differentiate import KeepAll, KeepCompressed, TrainingGraph, differentiate, run_training
    from compiler.evaluate import Evaluation, evaluate
    from compiler.h2learn.compile import Compiled, compile_inference
    from compiler.h2learn.compile_training import CompiledTraining, compile_training
    from compiler.h2learn.emit_sgd import Descent
    from compiler.ir import CompileError, Graph, Loc
    from compiler.ir.file import load_graph, save_graph
    from compiler.ir.text import parse_graph, print_graph
    from compiler.losses import Loss
    from frontends.ann import Converted, convert_ann
    from frontends.findings import Finding, Ground, ImportedFile
    from frontends.from_nir import load_nir
    from frontends.from_onnx import load_onnx
    from frontends.from_torch import from_torch
    from frontends.to_nir import to_nir
    from frontends.to_onnx import to_onnx
    from frontends.to_torch import to_torch
    from hwmodel.config import H2LearnConfig, load_config
    from hwmodel.program import Program
    from hwmodel.program_file import load_program, save_program
    from hwmodel.timing import program_timing
    from runtime.engines import fast, golden
    from runtime.session import RunResult, engines_for, run_program
    from runtime.training_session import StepReport, TrainingSession
    from spikec.attack.network import Attacked, attack_network
    from spikec.fusing import fuse

__version__ = "0.7.0"

_HOMES = {
    "Attacked": "spikec.attack.network",
    "CompileError": "compiler.ir",
    "Compiled": "compiler.h2learn.compile",
    "CompiledTraining": "compiler.h2learn.compile_training",
    "Converted": "frontends.ann",
    "Descent": "compiler.h2learn.emit_sgd",
    "Evaluation": "compiler.evaluate",
    "Finding": "frontends.findings",
    "Graph": "compiler.ir",
    "Ground": "frontends.findings",
    "H2LearnConfig": "hwmodel.config",
    "ImportedFile": "frontends.findings",
    "KeepAll": "compiler.differentiate",
    "KeepCompressed": "compiler.differentiate",
    "Loc": "compiler.ir",
    "Loss": "compiler.losses",
    "Program": "hwmodel.program",
    "RunResult": "runtime.session",
    "StepReport": "runtime.training_session",
    "TrainingGraph": "compiler.differentiate",
    "TrainingSession": "runtime.training_session",
    "attack_network": "spikec.attack.network",
    "compile_inference": "compiler.h2learn.compile",
    "compile_training": "compiler.h2learn.compile_training",
    "convert_ann": "frontends.ann",
    "differentiate": "compiler.differentiate",
    "engines_for": "runtime.session",
    "evaluate": "compiler.evaluate",
    "fast": "runtime.engines",
    "from_torch": "frontends.from_torch",
    "fuse": "spikec.fusing",
    "golden": "runtime.engines",
    "load_config": "hwmodel.config",
    "load_graph": "compiler.ir.file",
    "load_nir": "frontends.from_nir",
    "load_onnx": "frontends.from_onnx",
    "load_program": "hwmodel.program_file",
    "parse_graph": "compiler.ir.text",
    "print_graph": "compiler.ir.text",
    "program_timing": "hwmodel.timing",
    "run_program": "runtime.session",
    "run_training": "compiler.differentiate",
    "save_graph": "compiler.ir.file",
    "save_program": "hwmodel.program_file",
    "to_nir": "frontends.to_nir",
    "to_onnx": "frontends.to_onnx",
    "to_torch": "frontends.to_torch",
}

__all__ = [
    "Attacked",
    "CompileError",
    "Compiled",
    "CompiledTraining",
    "Converted",
    "Descent",
    "Evaluation",
    "Finding",
    "Graph",
    "Ground",
    "H2LearnConfig",
    "ImportedFile",
    "KeepAll",
    "KeepCompressed",
    "Loc",
    "Loss",
    "Program",
    "RunResult",
    "StepReport",
    "TrainingGraph",
    "TrainingSession",
    "attack_network",
    "compile_inference",
    "compile_training",
    "convert_ann",
    "differentiate",
    "engines_for",
    "evaluate",
    "fast",
    "from_torch",
    "fuse",
    "golden",
    "load_config",
    "load_graph",
    "load_nir",
    "load_onnx",
    "load_program",
    "parse_graph",
    "print_graph",
    "program_timing",
    "run_program",
    "run_training",
    "save_graph",
    "save_program",
    "to_nir",
    "to_onnx",
    "to_torch",
]


def check_package_names(root: Path, names: tuple[str, ...]) -> None:
    """Make sure that the generic package names are ours.

    Raises: ImportError naming the package that another distribution provides.
    """
    for name in names:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found is None or found.parent != root / name:
            where = f"that name is taken by {found}" if found else "it cannot be imported"
            raise ImportError(
                f"spikec needs its own package {name!r}, but {where}; install spikec into an environment of its own"
            )


check_package_names(Path(__file__).resolve().parent.parent, ("hwmodel", "compiler", "frontends", "runtime"))


def __getattr__(name: str) -> object:
    """Public names are imported on first use, so that `import spikec` stays quick."""
    if name == "nn":
        return import_module("spikec.nn")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'spikec' has no attribute {name!r}")
