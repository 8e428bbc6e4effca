"""Kernels of layers with spike input against torch's dense ones (oneDNN), all contenders in turn in one process.

    python -m tests.bench.spike_convolution --json
    python -m tests.bench.spike_convolution --shapes b,c --densities 0.1,0.2 --passes forward,step --clock cpu
    python -m tests.bench.spike_convolution --never-slower --json

Shapes a to d are 3x3 convolutions with padding 1 on 40 images: 64->128@32x32, 128->256@16x16, 256->256@16x16 and
512->512@8x8; others are written as 64-128@32. A row is one kernel in one pass, or a step: forward, weight gradient and
input gradient in one timed sequence, each by the way that measurements of this process choose, gradients dense as
before a batch norm, the input's gradient wanted where a random mask is open (--window). Torch's time is that of its
better layout, contiguous or channels last; its input gradient is of all neurons.

Everything is in a kernel's time: lists, layouts, tables, and by default that f32 spikes and masks are packed into
words, once for each pass and each step. In a fused network the neurons' kernels write words: --no-pack times that.
Freed memory is kept by the allocator for all contenders (`keep_buffers`), unless --malloc default; scratch memory of
the spike kernels comes from an arena. Spikes, masks and gradients are random and independent.

--never-slower: each layer with spike input of the zoo's networks (10 time steps, 2 samples, or 1 of large layers), each
pass at densities from 0 to 1: the chosen way, choice included, as a share of the dense way's time. The dense way is
given numbers and the others words; what makes either is not timed. Costs are measured anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

Record = dict[str, object]
FILE = "tests.bench.spike_convolution"
DENSITIES = "0.02,0.05,0.1,0.2,0.4"
ALL_DENSITIES = "0,0.01,0.05,0.1,0.2,0.5,1"
VARIABLES = ("OMP_NUM_THREADS", "TVM_NUM_THREADS")  # read when a process starts


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=words, default=["a", "b", "c", "d"])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--densities", type=numbers, help=f"{DENSITIES}; --never-slower {ALL_DENSITIES}")
    parser.add_argument("--window", type=float, default=0.3, help="open share of neurons")
    parser.add_argument("--kernels", type=words, default=["look-up", "events", "masked"])
    parser.add_argument(
        "--passes", type=words, default=["forward", "weight_gradient", "input_gradient", "step"], help="and which rows"
    )
    parser.add_argument("--threads", type=counts, default=[1], help="a fresh process each, as 1,2")
    parser.add_argument("--rounds", type=int, default=15, help="6 or more")
    parser.add_argument("--pack", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--malloc", choices=("kept", "default"), default="kept")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of all threads of the process")
    parser.add_argument("--never-slower", action="store_true")
    parser.add_argument("--networks", type=words, help="of the zoo; all")
    parser.add_argument("--batch", type=int, default=2, help="of --never-slower")
    parser.add_argument("--timesteps", type=int, default=10, help="of --never-slower")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.densities is None:
        given.densities = numbers(ALL_DENSITIES if given.never_slower else DENSITIES)
    return given


def words(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def counts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def about(given: argparse.Namespace) -> Record:
    """What holds for all rows of this process; sets it up."""
    import torch

    from compiler.fused.order import cpu_model
    from runtime.fused.keep_buffers import keep_buffers

    kept = given.malloc == "kept" and keep_buffers()
    names = ("rounds", "clock") if given.never_slower else ("rounds", "clock", "images", "window", "pack")
    settings = {name: getattr(given, name) for name in names}
    return {"cpu": cpu_model(), "torch": torch.__version__, "keep_buffers": kept, "load": os.getloadavg()[0]} | settings


def speed_rows(given: argparse.Namespace) -> Iterator[Record]:
    """Kernels against torch."""
    from compiler.fused.spikes.costs import Way
    from tests.bench.spike_kernels.clocks import Clock
    from tests.bench.spike_kernels.speed import Plan, geometry_of, rows
    from tests.bench.spike_kernels.trial import Setting

    plan = Plan(
        densities=given.densities, rounds=given.rounds, clock=Clock(given.clock), passes=given.passes,
        kernels=[Way(kernel) for kernel in given.kernels], setting=Setting(pack=given.pack, window=given.window),
    )  # fmt: skip
    for shape in given.shapes:
        for row in rows(shape, geometry_of(shape, given.images), plan):
            yield row.record()


def never_slower_rows(given: argparse.Namespace, about_them: Record) -> Iterator[Record]:
    """Chosen ways against the dense one; tells how many layers there are."""
    from frontends.zoo import names
    from tests.bench.spike_kernels.clocks import Clock
    from tests.bench.spike_kernels.never_slower import rows
    from tests.bench.spike_kernels.zoo_layers import zoo_layers

    found = zoo_layers(given.networks or names(), given.timesteps, given.batch)
    places = sum(len(named) for named in found.by_layer.values())
    about_them |= {"layers": len(found.by_layer), "places": places, "small_layers": found.small}
    about_them |= {"real_layers": found.real}
    with no_costs():
        for number, (layer, named) in enumerate(found.by_layer.items()):
            print(f"layer {number + 1} of {len(found.by_layer)}: {named[0]}", file=sys.stderr, flush=True)
            for row in rows(layer, named, given.densities, given.rounds, Clock(given.clock)):
                yield row.record()


@contextmanager
def no_costs() -> Iterator[None]:
    """An empty cache: costs from another day say nothing of this one."""
    from hwmodel.folders import VARIABLE

    before = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            if before is not None:
                os.environ[VARIABLE] = before


def run(given: argparse.Namespace) -> tuple[Record, list[Record]]:
    """All rows of this process's number of threads."""
    import torch

    torch.set_num_threads(given.threads[0])
    about_them = about(given)
    rows = []
    for row in never_slower_rows(given, about_them) if given.never_slower else speed_rows(given):
        print(line(row), file=sys.stderr, flush=True)
        rows.append(row)
    return about_them, rows


