"""What a training program keeps of the forward pass is what the differentiated graph says, in the same formats."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.differentiate import Format as KeptFormat
from compiler.differentiate import KeepCompressed, differentiate
from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.layers import NetworkLayer
from compiler.ir import Graph
from compiler.ir.ops import Conv2d, MaxPool2d, Readout
from compiler.losses import Loss
from hwmodel.config import H2LearnConfig
from hwmodel.isa import Load
from hwmodel.program import Format, Phase, Program, Role
from tests.compiler.h2learn.training_plans import NETWORKS, configs, stages_of
from tests.hwmodel.training_programs import made_if_trainable
from tests.strategies import RandomNetwork

FORWARD_ROLES = (Role.INPUT, Role.ACTIVATION, Role.OUTPUT, Role.KEPT)
BITS = {KeptFormat.BIT: Format.S1, KeptFormat.DENSE: Format.FP16, KeptFormat.COMPRESSED: Format.MCOMP}


def read_backwards(program: Program) -> dict[str, Format]:
    """The values of the forward pass that the backward pass loads, with their formats in memory."""
    indices = {
        instruction.tensor
        for stream in program.phases[Phase.BACKWARD].values()
        for instruction in stream
        if isinstance(instruction, Load)
    }
    tensors = [program.tensors[index] for index in indices]
    return {(t.view_of or t.name): t.format for t in tensors if t.role in FORWARD_ROLES}


def values_of(graph: Graph, layers: tuple[NetworkLayer, ...]) -> dict[str, str]:
    """By tensor of a program, the value of the differentiated graph that it holds."""
    names = {"input": layers[0].source}
    for number, layer in enumerate(layers):
        names[f"{number}.{layer.output}"] = layer.output
        for stage, node in enumerate((layer.neuron1, layer.neuron2)):
            if node is not None:
                names[f"{number}.mask{stage}"] = f"{node.name}.mask"
                names[f"{number}.membrane{stage}"] = f"{node.name}.membrane"
        if layer.neuron1 is not None:
            names[f"{number}.spikes0"] = layer.neuron1.name
        if layer.pool1 is not None:
            names[f"{number}.winners"] = f"{layer.pool1.name}.winners"
    return names


def wanted(graph: Graph, layers: tuple[NetworkLayer, ...]) -> dict[str, Format]:
    """What the reference keeps, in the program's terms.

    Three differences of form. The host reads the scores. A maximum behind a neuron is found again from its spikes, any
    other is kept as a bit for each input. Membranes of linear layers are not compressed (section 3.2.1).
    """
    linear = {
        node.name
        for layer in layers
        if layer.synapse is None or not isinstance(layer.synapse.op, Conv2d)
        for node in layer.nodes
    }
    found = {}
    for value in KeepCompressed()(differentiate(graph, Loss.MSE)).kept:
        name, _, part = value.name.partition(".")
        node = next(node for node in graph.nodes if node.name == name)
        if isinstance(node.op, Readout):
            continue
        if isinstance(node.op, MaxPool2d) and part == "winners":
            is_behind_neuron = any(layer.pool2 is not None and layer.pool2.name == name for layer in layers)
            found[node.inputs[0] if is_behind_neuron else value.name] = Format.S1
        elif part == "membrane":
            found[value.name] = Format.FP16 if name in linear else BITS[value.format]
        else:
            found[value.name] = BITS[value.format]
    return found


def _without_encoding(found: dict[str, Format], graph: Graph, source: str) -> Iterator[tuple[str, Format]]:
    """The input by the name of the graph's input: a direct encoding shows it, the host makes every other code."""
    for name, form in found.items():
        yield (graph.input.name if name in (source, graph.input.name) else name), form


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(NETWORKS, st.sampled_from(configs()), st.integers(1, 3))
def test_the_backward_pass_reads_what_the_differentiated_graph_keeps(
    network: RandomNetwork, config: H2LearnConfig, batch: int
) -> None:
    stages = made_if_trainable(lambda: stages_of(network.graph, config, batch))
    program = compile_training(network.graph, config, loss=Loss.MSE, batch=batch, show=lambda _: None).program
    layers = tuple(plan.layer for plan in stages.plan.layers)
    names = values_of(stages.graph, layers)
    got = {names[name]: form for name, form in read_backwards(program).items()}
    source = layers[0].source
    want = dict(_without_encoding(wanted(stages.graph, layers), stages.graph, source))
    assert dict(_without_encoding(got, stages.graph, source)) == want


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(NETWORKS, st.sampled_from(configs()), st.integers(1, 3))
def test_all_that_is_kept_is_read(network: RandomNetwork, config: H2LearnConfig, batch: int) -> None:
    program = made_if_trainable(
        lambda: compile_training(network.graph, config, loss=Loss.MSE, batch=batch, show=lambda _: None)
    ).program
    lowest = min(trained.layer for trained in program.training.parameters) if program.training else 0
    kept = {t.name for t in program.tensors if t.role is Role.KEPT and not t.view_of and t.layer >= lowest}
    assert kept <= set(read_backwards(program))
