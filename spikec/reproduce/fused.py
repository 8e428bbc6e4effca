"""Figures 4.2 and 4.6 to 4.9: fused training beside vanilla torch, predicted for GPUs and measured on this CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

from compiler.fused.predict import GIB, PredictedMemory, fits, predict_memory, predict_time
from compiler.fused.predict_facts import Direction, Family, Work, training_facts
from compiler.fused.predict_stages import fused_work
from compiler.fused.predict_torch import EQUATION, MODULE, EagerNeuron, vanilla_work
from compiler.fused.stages import plan_stages
from compiler.ir import Graph
from compiler.ir.ops import BatchNorm, Lif
from compiler.passes import Retime
from hwmodel.gpus import Gpu, gpu_table
from spikec.reproduce.facts import Facts, Kind, Row
from spikec.reproduce.fused_measure import MeasuredSetting, measure
from spikec.reproduce.networks import graph_of

Progress = Callable[[str], None]

CIFAR = ("cifar-small", "cifar-medium", "cifar-large")
IMAGENET = ("resnet34", "alexnet")
TIMESTEPS = (2, 4, 6, 8, 10)
BATCH = 16  # of the text's 71.13 MB; not printed otherwise
PRINTED_GPU = "V100"  # of chapter 3; chapter 4 names none
MIB = 2**20
VALUE_BYTES = 4
MEASURED = ("cifar-small", 10, 8)  # network, time steps, batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One network as it is trained. `neurons` and `batch_norm`: whether it has any."""

    network: str
    timesteps: int
    batch_norm: bool = True
    neurons: bool = True


@dataclass(frozen=True, slots=True)
class _Ratios:
    """By case, vanilla's seconds over ours, and our peak over vanilla's."""

    speedups: Mapping[Case, float]
    memories: Mapping[Case, float]

    def of(self, values: Mapping[Case, float], network: str) -> list[float]:
        """A network's values by rising time steps."""
        return [value for case, value in values.items() if case.network == network]


def fused_rows(facts: Facts, progress: Progress, *, measured: bool = True) -> Iterator[Row]:
    """Chapter 4: predictions for V100, A100 and H100, then what was measured on this CPU."""
    yield from _characterisation(facts)
    yield from _cifar(facts)
    yield from _breakdown(facts)
    yield from _forward_pass(facts)
    yield from _imagenet(facts)
    if measured:
        yield from _measured(facts, progress)


@cache
def network_of(case: Case) -> Graph:
    """The network's graph, without what the case leaves out."""
    graph = Retime(case.timesteps)(graph_of(case.network))
    left_out = (*(() if case.batch_norm else (BatchNorm,)), *(() if case.neurons else (Lif,)))
    if not left_out:
        return graph
    source: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple(source.get(name, name) for name in node.inputs)
        if isinstance(node.op, left_out):
            source[node.name] = inputs[0]
        else:
            nodes.append(type(node)(node.name, node.op, inputs, node.loc))
    return graph.with_nodes(tuple(nodes), output=source.get(graph.output, graph.output))


@dataclass(frozen=True, slots=True)
class Step:
    """One training step in a dataflow, and its predicted memory."""

    work: Work
    memory: PredictedMemory

    @classmethod
    def of(cls, work: Work) -> Step:
        """With what cuDNN is assumed to take."""
        workspace = int(gpu_table().software.workspace.value * MIB)
        return cls(work, predict_memory(work, workspace_bytes=workspace))


@cache
def vanilla(case: Case, neuron: EagerNeuron = EQUATION) -> Step:
    """One step in eager torch."""
    return Step.of(vanilla_work(network_of(case), BATCH, neuron))


@cache
def fused(case: Case) -> Step:
    """One step in fused stages."""
    return Step.of(fused_work(plan_stages(network_of(case)), BATCH))


def predicted_seconds(step: Step, gpu: Gpu, direction: Direction | None = None) -> float:
    """Predicted time of a step or of one direction."""
    return predict_time(step.work, gpu, gpu_table().software, direction).step_s


def _device_gain(case: Case, gpu: Gpu) -> float:
    """Speedup of the device's part alone, as if both steps were CUDA graphs."""
    times = [predict_time(step.work, gpu, gpu_table().software) for step in (vanilla(case), fused(case))]
    return times[0].total_device_s / times[1].total_device_s


