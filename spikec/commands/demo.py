"""`spikec demo`: from a PyTorch network to a program that runs on the machine, on real digits."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from compiler.evaluate import evaluate
from compiler.h2learn.compile import Compiled, compile_inference
from compiler.ir import Graph
from compiler.ir.ops import Lif
from hwmodel.config import load_config
from runtime.session import RunResult, engines_for, run_program
from runtime.timing.step import step_cost
from runtime.traces import agreement, same_bits
from spikec.commands.samples import HeldOut, held_out
from spikec.commands.talk import print_json, print_table, progress_bar
from spikec.models import Model, load_model

NETWORK, DATA = "digits-conv", "digits"
CHECK_FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What the demo measured; fractions, cycles of the accelerator's clock, seconds of this machine."""

    network: str
    samples: int
    accuracy_torch: float
    accuracy_machine: float
    predictions_agree: float
    spikes_agree: float
    bit_exact_vs_golden: bool
    golden_samples: int
    cycles_per_sample: float
    latency_cycles_batch1: float
    instructions: int
    timesteps: int
    sub_batch: int
    trained_now: bool
    seconds_training: float
    seconds_machine: float
    seconds: float


def run_demo(*, as_json: bool, seed: int, golden_samples: int) -> int:
    """Train (or take from the cache), import, compile, execute, compare; exit code 1 if the bits differ."""
    start = time.perf_counter()
    with progress_bar("loading the network") as bar:
        model = load_model(f"zoo:{NETWORK}@{DATA}", seed=seed, progress=bar.training)
    config = load_config("h2learn")
    compiled = compile_inference(model.graph, config)
    inputs = held_out(DATA, 0)
    golden_samples = min(golden_samples, len(inputs.x))
    fast = engines_for(compiled.program)
    with progress_bar("running on the machine") as bar:
        machine = run_program(compiled.program, inputs.x, fast, trace=True, progress=bar.samples)
    exact = _same_as_golden(compiled, inputs, golden_samples)
    report = _report(model, compiled, inputs, machine, exact=exact, golden_samples=golden_samples, start=start)
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)
    return 0 if exact else CHECK_FAILED


def _same_as_golden(compiled: Compiled, inputs: HeldOut, samples: int) -> bool:
    """Whether the fast and the golden engine agree in every spike and membrane bit."""
    x = inputs.x[:samples]
    with progress_bar("running on the golden engine") as bar:
        golden = run_program(
            compiled.program,
            x,
            engines_for(compiled.program, use_golden=True),
            trace=True,
            progress=bar.samples,
        )
    fast = run_program(compiled.program, x, engines_for(compiled.program), trace=True)
    assert golden.traces is not None
    assert fast.traces is not None
    return same_bits(golden.traces, fast.traces)


def _report(
    model: Model,
    compiled: Compiled,
    inputs: HeldOut,
    machine: RunResult,
    *,
    exact: bool,
    golden_samples: int,
    start: float,
) -> DemoReport:
    assert model.module is not None
    assert model.trained is not None
    assert inputs.labels is not None
    with torch.no_grad():
        scores = model.module(torch.from_numpy(inputs.x)).numpy()
    torch_classes, classes = scores.argmax(1), machine.outputs.argmax(1)
    program = compiled.program
    single = compile_inference(model.graph, program.config, batch=1).program
    return DemoReport(
        network=NETWORK,
        samples=len(classes),
        accuracy_torch=float(np.mean(torch_classes == inputs.labels)),
        accuracy_machine=float(np.mean(classes == inputs.labels)),
        predictions_agree=float(np.mean(torch_classes == classes)),
        spikes_agree=spikes_agree(model.graph, inputs, machine),
        bit_exact_vs_golden=exact,
        golden_samples=golden_samples,
        cycles_per_sample=step_cost(program).cycles_per_sample,
        latency_cycles_batch1=step_cost(single).cycles,
        instructions=program.instructions,
        timesteps=program.timesteps,
        sub_batch=program.batch,
        trained_now=not model.trained.from_cache,
        seconds_training=0.0 if model.trained.from_cache else model.trained.seconds,
        seconds_machine=machine.seconds,
        seconds=time.perf_counter() - start,
    )


def spikes_agree(graph: Graph, inputs: HeldOut, machine: RunResult) -> float:
    """Fraction of spikes, over all layers, steps and samples, that equal the f32 reference's."""
    assert machine.traces is not None
    neurons = [node.name for node in graph.nodes if isinstance(node.op, Lif)]
    reference = evaluate(graph, torch.from_numpy(inputs.x), traces=neurons).traces
    spikes = {
        name: reference[name].numpy().astype(np.uint8).reshape(machine.traces.spikes[name].shape) for name in neurons
    }
    equal, compared = agreement(machine.traces, spikes)
    return equal / compared


def _show(report: DemoReport) -> None:
    trained = f"trained in {report.seconds_training:.0f} s" if report.trained_now else "from the cache"
    exact = "yes" if report.bit_exact_vs_golden else "NO"
    print_table(
        f"{report.network} ({trained}) on H2Learn, {report.samples} held-out digits",
        [
            ("accuracy in PyTorch, f32", f"{report.accuracy_torch:.4f}"),
            ("accuracy on the machine, FP16", f"{report.accuracy_machine:.4f}"),
            ("predictions that agree", f"{report.predictions_agree:.4f}"),
            ("spikes that agree, all layers and steps", f"{report.spikes_agree:.6f}"),
            (f"fast engine equals golden engine, {report.golden_samples} samples", exact),
            (f"cycles per sample, sub-batch {report.sub_batch}", f"{report.cycles_per_sample:,.0f}"),
            ("latency of one sample alone", f"{report.latency_cycles_batch1:,.0f} cycles"),
            ("instructions of the program", f"{report.instructions:,}"),
            ("seconds in all", f"{report.seconds:.1f}"),
        ],
    )
