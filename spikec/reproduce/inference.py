"""Table 3.7: inference of one sample beside Loihi and an FPGA, from the simulated programs."""

from __future__ import annotations

from collections.abc import Iterator

from compiler.h2learn.compile import compile_inference
from hwmodel.config import H2LearnConfig
from hwmodel.program import Phase
from runtime.timing.energy import phase_energy
from runtime.timing.simulate import simulate
from spikec.reproduce.facts import Facts, Kind, Row
from spikec.reproduce.networks import graph_of

_ASSUMPTIONS = {
    "loihi": "input 34x34x2 (N-MNIST), pooling with a last partial window throughout (34-17-9-5)",
    "fpga": "input 28x28x1, same padding, encoding layer redone at each of 10 steps on the Backward Engine, whose "
    "dense passes step through whole rows of a tile",
}
_COMMON = "batch 1, T = 10, so 3 of 4 lanes idle; compiled program, simulated; external memory without energy"


def inference_rows(facts: Facts, config: H2LearnConfig) -> Iterator[Row]:
    """Latency and energy of both networks, and the ratios to the published platforms."""
    for name, assumption in _ASSUMPTIONS.items():
        program = compile_inference(graph_of(name), config, batch=1).program
        timing = simulate(program, Phase.RUN)
        seconds = timing.elapsed_cycles / (config.clock_ghz * 1e9)
        energy = phase_energy(timing, config)
        item, why = f"table-3.7.{name}", f"{assumption}; {_COMMON}"
        latency, joules = facts.number(f"{item}_latency"), facts.number(f"{item}_energy")
        yield facts[f"{item}_net_latency"].row(seconds, Kind.CHOSEN, why)
        leaked = (
            f"{why}; leakage {energy.leakage_j * 1e6:.0f} of {energy.total_j * 1e6:.0f} uJ, fitted to both networks"
        )
        yield facts[f"{item}_net_energy"].row(energy.total_j, Kind.FITTED, leaked)
        yield facts[f"{item}_latency"].row(latency, Kind.GIVEN, "another platform: its published constant")
        yield facts[f"{item}_energy"].row(joules, Kind.GIVEN, "another platform: its published constant")
        yield facts[f"{item}_speedup"].row(latency / seconds, Kind.CHOSEN, why)
        saving = joules / energy.total_j if name == "fpga" else energy.total_j / joules
        yield facts[f"{item}_energy_ratio"].row(saving, Kind.FITTED, leaked)
