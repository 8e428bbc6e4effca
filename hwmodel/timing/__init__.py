"""Time: what instructions and transfers cost, closed forms of layers, and how programs add up."""

from hwmodel.timing.closed_forms import (
    encoding_conv_cycles,
    forward_conv_cycles,
    forward_linear_cycles,
    update_conv_cycles,
    update_linear_cycles,
)
from hwmodel.timing.instructions import instruction_work, transfer_bytes
from hwmodel.timing.program import (
    LayerTiming,
    ProgramTiming,
    memory_bytes,
    program_timing,
)
from hwmodel.timing.tiles import DenseTiles, TileCounts, TileSource

__all__ = [
    "DenseTiles",
    "LayerTiming",
    "ProgramTiming",
    "TileCounts",
    "TileSource",
    "encoding_conv_cycles",
    "forward_conv_cycles",
    "forward_linear_cycles",
    "instruction_work",
    "memory_bytes",
    "program_timing",
    "transfer_bytes",
    "update_conv_cycles",
    "update_linear_cycles",
]
