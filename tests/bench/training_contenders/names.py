"""The table of contenders; importing it imports no framework."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """Where a contender is built."""

    module: str
    function: str
    takes_merged: bool  # the input is (T * N, C, H, W), not (T, N, C, H, W)


CONTENDERS = {
    "spikec": Source("fused", "fused", True),
    "spikec_kept": Source("fused", "kept", True),
    "spikec_dense": Source("fused", "dense", True),
    "vanilla time-merged": Source("vanilla", "time_merged", True),
    "vanilla time-outer": Source("vanilla", "time_outer", False),
    "vanilla checkpoint": Source("vanilla", "checkpointed", True),
    "torch.compile": Source("vanilla", "compiled", True),
    "spikingjelly": Source("spikingjelly", "multi_step", False),
    "spikingjelly memopt": Source("spikingjelly", "memory_optimised", False),
    "snntorch": Source("snntorch", "user_loop", False),
    "norse": Source("norse", "sequential_state", False),
}
OWN = ("spikec", "spikec_kept", "spikec_dense")  # the latter two are ablations
HIDES_SAVED = ("spikingjelly memopt",)  # what it keeps lies in closures, out of sight of autograd's hooks
