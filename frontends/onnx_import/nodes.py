"""ONNX nodes as the rules see them: names resolved, attributes with checked types, the place for errors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compiler.ir import CompileError, Loc

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_QUOTED = re.compile(r"'([^']*)'")
# the types of AttributeProto
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS = 1, 2, 3, 4, 5, 6, 7


def shortest(value: float) -> float:
    """The number with the fewest digits among those of one float32: what was written before it was stored."""
    return float(str(np.float32(value)))


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node; its inputs and outputs are names of values that are unique in the whole model ("": left out)."""

    proto: NodeProto
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    file: str

    @property
    def op(self) -> str:
        """The operator, with its domain unless it is ONNX's own."""
        domain = "" if self.proto.domain in ("", "ai.onnx") else f"{self.proto.domain}::"
        return f"{domain}{self.proto.op_type}"

    def fail(self, message: str, hint: str = "") -> CompileError:
        """The error that names this node."""
        return CompileError(f"{self.name}: {self.op}: {message}", Loc(self.file), hint=hint)

    def has(self, name: str) -> bool:
        """Whether the attribute is given."""
        return any(attribute.name == name for attribute in self.proto.attribute)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        given = self._attribute(name, _INT)
        return default if given is None else int(given.i)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, None where it is left out."""
        given = self._attribute(name, _INTS)
        return None if given is None else tuple(given.ints)

    def real(self, name: str, default: float) -> float:
        """A number."""
        given = self._attribute(name, _FLOAT)
        return default if given is None else float(given.f)

    def reals(self, name: str) -> tuple[float, ...] | None:
        """A list of numbers, None where it is left out."""
        given = self._attribute(name, _FLOATS)
        return None if given is None else tuple(given.floats)

    def text(self, name: str, default: str) -> str:
        """A string."""
        given = self._attribute(name, _STRING)
        return default if given is None else given.s.decode("utf-8", "replace")

    def tensor(self, name: str) -> AttributeProto | None:
        """A tensor, in its attribute; None where it is left out."""
        return self._attribute(name, _TENSOR)

    def graph(self, name: str) -> GraphProto:
        """A body.

        Raises: CompileError if it is left out.
        """
        given = self._attribute(name, _GRAPH)
        if given is None:
            raise self.fail(f"lacks its {name}")
        return given.g

    def scopes(self) -> tuple[tuple[str, str], ...]:
        """Paths and classes of the modules that PyTorch's exporter says the node stood in, outermost first."""
        entries = {entry.key: entry.value for entry in self.proto.metadata_props}
        paths = _QUOTED.findall(entries.get(_SCOPES, ""))
        classes = _QUOTED.findall(entries.get(_CLASSES, ""))
        return tuple(zip(paths, classes, strict=False))[:-1]  # the last is the operator itself

    def _attribute(self, name: str, kind: int) -> AttributeProto | None:
        found = [attribute for attribute in self.proto.attribute if attribute.name == name]
        if not found:
            return None
        if len(found) > 1 or found[0].type != kind or found[0].ref_attr_name:
            raise self.fail(f"attribute {name} is given twice or is of another type")
        return found[0]