def _ratios(cases: tuple[Case, ...], gpu: Gpu, neuron: EagerNeuron = EQUATION) -> _Ratios:
    pairs = {case: (vanilla(case, neuron), fused(case)) for case in cases}
    return _Ratios(
        {case: predicted_seconds(one, gpu) / predicted_seconds(two, gpu) for case, (one, two) in pairs.items()},
        {case: two.memory.peak / one.memory.peak for case, (one, two) in pairs.items()},
    )


def _cases(networks: tuple[str, ...], *, batch_norm: bool = True) -> tuple[Case, ...]:
    return tuple(Case(network=name, timesteps=t, batch_norm=batch_norm) for name in networks for t in TIMESTEPS)


def _basis(gpu: Gpu | None, neuron: EagerNeuron = EQUATION) -> str:
    """What a prediction rests on."""
    software = gpu_table().software
    if gpu is None:
        where = f"with momentum, {software.workspace.value:g} MiB for cuDNN, without the CUDA context"
    else:
        host = f"host {software.launch.value:g} us a launch, {software.stage.value:g} us a fused stage"
        where = f"{gpu.name}, hwmodel/components/gpus.toml, {host}"
    return f"predicted, not measured: {where}; batch {BATCH} (not printed); vanilla: {neuron.name} by torch's operators"


def _gpus() -> Iterator[tuple[str, Gpu]]:
    yield from gpu_table().gpus.items()


def _predicted(facts: Facts, item: str, ours: float | bool, assumption: str, on: str = "") -> Row:
    variant = f"predicted, {on}" if on else "predicted"
    return facts[item].row(ours, Kind.PREDICTED, assumption, variant=variant)


def _characterisation(facts: Facts) -> Iterator[Row]:
    """Figure 4.2: what neurons and batch norms add to convolutions, in vanilla torch on the medium network."""
    graph = network_of(Case(network="cifar-medium", timesteps=1))
    values = training_facts(graph, BATCH)
    maps = sum(fact.outputs for name, fact in values.items() if fact.kind in ("lif", "input") or name == graph.output)
    text = f"network inferred from this number: s, m, x and y of neurons, input and result, batch {BATCH}"
    yield facts["figure-4.2.feature_maps_per_step"].row(4 * VALUE_BYTES * maps / MIB, Kind.CHOSEN, text)
    for name, batch_norm in (("lif", False), ("lif_bn", True)):
        memories, latencies = _overheads(batch_norm)
        for end, choose in (("low", min), ("high", max)):
            why = f"{_basis(None)}; T = 2 to 10"
            yield _predicted(facts, f"figure-4.2.memory_{name}_{end}", choose(memories), why)
            for short, gpu in _gpus():
                why = f"{_basis(gpu)}; T = 2 to 10"
                yield _predicted(facts, f"figure-4.2.latency_{name}_{end}", choose(latencies[short]), why, short)


def _overheads(batch_norm: bool) -> tuple[list[float], Mapping[str, list[float]]]:
    """Peak, and seconds by GPU, over those of the layers alone."""
    memories: list[float] = []
    latencies: dict[str, list[float]] = {short: [] for short, _ in _gpus()}
    for t in TIMESTEPS:
        case = partial(Case, network="cifar-medium", timesteps=t)
        whole, base = vanilla(case(batch_norm=batch_norm)), vanilla(case(batch_norm=False, neurons=False))
        memories.append(whole.memory.peak / base.memory.peak)
        for short, gpu in _gpus():
            latencies[short].append(predicted_seconds(whole, gpu) / predicted_seconds(base, gpu))
    return memories, latencies


def _cifar(facts: Facts) -> Iterator[Row]:
    """Figure 4.6: the best of three sizes and T = 2 to 10, and what the text says of all of them."""
    for suffix, batch_norm in (("", False), ("_bn", True)):
        cases = _cases(CIFAR, batch_norm=batch_norm)
        for neuron in (EQUATION, MODULE):
            yield from _best(facts, suffix, cases, neuron)
    for short, gpu in _gpus():
        plain = _ratios(_cases(CIFAR, batch_norm=False), gpu)
        yield from _claims(facts, short, gpu, plain, _ratios(_cases(CIFAR), gpu))


