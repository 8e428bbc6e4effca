"""How long it takes to time a training step: from real masks, from densities, and the largest network.

    python -m tests.bench.timing_speed [--json]

One core; compilation is stated apart. Densities are those of table 3.2.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from compiler.h2learn.compile_training import compile_training
from compiler.losses import Loss
from hwmodel.config import load_config
from hwmodel.program import Phase, Program
from hwmodel.timing.sampled_tiles import SampledTiles
from runtime.timing.recorded_tiles import record_step
from runtime.timing.simulate import KeptByLayer, simulate
from spikec.models import load_model
from spikec.reproduce.facts import load_facts
from spikec.reproduce.networks import SEED, Published

PHASES = (Phase.FORWARD, Phase.OVERLAP, Phase.BACKWARD, Phase.UPDATE)


def from_densities(name: str, program: Program) -> float:
    published = Published.of(load_facts(), name)
    start = time.perf_counter()
    tiles, kept = SampledTiles(program.config, published.densities, seed=SEED), KeptByLayer(published.windows)
    for phase in PHASES:
        simulate(program, phase, tiles=tiles, kept=kept)
    return time.perf_counter() - start


def from_masks(program: Program) -> float:
    """A step of one sub-batch, executed with its masks recorded, then timed."""
    rng = np.random.default_rng(0)
    x = rng.random((program.batch, *program.host.input_shape), np.float32)
    start = time.perf_counter()
    recorded = record_step(program, x, rng.integers(0, 10, len(x)))
    for phase in PHASES:
        known = bool(recorded.of(phase))
        tiles, kept = (recorded.tiles(phase), recorded.kept(phase)) if known else (None, None)
        simulate(program, phase, tiles=tiles, kept=kept)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    rows: list[dict[str, str | float]] = []
    for name in ("cifar10", "imagenet"):
        start = time.perf_counter()
        program = compile_training(load_model(f"zoo:{name}").graph, load_config("h2learn"), loss=Loss.MSE).program
        rows.append({"network": name, "what": "compile", "seconds": time.perf_counter() - start})
        rows.append({"network": name, "what": "time from densities", "seconds": from_densities(name, program)})
        if name == "cifar10":
            rows.append({"network": name, "what": "execute a sub-batch and time", "seconds": from_masks(program)})
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        print(f"{row['network']:10} {row['what']:34} {row['seconds']:8.2f} s")


if __name__ == "__main__":
    main()
