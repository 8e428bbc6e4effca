"""One operator call of a traced network, with named arguments and the place that it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import fx, nn

from compiler.ir import CompileError, Loc

_FRAME = re.compile(r'File "(.+)", line (\d+), in ')
_LIBRARIES = (
    *("site-packages", "dist-packages", str(Path(torch.__file__).parent)),
    *(str(Path(__file__).parent), str(Path(__file__).parents[1] / "onnx_import")),
)

_UNKNOWN = -1  # an extent that depends on values


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

    @property
    def inputs(self) -> Iterator[fx.Node]:
        """The nodes that it takes."""
        for argument in self.arguments.values():
            for item in argument if isinstance(argument, list | tuple) else [argument]:
                if isinstance(item, fx.Node):
                    yield item

    def outside(self) -> Call:
        """The same call as one of the network's own forward: for nodes that no module stands for."""
        return replace(self, path="", in_layer=False)

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


def call_of(node: fx.Node, module: nn.Module) -> Call:
    """The call that a node of the program is."""
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
        shape=tuple(size if isinstance(size, int) else _UNKNOWN for size in shape),
    )


def _module_path(node: fx.Node) -> str:
    """The innermost module's path; a module's second call is marked `@1` by the tracer."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+", "", stack[-1][0]) if stack else ""


def _user_line(node: fx.Node) -> Loc | None:
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not any(library in frame[0] for library in _LIBRARIES)]
    return Loc(own[-1][0], int(own[-1][1])) if own else None