def _best(facts: Facts, suffix: str, cases: tuple[Case, ...], neuron: EagerNeuron) -> Iterator[Row]:
    name = "" if neuron is EQUATION else f"vanilla is {neuron.name}"
    for short, gpu in _gpus():
        if neuron is not EQUATION and short != PRINTED_GPU:
            continue
        ratios = _ratios(cases, gpu, neuron)
        on = ", ".join(filter(None, (short, name)))
        why = f"{_basis(gpu, neuron)}. {_spans(ratios, ratios.speedups)}"
        if short == PRINTED_GPU:
            bound = facts.number(f"figure-4.2.latency_lif{suffix}_high")
            why += f"; figure 4.2 leaves at most {bound:g} to gain unless convolutions become faster too"
        yield _predicted(facts, f"figure-4.6.speedup{suffix}", max(ratios.speedups.values()), why, on)
        if neuron is EQUATION:
            gains = {case: _device_gain(case, gpu) for case in cases}
            why = f"{_basis(gpu)}; the device alone, as if both steps were CUDA graphs. {_spans(ratios, gains)}"
            yield _predicted(facts, f"figure-4.6.speedup{suffix}", max(gains.values()), why, f"{short}, CUDA graphs")
    why = f"{_basis(None, neuron)}. {_spans(ratios, ratios.memories)}"  # memory is the same on each
    yield _predicted(facts, f"figure-4.6.memory{suffix}", min(ratios.memories.values()), why, name)


def _spans(ratios: _Ratios, values: Mapping[Case, float]) -> str:
    """Each network's values at the fewest and the most time steps."""
    ends = {name: ratios.of(values, name) for name in dict.fromkeys(case.network for case in values)}
    shown = ", ".join(f"{name} {value[0]:.2f} to {value[-1]:.2f}" for name, value in ends.items())
    return f"T = {TIMESTEPS[0]} to {TIMESTEPS[-1]}: {shown}"


STEADY = 0.1  # difference of ratios over T that passes as little variance
ALIKE = 1.2  # quotient of speedups that passes as similar


def _claims(facts: Facts, short: str, gpu: Gpu, plain: _Ratios, normed: _Ratios) -> Iterator[Row]:
    memories = [plain.of(plain.memories, name) for name in CIFAR]
    speedups = [plain.of(plain.speedups, name) for name in CIFAR]
    last = [values[-1] for values in speedups]
    pairs = zip(plain.speedups.values(), normed.speedups.values(), strict=True)
    leaner = zip(plain.memories.values(), normed.memories.values(), strict=True)
    rises = all(values[-1] > values[0] for values in speedups)
    alike = max(last) / min(last) <= ALIKE
    slower, lean = all(one > two for one, two in pairs), all(one > two for one, two in leaner)
    if short == PRINTED_GPU:
        falls = all(list(column) == sorted(column, reverse=True) for column in zip(*memories, strict=True))
        why = f"{_basis(None)}; without batch norm. {_spans(plain, plain.memories)}"
        yield _predicted(facts, "figure-4.6.claim_larger_saves_more", falls, why)
        steady = all(max(values) - min(values) <= STEADY for values in memories)
        why = f"{why}; little: at most {STEADY:g}. Parameters and cuDNN's memory do not grow with T"
        yield _predicted(facts, "figure-4.6.claim_memory_steady", steady, why)
    why = f"{_basis(gpu)}; without batch norm. {_spans(plain, plain.speedups)}"
    yield _predicted(facts, "figure-4.6.claim_speedup_rises", rises, why, short)
    yield _predicted(facts, "figure-4.6.claim_sizes_alike", alike, f"{why}; similar: within {ALIKE:g}x", short)
    why = f"{_basis(gpu)}; all sizes and T: less speedup {_word(slower)}, more saving {_word(lean)}"
    yield _predicted(facts, "figure-4.6.claim_bn_slower_leaner", slower and lean, why, short)


