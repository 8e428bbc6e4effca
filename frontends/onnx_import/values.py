"""What is known of a model's values before it runs: shapes of all, contents of those that no input reaches."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from frontends.onnx_import.files import MAX_CONSTANT, MAX_ELEMENTS
from frontends.onnx_import.nodes import OnnxNode

STEP_OF_SCAN = re.compile(r"\[\d+\]")  # in the names of nodes inside scans
Compute = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Shape and element type of a value as a tensor without memory; its contents where they are constant.

    label: the name that people know the constant by.
    """

    meta: Tensor
    content: Tensor | None = None
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A node bound to the function or module that computes it from the values it still needs."""

    node: OnnxNode
    path: str
    compute: Compute | nn.Module
    operands: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One index along one axis of a value, with the axis kept (extent 1)."""

    source: str
    axis: int
    index: int


@dataclass(slots=True)
class Values:
    """All values met so far, under their unique names."""

    known: dict[str, Known] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    makers: dict[str, Step] = field(default_factory=dict)  # of values that depend on the input
    parts: dict[str, Part] = field(default_factory=dict)
    unsqueezed: dict[str, tuple[str, int]] = field(default_factory=dict)  # source and new axis
    aliases: dict[str, str] = field(default_factory=dict)  # values that are another one
    scanned: list[int] = field(default_factory=list)  # extents that a Scan ran over


@dataclass(slots=True)
class Site:
    """A node where it is bound: what is known of its inputs, and where its results go."""

    node: OnnxNode
    values: Values

    def __len__(self) -> int:
        return len(self.node.inputs)

    def given(self, index: int) -> bool:
        """Whether the input is there."""
        return index < len(self) and self.node.inputs[index] != ""

    def known(self, index: int) -> Known:
        """What is known of an input.

        Raises: CompileError if it is left out.
        """
        if not self.given(index):
            raise self.node.fail(f"lacks input {index}")
        return self.values.known[self.node.inputs[index]]

    def shape(self, index: int) -> tuple[int, ...]:
        """The extents of an input."""
        return tuple(self.known(index).meta.shape)

    def content(self, index: int, what: str) -> Tensor:
        """A constant input.

        Raises: CompileError if it depends on the network's input.
        """
        content = self.known(index).content
        if content is None:
            raise self.node.fail(f"its {what} is computed from the network's input", "only constants are expressed")
        return content

    def integers(self, index: int, what: str) -> tuple[int, ...]:
        """A constant list of integers."""
        content = self.content(index, what)
        if content.is_floating_point() or content.ndim > 1:
            raise self.node.fail(f"its {what} is no list of integers")
        return tuple(int(value) for value in content.reshape(-1).tolist())

    def axes(self, index: int, what: str = "axes") -> tuple[int, ...] | None:
        """A list of axes, an attribute or an input according to the opset; None where it is left out."""
        return self.integers(index, what) if self.given(index) else self.node.integers(what)

    def operands(self, *indices: int) -> tuple[str, ...]:
        """The names of inputs that are there."""
        return tuple(self.node.inputs[index] for index in indices if self.given(index))

    def constant(self, result: Tensor, label: str = "") -> None:
        """The node's one result is a constant."""
        name = self.node.outputs[0]
        self.values.known[name] = Known(meta=result.to("meta"), content=result, label=label or name)

    def derive(self, index: int, what: str, change: Callable[[Tensor], Tensor]) -> str:
        """A constant made from a constant input; it keeps the name that people know."""
        source = self.node.inputs[index]
        name = f"{source}//{what}"
        if name not in self.values.known:
            content = self._run(change, [self.content(index, what)])[0].contiguous()
            label = self.known(index).label
            self.values.known[name] = Known(meta=content.to("meta"), content=content, label=label)
        return name

    def alias(self, source: str = "") -> None:
        """The result is the first input, or another value."""
        self.known(0)
        self.values.aliases[self.node.outputs[0]] = source or self.node.inputs[0]

    def check(self, shape: Sequence[int], most: int = MAX_ELEMENTS) -> None:
        """Raises: CompileError if a value of the shape would be out of all proportion."""
        if math.prod(shape) > most:
            raise self.node.fail(f"gives a value of shape {tuple(shape)}", f"at most {most} elements")

    def broadcast(self, *shapes: Sequence[int]) -> tuple[int, ...]:
        """The shape of an elementwise result.

        Raises: CompileError if the shapes do not fit together, or the result is too large.
        """
        ndim = max((len(shape) for shape in shapes), default=0)
        padded = [(*(1,) * (ndim - len(shape)), *shape) for shape in shapes]
        extents = [{extent for extent in axis if extent != 1} for axis in zip(*padded, strict=True)]
        if any(len(found) > 1 for found in extents):
            raise self.node.fail(f"the shapes {[tuple(shape) for shape in shapes]} do not fit")
        result = tuple(found.pop() if found else 1 for found in extents)
        self.check(result)
        return result

    def compute(self, compute: Compute | nn.Module, operands: Sequence[str], *, path: str = "") -> None:
        """Bind the node: at once where all operands are constant, else as a step.

        Raises: CompileError if the operator does not accept its operands.
        """
        if "" in operands:
            raise self.node.fail("lacks an input")
        known = [self.values.known[name] for name in operands]
        metas = (known[0].meta,) if isinstance(compute, nn.Module) else self._run(compute, [v.meta for v in known])
        results = tuple(name for name in self.node.outputs if name)
        if len(results) > len(metas):
            raise self.node.fail(f"has {len(results)} results, {len(metas)} are expressed")
        for meta in metas:
            self.check(meta.shape)
        contents = [value.content for value in known]
        if all(content is not None for content in contents):
            largest = max((value.meta.numel() for value in known), default=0)
            for meta in metas:
                self.check(meta.shape, max(largest, MAX_CONSTANT))
            label = known[0].label if len(known) == 1 else ""
            for name, content in zip(self.node.outputs, self._run(compute, contents), strict=False):
                self.values.known[name] = Known(meta=content.to("meta"), content=content, label=label or name)
            return
        step = Step(
            node=self.node,
            path=path or self._path(),
            compute=compute,
            operands=tuple(operands),
            results=self.node.outputs,
        )
        self.values.steps.append(step)
        for name, meta in zip(self.node.outputs, metas, strict=False):
            self.values.known[name] = Known(meta=meta)
            self.values.makers[name] = step

    def _run(self, compute: Compute | nn.Module, operands: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        try:
            with torch.no_grad():
                result = compute(*operands)
        except Exception as fault:  # torch raises many kinds for operands that do not fit
            reason = str(fault).strip().split("\n")[0]
            raise self.node.fail(f"{reason or type(fault).__name__}") from fault
        return result if isinstance(result, tuple) else (result,)

    def _path(self) -> str:
        """Where the step stands in the module: the exporter's module path, else the node's name."""
        scopes = self.node.scopes()
        if scopes and scopes[-1][0]:
            return scopes[-1][0]
        return STEP_OF_SCAN.sub("", self.node.name).strip("/").replace("/", ".")
