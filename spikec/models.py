"""Resolves what the command line calls MODEL into a graph."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Encoding, Graph, Loc
from compiler.ir.file import load_graph
from compiler.passes import PrependEncode, Retime
from frontends.cache import TrainedInfo, trained
from frontends.from_torch import from_torch
from frontends.recipe import Progress
from frontends.zoo import build, entry

DEFAULT_TIMESTEPS = 10
_SEEDS = 1 << 63  # what the random generators take
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
    seed: of initial weights, training and encodings; a file keeps its own.
    input_shape: for module:function, the example's shape, as 3x32x32 (an image) or 10x3x32x32 (a sequence).

    Raises: CompileError for a model that is not there or cannot be imported.
    """
    if timesteps is not None and timesteps < 1:
        raise CompileError(f"timesteps is {timesteps}, must be at least 1", Loc(model))
    if not 0 <= seed < _SEEDS:
        raise CompileError(f"seed is {seed}, must be from 0 to {_SEEDS - 1}", Loc(model))
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
    if ":" in model:
        return _from_function(model, timesteps or DEFAULT_TIMESTEPS, seed, input_shape)
    raise CompileError(
        f"{model!r} is no model", Loc("MODEL"), hint="known forms: zoo:NAME, zoo:NAME@DATA, FILE.spk, module:function"
    )


def _from_zoo(text: str, timesteps: int, seed: int, progress: Callable[[Progress], None] | None) -> Model:
    name, at, data = text.partition("@")
    network = entry(name)
    info = None
    if at:
        module, info = trained(name, data, seed=seed, timesteps=timesteps, progress=progress)
    else:
        module = build(name, seed=seed, timesteps=timesteps)
    example = torch.zeros(network.example_shape(_EXAMPLE_BATCH, timesteps))
    graph = from_torch(module, example, timesteps, name=name)
    if network.coding not in (None, Encoding.DIRECT):
        graph = PrependEncode(network.coding, seed)(graph)
    return Model(graph=graph, module=module, trained=info)


def _from_function(model: str, timesteps: int, seed: int, input_shape: str) -> Model:
    loc = Loc(model)
    name, _, function = model.partition(":")
    if name.endswith(".py") or not all(word.isidentifier() for word in (*name.split("."), function)):
        raise CompileError(
            "is not of the form module:function", loc, hint="a module goes by its dotted name, as nets.small:network"
        )
    with _users_code(f"cannot import {name}", loc):
        home = importlib.import_module(name)
    make = getattr(home, function, None)
    if not callable(make):
        raise CompileError(f"{name} has no function {function!r}", loc)
    with _users_code(f"{function}() fails", loc), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = make()
    match made:
        case nn.Module():
            module, example = made, torch.zeros(_example_shape(input_shape, timesteps, loc))
        case (nn.Module() as module, Tensor() as example):
            pass
        case _:
            raise CompileError(
                f"{function}() returns {_kind(made)}, not a torch.nn.Module or (module, example tensor)", loc
            )
    with redirect_stdout(sys.stderr):
        return Model(graph=from_torch(module.eval(), example, timesteps, name=function), module=module)


@contextmanager
def _users_code(what: str, loc: Loc) -> Iterator[None]:
    """The user's own code runs in the block: it imports from the working folder, and prints to stderr.

    Raises: CompileError in the place of any exception, with the user's line.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except CompileError:
        raise
    except Exception as fault:
        reason = str(fault).strip().split("\n")[0]
        kind = "" if isinstance(fault, ImportError) else f"{type(fault).__name__}: "
        raise CompileError(f"{what}: {kind}{reason}", _users_line(fault, folder) or loc) from fault
    finally:
        sys.path.remove(folder)


def _users_line(fault: Exception, folder: str) -> Loc | None:
    """The innermost line of a file in the folder; none for what is raised elsewhere."""
    if isinstance(fault, SyntaxError) and fault.filename:
        return Loc(fault.filename, fault.lineno or 0)
    frames = traceback.extract_tb(fault.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(folder + os.sep) and frame.filename != __file__]
    return Loc(own[-1].filename, own[-1].lineno or 0) if own else None


def _kind(made: object) -> str:
    return f"({', '.join(map(_kind, made))})" if isinstance(made, tuple) else type(made).__name__


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