def run_elsewhere(given: argparse.Namespace, arguments: Sequence[str]) -> tuple[Record, list[Record]]:
    """The rows of each number of threads by a process of its own."""
    found: Record = {}
    rows: list[Record] = []
    for threads in given.threads:
        command = [sys.executable, "-m", FILE, *arguments, "--threads", str(threads), "--json"]
        variables = dict.fromkeys(VARIABLES, str(threads))
        done = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, check=True)
        answer = json.loads(done.stdout)
        rows += cast("list[Record]", answer.pop("rows"))
        found = found or answer
    return found, rows


def line(row: Record) -> str:
    """One row for people."""
    if "ratio" in row:
        return (
            f"{row['layer']:32} {row['pass']:16} density {row['density']:<5g} gradients {row['gradients']:<5g} "
            f"{row['threads']} thr  {row['way']:8} {row['ms_chosen']:9.3f} ms, dense {row['ms_dense']:9.3f} ms, "
            f"ratio {row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        )
    return (
        f"{row['shape']:10} {row['pass']:16} density {row['density']:<5g} {row['threads']} thr  {row['kernel']:26} "
        f"{row['ms_median']:8.2f} ms, torch {row['ms_best_dense']:8.2f} ms ({row['dense_layout']}), "
        f"{row['speedup']:5.2f} ({row['speedup_low']:.2f} to {row['speedup_high']:.2f}) times as fast"
    )


def summary(rows: Sequence[Record]) -> str:
    """Of `--never-slower`."""
    slower = [row for row in rows if cast("float", row["ratio_low"]) > 1]
    chosen = sum(row["way"] != "dense" for row in rows)
    return f"{len(rows)} rows, {chosen} not dense; in {len(slower)} the dense way alone is faster at 95 %"


def main() -> None:
    given, arguments = parsed(), sys.argv[1:]
    is_ready = len(given.threads) == 1 and all(os.environ.get(name) == str(given.threads[0]) for name in VARIABLES)
    about_them, rows = run(given) if is_ready else run_elsewhere(given, arguments)
    if given.json:
        print(json.dumps(about_them | {"rows": rows}))
        return
    print(", ".join(f"{name} {value}" for name, value in about_them.items()))
    for row in rows:
        print(line(row))
    if given.never_slower:
        print(summary(rows))


if __name__ == "__main__":
    main()
