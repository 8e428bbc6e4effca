"""A bound model as a torch module: one submodule for each node, named as the exporter named it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn

from frontends.onnx_import.values import Compute, Step, Values

_MAX_DEPTH = 32  # of a place; of longer ones the end


class OnnxStep(nn.Module):
    """One node."""

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, *operands: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The node's result."""
        return self.compute(*operands)


class OnnxNetwork(nn.Module):
    """The steps that an output needs, in order.

    Constants are buffers, each once, under the names that they have in the file where those are free.

    Shapes: as the model's input and output.
    """

    def __init__(self, values: Values, source: str, output: str) -> None:
        super().__init__()
        self._source, self._output = source, output
        self._steps: list[tuple[str, Step]] = []
        self._constants: dict[str, str] = {}  # places of constants by name of value
        steps = live_steps(values, [output])
        for step in steps:
            module = step.compute if isinstance(step.compute, nn.Module) else OnnxStep(step.compute)
            self._steps.append((_place(self, step.path, module), step))
        for name in dict.fromkeys(name for step in steps for name in step.operands):
            known = values.known[name]
            if known.content is not None:
                self._constants[name] = _place(self, known.label, known.content)
        self._last_use = {name: index for index, step in enumerate(steps) for name in step.operands}

    def forward(self, x: Tensor) -> Tensor:
        """The output for one input."""
        values = {self._source: x}
        for index, (path, step) in enumerate(self._steps):
            operands = [values[name] if name in values else self._constant(name) for name in step.operands]
            results = self.get_submodule(path)(*operands)
            values.update(zip(step.results, results if isinstance(results, tuple) else (results,), strict=False))
            for name in set(step.operands):
                if self._last_use[name] == index and name != self._output:
                    values.pop(name, None)
        return values[self._output]

    def _constant(self, name: str) -> Tensor:
        return self.get_buffer(self._constants[name])


def live_steps(values: Values, outputs: Sequence[str]) -> list[Step]:
    """The steps on which the outputs depend."""
    needed, live = set(outputs), []
    for step in reversed(values.steps):
        if needed.intersection(step.results):
            needed.update(step.operands)
            live.append(step)
    return live[::-1]


def _place(root: nn.Module, path: str, what: nn.Module | Tensor) -> str:
    """Put a module or constant where its path says; taken names get a number."""
    *folders, leaf = (re.sub(r"\W", "_", part, flags=re.ASCII) or "_" for part in path.split(".")[-_MAX_DEPTH:])
    holder, places = root, []
    for folder in folders:
        name = folder
        while not isinstance(holder._modules.get(name), nn.Module) and hasattr(holder, name):
            name += "_"
        if name not in holder._modules:
            holder.add_module(name, nn.Module())
        holder = holder.get_submodule(name)
        places.append(name)
    name, count = leaf, 1
    while hasattr(holder, name):
        count += 1
        name = f"{leaf}_{count}"
    if isinstance(what, nn.Module):
        holder.add_module(name, what)
    else:
        holder.register_buffer(name, what)
    return ".".join((*places, name))
