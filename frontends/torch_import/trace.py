"""The exported program as calls with named arguments, each with the place it came from."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument

from compiler.ir import CompileError, Loc
from frontends.torch_import.adapters import Neuron
from frontends.torch_import.neurons import opaque_copy
from frontends.torch_import.state import StateWatch

_NO_STATE = "neurons take the whole sequence in one call, as spikec.nn.LIF does"
_FRAME = re.compile(r'File "(.+)", line (\d+), in ')
_LIBRARIES = ("site-packages", "dist-packages", str(Path(torch.__file__).parent), str(Path(__file__).parent))
# Operators whose result may share memory with their first argument.
_ALIASING = frozenset(
    f"aten.{op}"
    for op in (
        *("alias", "contiguous", "detach", "dropout", "expand", "feature_dropout", "flatten", "reshape"),
        *("select", "squeeze", "to", "transpose", "unflatten", "unsqueeze", "view"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One operator call of the trace."""

    node: fx.Node
    op: str  # as "aten.conv2d.padding"
    arguments: Mapping[str, object]
    path: str  # of the innermost module
    in_layer: bool  # that module has no children
    source: Loc | None  # line of the user's code
    shape: tuple[int, ...]

    @property
    def where(self) -> Loc:
        """The best place to show a user."""
        return self.source or Loc(self.path or "forward")

    def fail(self, message: str, hint: str = "") -> CompileError:
        """The error that names the operator and its module."""
        inside = f"{self.path}: " if self.path else ""
        return CompileError(f"{inside}{self.op}: {message}", self.where, hint=hint)

    def flag(self, name: str) -> bool:
        """A truth value."""
        return bool(self.arguments[name])

    def integer(self, name: str) -> int:
        """One integer."""
        value = self.arguments[name]
        if not isinstance(value, int):
            raise self.fail(f"{name} is {value!r}, not a constant integer")
        return value

    def real(self, name: str) -> float:
        """One number."""
        value = self.arguments[name]
        if not isinstance(value, int | float):
            raise self.fail(f"{name} is {value!r}, not a constant number")
        return float(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers, or one."""
        value = self.arguments[name]
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, int) for item in values):
            raise self.fail(f"{name} is {value!r}, not constant integers")
        return tuple(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What the export of a network yields."""

    calls: tuple[Call, ...]
    input: fx.Node
    output: fx.Node
    constants: Mapping[str, tuple[str, Tensor]]  # by trace node: name in the state_dict, and value
    neurons: tuple[Neuron, ...]
    example: Tensor


def trace(module: nn.Module, example: Tensor, timesteps: int, name: str) -> Trace:
    """Export the network in evaluation mode with its neurons opaque.

    Raises: CompileError if it cannot be traced, keeps state, or has not one input and one output.
    """
    opaque, neurons = opaque_copy(module, timesteps)
    program = _exported(opaque, example, name)
    signature = program.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.output_specs) != 1:
        outputs = len(signature.output_specs)
        raise CompileError(
            f"the network has {len(signature.user_inputs)} inputs and {outputs} outputs, must have 1 of each",
            Loc(name),
        )
    nodes = {node.name: node for node in program.graph.nodes}
    constants = {}
    for spec in signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument) and spec.target:
            tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
            assert isinstance(tensor, Tensor)
            constants[spec.arg.name] = (spec.target, tensor)
    (result,) = signature.output_specs
    if isinstance(result.arg, ConstantArgument) or result.arg.name not in nodes:
        raise CompileError("the network's output is a constant", Loc(name))
    calls = tuple(_call(node, opaque) for node in program.graph.nodes if node.op == "call_function")
    _check_in_place(calls, constants)
    return Trace(
        calls=_live(calls, nodes[result.arg.name]),
        input=nodes[str(signature.user_inputs[0])],
        output=nodes[result.arg.name],
        constants=constants,
        neurons=neurons,
        example=example,
    )


def _exported(opaque: nn.Module, example: Tensor, name: str) -> torch.export.ExportedProgram:
    watch = StateWatch(opaque)
    try:
        with torch.no_grad(), warnings.catch_warnings(), _silent_log():
            # said better by the StateWatch below
            warnings.filterwarnings("ignore", message=".*assigned during export")
            program = torch.export.export(opaque, (example,), strict=False)
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
            needed.update(call.node.all_input_nodes)
    return tuple(call for call in calls if call.node in needed)


def _call(node: fx.Node, module: nn.Module) -> Call:
    path = _module_path(node)
    children = module.get_submodule(path).children() if path else module.children()
    shape = getattr(node.meta.get("val"), "shape", ())
    target = node.target
    arguments: dict[str, object] = {}
    if isinstance(target, torch._ops.OpOverload):
        op = str(target)
        for index, argument in enumerate(target._schema.arguments):
            if index < len(node.args):
                arguments[argument.name] = node.args[index]
            else:
                arguments[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    else:
        op = getattr(target, "__name__", str(target))
        arguments = {str(index): value for index, value in enumerate(node.args)}
    return Call(
        node=node,
        op=op,
        arguments=arguments,
        path=path,
        in_layer=bool(path) and not any(True for _ in children),
        source=_user_line(node),
        shape=tuple(int(size) for size in shape),
    )


def _module_path(node: fx.Node) -> str:
    """The innermost module's path; a module's second call is marked `@1` by the tracer."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+", "", stack[-1][0]) if stack else ""


def _user_line(node: fx.Node) -> Loc | None:
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not any(library in frame[0] for library in _LIBRARIES)]
    return Loc(own[-1][0], int(own[-1][1])) if own else None


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
    for call in calls:
        if call.op.rpartition(".")[0] in _ALIASING:
            yield call.node.all_input_nodes[0], call.node
