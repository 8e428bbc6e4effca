"""Graph-to-graph passes and the driver that runs them."""

from compiler.passes.driver import Pass, PassReport, run_passes
from compiler.passes.drop_encode import DropEncode
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.hoist_encode import HoistEncode
from compiler.passes.mean_last import MeanLast
from compiler.passes.prepend_encode import PrependEncode
from compiler.passes.retime import Retime
from compiler.passes.sink_flatten import SinkFlatten

__all__ = [
    "DropEncode",
    "FoldBatchNorm",
    "HoistEncode",
    "MeanLast",
    "Pass",
    "PassReport",
    "PrependEncode",
    "Retime",
    "SinkFlatten",
    "run_passes",
]
