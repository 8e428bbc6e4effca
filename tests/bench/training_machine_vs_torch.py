"""One training step on the machine against one in PyTorch, f32: python -m tests.bench.training_machine_vs_torch --json.

Same network, batch, loss and threads; steps take turns in one process, peak memory is that of a process each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

BATCH = 4
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="cifar10", help="a network of the zoo")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peak-of", choices=("machine", "torch"), help="one step of one contender, its peak memory")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)
    if arguments.peak_of:
        steps(arguments.model, arguments.threads)[arguments.peak_of]()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    # first of all: a child's peak is never below what its parent held when it was made
    peaks = {f"{who}_peak_rss_mb": peak_mb(who, arguments.model, arguments.threads) for who in ("machine", "torch")}
    row = timed(arguments.model, arguments.threads, arguments.runs) | peaks
    print(json.dumps(row) if arguments.json else "\n".join(f"{name:24} {value}" for name, value in row.items()))


def timed(model: str, threads: int, runs: int) -> dict[str, object]:
    contenders = steps(model, threads)
    for step in contenders.values():
        step()
    pairs = [(seconds(contenders["machine"]), seconds(contenders["torch"])) for _ in range(runs)]
    return {
        "model": model,
        "batch": BATCH,
        "threads": threads,
        "runs": runs,
        "machine_s_median": statistics.median(machine for machine, _ in pairs),
        "torch_s_median": statistics.median(torch for _, torch in pairs),
        "ratio_median": statistics.median(machine / torch for machine, torch in pairs),
        "ratio_min": min(machine / torch for machine, torch in pairs),
        "ratio_max": max(machine / torch for machine, torch in pairs),
    }


def steps(model: str, threads: int) -> dict[str, Step]:
    """One training step of each contender, made on first use: a process that needs one holds no other."""
    import numpy as np
    import torch
    from torch import nn

    from compiler.h2learn.compile_training import compile_training
    from compiler.h2learn.emit_sgd import Descent
    from compiler.losses import RATE_SCALE, Loss
    from frontends.zoo import build, entry
    from hwmodel.config import load_config
    from runtime.training_session import TrainingSession
    from spikec.models import load_model

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, *entry(model).input_shape), np.float32)
    labels = rng.integers(0, 10, BATCH)
    made: dict[str, Step] = {}

    def machine() -> object:
        if "machine" not in made:
            descent = Descent(learning_rate=0.001, momentum=0.9, loss_scale=64.0)
            graph = load_model(f"zoo:{model}").graph
            program = compile_training(graph, load_config("h2learn"), loss=Loss.CROSS_ENTROPY, descent=descent).program
            session = TrainingSession(program)
            made["machine"] = lambda: session.step(x, labels)
        return made["machine"]()

    def in_torch() -> object:
        if "torch" not in made:
            module = build(model).train()
            optimiser = torch.optim.SGD(module.parameters(), lr=0.001, momentum=0.9)
            given, wanted = torch.from_numpy(x), torch.from_numpy(labels)

            def step() -> None:
                optimiser.zero_grad()
                nn.functional.cross_entropy(RATE_SCALE * module(given), wanted).backward()  # type: ignore[no-untyped-call]
                optimiser.step()

            made["torch"] = step
        return made["torch"]()

    return {"machine": machine, "torch": in_torch}


def seconds(work: Step) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mb(who: str, model: str, threads: int) -> int:
    command = [sys.executable, "-m", "tests.bench.training_machine_vs_torch", "--peak-of", who, "--model", model]
    done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return int(done.stdout)


if __name__ == "__main__":
    main()