def _word(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _breakdown(facts: Facts) -> Iterator[Row]:
    """Figure 4.7: the medium network with batch norm, T = 10."""
    case = Case(network="cifar-medium", timesteps=10)
    steps = {"vanilla": vanilla(case), "ours": fused(case)}
    shares = {name: _map_share(step) for name, step in steps.items()}
    why = f"{_basis(None)}. Of the peak, kept values {_shown(shares)}"
    bars = facts["figure-4.7.bars"]
    for name, share in shares.items():
        yield bars.row(share, Kind.LOST, why, variant=f"predicted, {name}: kept values of the peak")
    yield _predicted(facts, "figure-4.7.claim_feature_maps", shares["vanilla"] > shares["ours"], why)
    for short, gpu in _gpus():
        busy = {name: _layer_share(step, gpu) for name, step in steps.items()}
        why = f"{_basis(gpu)}. Of the step, convolutions and matrix products {_shown(busy)}"
        yield _predicted(facts, "figure-4.7.claim_kernels", busy["vanilla"] < busy["ours"], why, short)


def _map_share(step: Step) -> float:
    return step.memory.activations / step.memory.peak


def _layer_share(step: Step, gpu: Gpu) -> float:
    time = predict_time(step.work, gpu, gpu_table().software)
    return sum(time.device_s[family] for family in (Family.CONVOLUTION, Family.MATRIX_MULTIPLY)) / time.step_s


def _shown(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def _forward_pass(facts: Facts) -> Iterator[Row]:
    """Figure 4.8: the forward pass over eager torch; TorchScript is not modelled."""
    for short, gpu in _gpus():
        gains = {}
        for name in CIFAR:
            case = Case(network=name, timesteps=10)
            one, two = (predicted_seconds(step, gpu, Direction.FORWARD) for step in (vanilla(case), fused(case)))
            gains[name] = one / two
            why = f"{_basis(gpu)}; T = 10; over eager torch, TorchScript is not modelled"
            yield facts["figure-4.8.bars"].row(
                gains[name], Kind.LOST, why, variant=f"predicted, {short}: {name}, ours over eager torch"
            )
        falls = list(gains.values()) == sorted(gains.values(), reverse=True)
        why = f"{_basis(gpu)}; T = 10; over eager torch: {_shown(gains)}"
        yield _predicted(facts, "figure-4.8.claim_small", falls, why, short)


def _imagenet(facts: Facts) -> Iterator[Row]:
    """Figure 4.9, for one GPU: what processes send each other is not modelled."""
    for name in IMAGENET:
        cases = _cases((name,))
        for short, gpu in _gpus():
            ratios = _ratios(cases, gpu)
            why = f"{_basis(gpu)}; one GPU, best T. {_spans(ratios, ratios.speedups)}; {_fit(name, gpu)}"
            yield _predicted(facts, f"figure-4.9.{name}_speedup", max(ratios.speedups.values()), why, short)
        why = f"{_basis(None)}; one process, best T. {_spans(ratios, ratios.memories)}"
        yield _predicted(facts, f"figure-4.9.{name}_memory", min(ratios.memories.values()), why)


def _fit(name: str, gpu: Gpu) -> str:
    """How the vanilla network of T = 10 fits."""
    peak = vanilla(Case(network=name, timesteps=TIMESTEPS[-1])).memory
    verb = "fits" if fits(peak, gpu) else "does not fit"
    return f"vanilla's predicted {peak.peak / GIB:.1f} GiB at T = {TIMESTEPS[-1]} {verb} into {gpu.memory.value:g} GiB"


def _measured(facts: Facts, progress: Progress) -> Iterator[Row]:
    """A small network on this CPU, each way in a process of its own; about a minute."""
    network, timesteps, batch = MEASURED
    for suffix, batch_norm in (("", False), ("_bn", True)):
        steps = []
        for is_fused in (False, True):
            progress(f"measuring {network} on the CPU, {'fused' if is_fused else 'vanilla'}")
            steps.append(
                measure(
                    MeasuredSetting(
                        network=network, batch_norm=batch_norm, timesteps=timesteps, batch=batch, fused=is_fused
                    )
                )
            )
        one, two = steps
        where = f"measured (CPU): {network}, T = {timesteps}, batch {batch}"
        why = (
            f"measured on this machine's CPU, each in a fresh process, vanilla: {MODULE.name}; fastest of a few steps "
            "varies with other load; memory: rise of the resident set over a model before its first step, for whose "
            f"ratio the model predicts {_predicted_rise(network, timesteps, batch, batch_norm):.2f} without the copies "
            "that CPU convolutions make"
        )
        for item, ours in (("speedup", one.step_s / two.step_s), ("memory", two.peak_bytes / one.peak_bytes)):
            yield facts[f"figure-4.6.{item}{suffix}"].row(ours, Kind.MEASURED, why, variant=where)


def _predicted_rise(network: str, timesteps: int, batch: int, batch_norm: bool) -> float:
    """Predicted ratio of memories beside the parameters, which are there before."""
    graph = network_of(Case(network=network, timesteps=timesteps, batch_norm=batch_norm))
    works = fused_work(plan_stages(graph), batch), vanilla_work(graph, batch, MODULE)
    peaks = [predict_memory(work, workspace_bytes=0, optimiser_copies=0) for work in works]
    ours, theirs = (memory.peak - memory.parameters for memory in peaks)
    return ours / theirs
