"""The exported program as calls with named arguments, each with the place it came from."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind, TensorArgument

from compiler.ir import CompileError, Loc
from frontends.torch_import.adapters import Neuron
from frontends.torch_import.call import Call, call_of
from frontends.torch_import.neurons import Opaque, opaque_copy, unchanged
from frontends.torch_import.state import StateWatch
from frontends.torch_import.tables import stack_tables

__all__ = ["RECURRENCE", "STEP_CALLS", "Call", "Trace", "trace"]

RECURRENCE = "spikec.recurrence"
STEP_CALLS = ("spikec.neuron_step.default", RECURRENCE)
_NO_STATE = "neurons take the whole sequence in one call, as spikec.nn.LIF does"
_LISTS = ("chunk", "split", "unbind")
# Operators whose result may share memory with their first argument.
_ALIASING = frozenset(
    f"aten.{op}"
    for op in (
        *("alias", "contiguous", "detach", "dropout", "expand", "feature_dropout", "flatten", "reshape"),
        *("permute", "select", "slice", "squeeze", "to", "transpose", "unflatten", "unsqueeze", "view"),
        *_LISTS,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What the export of a network yields: the calls that its chosen output depends on."""

    calls: tuple[Call, ...]
    input: fx.Node
    output: fx.Node
    returned: frozenset[fx.Node]  # all outputs
    constants: Mapping[str, tuple[str, Tensor]]  # by trace node: name in the state_dict, and value
    neurons: tuple[Neuron, ...]
    example: Tensor
    all_step_calls: Mapping[int, int]  # by neuron, those that the output does not depend on among them
    restarted: frozenset[int]  # the neurons whose state the forward sets, at its start or end

    @property
    def step_calls(self) -> Mapping[int, int]:
        """How often each neuron that does one step a call, and that the output depends on, is called."""
        needed = Counter(call.integer("index") for call in self.calls if call.op in STEP_CALLS)
        return {index: self.all_step_calls.get(index, count) for index, count in needed.items()}


def trace(module: nn.Module, example: Tensor, timesteps: int, name: str, output: int | None = None) -> Trace:
    """Export the network in evaluation mode with its neurons opaque.

    output: which of several outputs, counted as tuples, lists and dicts are flattened.
    Raises: CompileError if it cannot be traced, keeps state, or has not one input and one chosen output.
    """
    opaque = opaque_copy(module, timesteps)
    program = _exported(opaque, example, name)
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes}
    constants = {}
    for spec in signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument) and spec.target:
            tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
            assert isinstance(tensor, Tensor)
            constants[spec.arg.name] = (spec.target, tensor)
    outputs = _outputs(signature, nodes)
    result = outputs[_chosen(len(signature.user_inputs), len(outputs), output, name)]
    if result is None:
        raise CompileError("the network's output is a constant", Loc(name))
    operators = (node for node in program.graph.nodes if node.op == "call_function")
    calls = stack_tables(tuple(call_of(node, opaque.network) for node in operators))
    _check_in_place(calls, constants)
    return Trace(
        calls=_live(calls, result),
        input=nodes[str(signature.user_inputs[0])],
        output=result,
        returned=frozenset(node for node in outputs if node is not None),
        constants=constants,
        neurons=opaque.neurons,
        example=example,
        restarted=opaque.restarted(),
        all_step_calls=Counter(call.integer("index") for call in calls if call.op in STEP_CALLS),
    )


def _outputs(signature: ExportGraphSignature, nodes: Mapping[str, fx.Node]) -> tuple[fx.Node | None, ...]:
    """The nodes that are returned; None for a constant."""
    arguments = [spec.arg for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    return tuple(nodes.get(arg.name) if isinstance(arg, TensorArgument) else None for arg in arguments)


def _chosen(inputs: int, outputs: int, output: int | None, name: str) -> int:
    """The index of the output that is imported."""
    if inputs != 1 or outputs == 0 or (outputs > 1 and output is None):
        raise CompileError(
            f"the network has {inputs} inputs and {outputs} outputs, must have 1 of each",
            Loc(name),
            hint=f"output=INDEX, from 0 to {outputs - 1}, chooses one; torch.stack makes one of a list"
            if inputs == 1 and outputs
            else "",
        )
    index = output or 0
    if not 0 <= index < outputs:
        raise CompileError(f"output {index} is chosen, the network has {outputs}", Loc(name))
    return index


def _exported(opaque: Opaque, example: Tensor, name: str) -> torch.export.ExportedProgram:
    watch = StateWatch(opaque.network, opaque.stand_ins)
    try:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            warnings.catch_warnings(),
            _silent_log(),
            unchanged(opaque.reachable),
        ):
            # said better by the StateWatch below
            warnings.filterwarnings("ignore", message=".*assigned during export")
            program = torch.export.export(opaque.network, (example,), strict=False)
    except CompileError:
        raise
    except Exception as fault:  # the user's forward runs here and may raise anything
        reason = str(fault).strip().split("\n")[0]
        raise CompileError(
            f"torch.export cannot trace the network: {type(fault).__name__}: {reason}", Loc(name)
        ) from fault
    if watch.written:
        raise CompileError(
            f"the network keeps tensors between calls: {', '.join(watch.written)}", Loc(name), hint=_NO_STATE
        )
    return program


@contextlib.contextmanager
def _silent_log() -> Iterator[None]:
    """The tracer logs the traceback of a faulty forward before it raises; the error below says it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def _live(calls: tuple[Call, ...], output: fx.Node) -> tuple[Call, ...]:
    """The calls that the output depends on, in their order."""
    needed = {output}
    for call in reversed(calls):
        if call.node in needed:
            needed.update(call.inputs)
    return tuple(call for call in calls if call.node in needed)


def _check_in_place(calls: tuple[Call, ...], constants: Mapping[str, tuple[str, Tensor]]) -> None:
    """Refuse an in-place call on a buffer, or one whose overwritten value, or a view of it, is read later."""
    position = {call.node: index for index, call in enumerate(calls)}
    for index, call in enumerate(calls):
        if not call.op.rpartition(".")[0].endswith("_") or call.op == "aten.detach_.default":
            continue
        overwritten = _sharing(call.node.all_input_nodes[0], calls)
        kept = sorted(constants[node.name][0] for node in overwritten if node.name in constants)
        if kept:
            raise call.fail(f"the network keeps tensors between calls: {', '.join(kept)}", _NO_STATE)
        late = {user for node in overwritten for user in node.users if position.get(user, len(calls)) > index}
        if late:
            raise call.fail("overwrites a value that is read later", "write x = x + y, which makes a new value")


def _sharing(node: fx.Node, calls: tuple[Call, ...]) -> set[fx.Node]:
    """The nodes that may share memory with a node, through views."""
    shared = {node}
    pairs = list(_views(calls))
    grown = True
    while grown:
        grown = False
        for source, view in pairs:
            if (source in shared) != (view in shared):
                shared |= {source, view}
                grown = True
    return shared


def _views(calls: tuple[Call, ...]) -> Iterator[tuple[fx.Node, fx.Node]]:
    lists = {call.node for call in calls if call.op.split(".")[1:2] in ([op] for op in _LISTS)}
    for call in calls:
        is_item = call.op == "getitem" and call.node.all_input_nodes[0] in lists
        if is_item or call.op.rpartition(".")[0] in _ALIASING:
            yield call.node.all_input_nodes[0], call.node
