"""Functional engines of the simulated machine: a golden NumPy model and compiled kernels that equal it."""

from __future__ import annotations

from runtime.engines.geometry import SUB_LUT_ENTRIES, SUB_LUTS, TAPS_PER_PE, GradWindow, Window
from runtime.engines.grad_plan import GradNeuron, GradPlan, GradResult, KeptStage
from runtime.engines.protocol import U16, Engines
from runtime.engines.sgd_rule import Sgd, SgdResult
from runtime.engines.soma_plan import (
    F16,
    U8,
    Compare,
    Neuron,
    Param,
    Pool,
    PoolKind,
    Reset,
    SomaPlan,
    SomaResult,
    StageProbe,
    compress,
    decompress,
)

__all__ = [
    "F16",
    "SUB_LUTS",
    "SUB_LUT_ENTRIES",
    "TAPS_PER_PE",
    "U8",
    "U16",
    "Compare",
    "Engines",
    "GradNeuron",
    "GradPlan",
    "GradResult",
    "GradWindow",
    "KeptStage",
    "Neuron",
    "Param",
    "Pool",
    "PoolKind",
    "Reset",
    "Sgd",
    "SgdResult",
    "SomaPlan",
    "SomaResult",
    "StageProbe",
    "Window",
    "compress",
    "decompress",
    "fast",
    "golden",
]


def golden(array_rows: int = 64, dense_rows: int = 16, update_rows: int = 10) -> Engines:
    """The definition: slow, NumPy float16, step by step as the hardware."""
    from runtime.engines.golden_engines import GoldenEngines

    return GoldenEngines(array_rows=array_rows, dense_rows=dense_rows, update_rows=update_rows)


def fast(array_rows: int = 64, dense_rows: int = 16, update_rows: int = 10) -> Engines:
    """Compiled kernels on all cores, equal to `golden` bit for bit."""
    from runtime.engines.fast_engines import FastEngines

    return FastEngines(array_rows=array_rows, dense_rows=dense_rows, update_rows=update_rows)
