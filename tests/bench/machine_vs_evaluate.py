"""Fast machine against f32 evaluation, same graph, samples and threads: python -m tests.bench.machine_vs_evaluate."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="zoo:cifar10")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)

    import numpy as np
    import torch

    from compiler.evaluate import evaluate
    from compiler.h2learn.compile import compile_inference
    from hwmodel.config import load_config
    from runtime.engines import fast
    from runtime.host import encode_inputs
    from runtime.machine import Machine
    from spikec.models import load_model

    torch.set_num_threads(arguments.threads)
    graph = load_model(arguments.model).graph
    program = compile_inference(graph, load_config("h2learn")).program
    shape = program.host.input_shape
    if program.host.input_has_time:
        x = (np.random.default_rng(0).random((program.timesteps, program.batch, *shape)) < 0.2).astype(np.float32)
    else:
        x = np.random.default_rng(0).random((program.batch, *shape)).astype(np.float32)
    inputs = encode_inputs(program, x, 0)
    machine = Machine(program, fast())
    given = torch.from_numpy(x)
    machine.run(inputs)
    evaluate(graph, given)
    if arguments.profile:
        import cProfile

        cProfile.runctx("machine.run(inputs)", {"machine": machine, "inputs": inputs}, {}, sort="tottime")
    pairs = [
        (seconds(lambda: machine.run(inputs)), seconds(lambda: evaluate(graph, given))) for _ in range(arguments.runs)
    ]
    print(
        json.dumps(
            {
                "model": arguments.model,
                "batch": program.batch,
                "threads": arguments.threads,
                "machine_s_median": statistics.median(a for a, _ in pairs),
                "evaluate_s_median": statistics.median(b for _, b in pairs),
                "ratio_median": statistics.median(a / b for a, b in pairs),
                "ratio_min": min(a / b for a, b in pairs),
                "ratio_max": max(a / b for a, b in pairs),
            }
        )
    )


if __name__ == "__main__":
    main()
