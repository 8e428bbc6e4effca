"""Bounds of class margins side by side: how many samples each certifies, how large its margins are, what it costs.

    python -m tests.bench.certify_bounds --model zoo:digits-fc@digits --data digits --json
    python -m tests.bench.certify_bounds --model robust.spk --data mnist:FOLDER --samples 50 --eps 0.02,0.05,0.1
    python -m tests.bench.certify_bounds --model conv.spk --timesteps 3 --data mnist:FOLDER --samples 20

One process, the same network, samples, sets and threads for all; at each epsilon the contenders take turns over all
samples, the order reversed in every other round. An epsilon is half the width of a pixel's interval, under the draws
that `evaluate` makes for the sample; of a network that takes spikes, the number of flips.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.certify.input_sets import InputSet
    from compiler.ir import Graph

TOGETHER = {
    "max(S-IBP, S-CROWN)": ("S-IBP", "S-CROWN"),
    "max with hull": ("S-IBP", "S-CROWN", "hull"),
    "max with hull, backward": ("S-IBP", "S-CROWN", "hull", "hull, backward"),
}
Bound = Callable[[Sequence["InputSet"], Sequence[int]], "Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender at one epsilon.

    verified: share of all samples whose margins are all above 0. mean_margin: of the least margin of each sample.
    ms: of a sample, the median over the rounds.
    """

    contender: str
    eps: float
    verified: float
    mean_margin: float
    ms: float


def contenders(graph: Graph, slope_steps: int) -> dict[str, Bound]:
    """From the cheapest on; each alone, not the best of several."""
    from compiler.certify.interval import interval
    from compiler.certify.last_layer import margins
    from compiler.certify.linear import Intermediate, linear_margins
    from compiler.certify.relaxation import Relaxation
    from compiler.certify.slopes import Ascent

    def linear(relaxation: Relaxation, intermediate: Intermediate, ascent: Ascent | None = None) -> Bound:
        return lambda sets, labels: linear_margins(
            graph, sets, labels, relaxation=relaxation, intermediate=intermediate, ascent=ascent
        )

    def s_ibp(sets: Sequence[InputSet], labels: Sequence[int]) -> Tensor:
        import torch

        one_by_one = zip(sets, labels, strict=True)
        return torch.cat([margins(graph, interval(graph, [one]), [label]) for one, label in one_by_one])

    hull = Relaxation.HULL
    return {
        "S-IBP": s_ibp,
        "S-IBP, together": lambda sets, labels: margins(graph, interval(graph, sets), labels),
        "S-CROWN": linear(Relaxation.PAPER, Intermediate.INTERVAL),
        "hull": linear(hull, Intermediate.INTERVAL),
        "hull, backward": linear(hull, Intermediate.BACKWARD),
        "hull, backward, slopes": linear(hull, Intermediate.BACKWARD, Ascent(steps=slope_steps)),
    }


def sets_of(graph: Graph, images: Sequence[object], eps: float) -> list[InputSet]:
    """Around each sample, by what the network takes."""
    import numpy as np

    from compiler.certify.input_sets import Chain, L0Ball, LinfReal
    from compiler.codes import bernoulli_draws
    from compiler.ir import DType, Encoding
    from compiler.ir.ops import Encode

    codes = [node.op for node in graph.consumers(graph.input.name) if isinstance(node.op, Encode)]
    seeds = [op.seed or 0 for op in codes if op.kind is Encoding.BERNOULLI]
    made: list[InputSet] = []
    for n, image in enumerate(np.asarray(one, np.float32) for one in images):
        if graph.types[graph.input.name].dtype is DType.SPIKE:
            made.append(L0Ball(clean=image, k=int(eps)))
        elif seeds:
            draws = bernoulli_draws(seeds[0], graph.timesteps, (1, *image.shape), n)[:, 0]
            made.append(Chain(image=image, eps=eps, draws=draws))
        else:
            made.append(LinfReal(clean=image, eps=eps))
    return made


def measured(
    bounds: dict[str, Bound], sets: Sequence[InputSet], labels: Sequence[int], eps: float, rounds: int
) -> list[Row]:
    """The contenders' rows at one epsilon, then those of their best margins together, as verdicts are told by."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in bounds}
    found: dict[str, Tensor] = {}
    for index in range(rounds):
        for name, bound in bounds.items() if index % 2 == 0 else reversed(bounds.items()):
            print(f"  eps {eps:g}, round {index + 1} of {rounds}, {name}", file=sys.stderr, flush=True)
            started = time.perf_counter()
            found[name] = bound(sets, labels)
            seconds[name].append(time.perf_counter() - started)
    for name, parts in TOGETHER.items():
        found[name] = functools.reduce(torch.maximum, (found[part] for part in parts))
        seconds[name] = [sum(times) for times in zip(*(seconds[part] for part in parts), strict=True)]
    return [
        Row(
            contender=name,
            eps=eps,
            verified=float((margins.amin(1) > 0).double().mean()),
            mean_margin=float(margins.amin(1).mean()),
            ms=statistics.median(seconds[name]) / len(sets) * 1e3,
        )
        for name, margins in found.items()
    ]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:digits-fc@digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=20, help="the first held-out ones")
    parser.add_argument("--eps", default="0.01,0.02,0.05", help="half-widths, or flips of spikes")
    parser.add_argument("--timesteps", type=int, help="bounds of so many time steps; the network's own")
    parser.add_argument("--slope-steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def in_environment(threads: int) -> None:
    """Begin anew unless the environment says so many threads, which is read when a process starts."""
    if os.environ.get("OMP_NUM_THREADS") != str(threads):
        arguments = [sys.executable, "-m", "tests.bench.certify_bounds", *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | {"OMP_NUM_THREADS": str(threads)})


def main() -> None:
    given = parsed()
    in_environment(given.threads)

    import torch

    from compiler.passes import DropEncode, Retime
    from frontends.datasets import train_and_test
    from spikec.models import load_model

    torch.set_num_threads(given.threads)
    graph = load_model(given.model).graph
    if given.timesteps is not None:
        graph = Retime(given.timesteps)(graph)
    _, test = train_and_test(given.data)
    taken = test.take(slice(0, given.samples))
    labels = [int(label) for label in taken.y]
    epsilons = [float(word) for word in given.eps.split(",")]
    sets = {eps: sets_of(graph, list(taken.x), eps) for eps in epsilons}
    is_coded = any(one.is_binary for one in sets[epsilons[0]])
    bounds = contenders(DropEncode()(graph) if is_coded else graph, given.slope_steps)
    for bound in bounds.values():  # warms up
        bound(sets[epsilons[0]][:1], labels[:1])
    rows = [row for eps in epsilons for row in measured(bounds, sets[eps], labels, eps, given.rounds)]
    about = {
        "model": given.model,
        "data": given.data,
        "samples": len(labels),
        "set": type(sets[epsilons[0]][0]).__name__,
        "timesteps": graph.timesteps,
        "slope_steps": given.slope_steps,
        "threads": torch.get_num_threads(),
        "rounds": given.rounds,
    }
    if given.json:
        print(json.dumps(about | {"rows": [asdict(row) for row in rows]}))
        return
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for row in rows:
        print(
            f"eps {row.eps:<8g} {row.contender:24} {100 * row.verified:6.1f} % verified  "
            f"mean margin {row.mean_margin:8.4f}  {row.ms:9.2f} ms a sample"
        )


if __name__ == "__main__":
    main()
