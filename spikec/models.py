"""Resolves what the command line calls MODEL into a graph."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compiler.ir import CompileError, Encoding, Graph, Loc
from compiler.ir.file import load_graph
from compiler.passes import PrependEncode, Retime
from frontends.cache import TrainedInfo, trained
from frontends.from_torch import from_torch
from frontends.recipe import Progress
from frontends.zoo import build, entry

DEFAULT_TIMESTEPS = 10
_EXAMPLE_BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A graph, and where it came from."""

    graph: Graph
    module: nn.Module | None = None
    trained: TrainedInfo | None = None


def load_model(
    model: str,
    *,
    timesteps: int | None = None,
    seed: int = 0,
    input_shape: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """The graph of `zoo:NAME`, `zoo:NAME@DATA`, `FILE.spk` or `module:function`.

    timesteps: 10 unless given; a file keeps its own.
    input_shape: for module:function, the example's shape, as 3x32x32 (an image) or 10x3x32x32 (a sequence).

    Raises: CompileError for a model that is not there or cannot be imported.
    """
    if timesteps is not None and timesteps < 1:
        raise CompileError(f"timesteps is {timesteps}, must be at least 1", Loc(model))
    if model.startswith("zoo:"):
        return _from_zoo(model.removeprefix("zoo:"), timesteps or DEFAULT_TIMESTEPS, seed, progress)
    if model.endswith(".spk"):
        graph = load_graph(Path(model))
        return Model(graph=Retime(timesteps)(graph) if timesteps is not None else graph)
    if model.endswith((".onnx", ".nir")):
        raise CompileError(
            "this version reads no ONNX or NIR files",
            Loc(model),
            hint="give the PyTorch network as module:function, or a .spk file",
        )
    name, _, function = model.partition(":")
    if function:
        return _from_function(name, function, timesteps or DEFAULT_TIMESTEPS, input_shape)
    raise CompileError(
        "is no model", Loc(model), hint="known forms: zoo:NAME, zoo:NAME@DATA, FILE.spk, module:function"
    )


def _from_zoo(text: str, timesteps: int, seed: int, progress: Callable[[Progress], None] | None) -> Model:
    name, _, data = text.partition("@")
    network = entry(name)
    info = None
    if data:
        module, info = trained(name, data, seed=seed, timesteps=timesteps, progress=progress)
    else:
        module = build(name, seed=seed, timesteps=timesteps)
    example = torch.zeros(network.example_shape(_EXAMPLE_BATCH, timesteps))
    graph = from_torch(module, example, timesteps, name=name)
    if network.coding not in (None, Encoding.DIRECT):
        graph = PrependEncode(network.coding, seed)(graph)
    return Model(graph=graph, module=module, trained=info)


def _from_function(name: str, function: str, timesteps: int, input_shape: str) -> Model:
    loc = Loc(f"{name}:{function}")
    sys.path.insert(0, os.getcwd())
    try:
        home = importlib.import_module(name)
    except ImportError as fault:
        raise CompileError(f"cannot import {name}: {fault}", loc) from fault
    finally:
        sys.path.pop(0)
    make = getattr(home, function, None)
    if not callable(make):
        raise CompileError(f"{name} has no function {function!r}", loc)
    made = make()
    module, example = made if isinstance(made, tuple) else (made, None)
    if not isinstance(module, nn.Module):
        raise CompileError(f"{function}() returns {type(module).__name__}, not a torch.nn.Module", loc)
    if example is None:
        example = torch.zeros(_example_shape(input_shape, timesteps, loc))
    return Model(graph=from_torch(module.eval(), example, timesteps, name=function), module=module)


def _example_shape(text: str, timesteps: int, loc: Loc) -> tuple[int, ...]:
    hint = "give --input-shape CxHxW (an image) or TxCxHxW (a sequence), or return (module, example)"
    if not text:
        raise CompileError("the shape of the network's input is not known", loc, hint=hint)
    try:
        shape = tuple(int(word) for word in text.split("x"))
    except ValueError as fault:
        raise CompileError(f"input shape {text!r} is not of the form 3x32x32", loc, hint=hint) from fault
    if min(shape) < 1:
        raise CompileError(f"input shape {text!r} has an extent below 1", loc, hint=hint)
    if len(shape) == 4:
        if shape[0] != timesteps:
            raise CompileError(f"input shape {text!r} has {shape[0]} steps, --timesteps is {timesteps}", loc)
        return (shape[0], _EXAMPLE_BATCH, *shape[1:])
    return (_EXAMPLE_BATCH, *shape)
