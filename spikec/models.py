"""Resolves what the command line calls MODEL into a graph."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Encoding, Graph, Loc
from compiler.passes import PrependEncode
from frontends.cache import TrainedInfo, trained
from frontends.findings import Finding
from frontends.from_torch import from_torch, import_module
from frontends.recipe import Progress
from frontends.zoo import build, entry
from spikec.network_files import SUFFIXES, NirOptions, load_network_file, say_assumed

DEFAULT_TIMESTEPS = 10
_SEEDS = 1 << 63  # what the random generators take
_EXAMPLE_BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A graph, where it came from, and what its import found."""

    graph: Graph
    module: nn.Module | None = None
    trained: TrainedInfo | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What a user states about a module, as in `frontends.from_torch.from_torch`, or about an ONNX file's outputs.

    output: the number of a module's output, the name of a file's; "" where there is one.
    """

    output: str = ""
    repeat_input: bool = False


NO_STEPS = StepOptions()


def load_model(
    model: str,
    *,
    timesteps: int | None = None,
    seed: int = 0,
    input_shape: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """The graph of `zoo:NAME`, `zoo:NAME@DATA`, `FILE.spk`, `FILE.onnx`, `FILE.nir` or `module:function`.

    timesteps: 10 unless given, or as many as the events that a network is trained on; a file keeps its own.
    seed: of initial weights, training and encodings; a file keeps its own.
    input_shape: for module:function, the example's shape, as 3x32x32 (an image) or 10x3x32x32 (a sequence); for a NIR
    file that does not say it, a sample's.

    What the import of a file or module assumed is told on stderr.
    Raises: CompileError for a model that is not there or cannot be imported.
    """
    found = resolve_model(model, timesteps=timesteps, seed=seed, input_shape=input_shape, progress=progress)
    say_assumed(found.findings)
    return found


def resolve_model(
    model: str,
    *,
    timesteps: int | None = None,
    seed: int = 0,
    input_shape: str = "",
    progress: Callable[[Progress], None] | None = None,
    nir: NirOptions | None = None,
    steps: StepOptions = NO_STEPS,
) -> Model:
    """As `load_model`, telling nothing; nir is for NIR files, steps for modules.

    Raises: as `load_model`.
    """
    if timesteps is not None and timesteps < 1:
        raise CompileError(f"timesteps is {timesteps}, must be at least 1", Loc(model))
    if not 0 <= seed < _SEEDS:
        raise CompileError(f"seed is {seed}, must be from 0 to {_SEEDS - 1}", Loc(model))
    is_file = not model.startswith("zoo:") and model.endswith(SUFFIXES)
    if steps.repeat_input and (is_file or model.startswith("zoo:")):
        raise CompileError("--repeat-input is for module:function", Loc(model))
    if is_file:
        imported = load_network_file(model, timesteps=timesteps, input_shape=input_shape, output=steps.output, nir=nir)
        return Model(graph=imported.graph, findings=imported.findings)
    if nir not in (None, NirOptions()):
        raise CompileError("options of NIR files are given for another kind of model", Loc(model))
    if model.startswith("zoo:"):
        if steps.output:
            raise CompileError("an output is chosen, but the network has one", Loc(model))
        return _from_zoo(model.removeprefix("zoo:"), timesteps, seed, progress)
    if ":" in model:
        return _from_function(model, timesteps or DEFAULT_TIMESTEPS, seed, input_shape, steps)
    raise CompileError(
        f"{model!r} is no model",
        Loc("MODEL"),
        hint="known forms: zoo:NAME, zoo:NAME@DATA, FILE.spk, FILE.onnx, FILE.nir, module:function",
    )


def _from_zoo(text: str, timesteps: int | None, seed: int, progress: Callable[[Progress], None] | None) -> Model:
    name, at, data = text.partition("@")
    network = entry(name)
    info = None
    if at:
        module, info = trained(name, data, seed=seed, timesteps=timesteps, progress=progress)
        timesteps = info.timesteps
    else:
        timesteps = timesteps or DEFAULT_TIMESTEPS
        module = build(name, seed=seed, timesteps=timesteps)
    example = torch.zeros(network.example_shape(_EXAMPLE_BATCH, timesteps))
    graph = from_torch(module, example, timesteps, name=name)
    if network.coding not in (None, Encoding.DIRECT):
        graph = PrependEncode(network.coding, seed)(graph)
    return Model(graph=graph, module=module, trained=info)


def load_module(
    model: str, *, timesteps: int | None = None, seed: int = 0, input_shape: str = ""
) -> tuple[nn.Module, Tensor]:
    """The torch module of `module:function` in evaluation mode, and an example of its input.

    Raises: CompileError for a function that is not there, fails or returns something else.
    """
    loc, timesteps = Loc(model), timesteps or DEFAULT_TIMESTEPS
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
            return made.eval(), torch.zeros(_example_shape(input_shape, timesteps, loc))
        case (nn.Module() as module, Tensor() as example):
            return module.eval(), example
    raise CompileError(f"{function}() returns {_kind(made)}, not a torch.nn.Module or (module, example tensor)", loc)


def _from_function(model: str, timesteps: int, seed: int, input_shape: str, steps: StepOptions) -> Model:
    if steps.output and not steps.output.isdecimal():
        raise CompileError(f"output {steps.output!r} is no number", Loc(model), hint="outputs are counted from 0")
    module, example = load_module(model, timesteps=timesteps, seed=seed, input_shape=input_shape)
    with redirect_stdout(sys.stderr):
        imported = import_module(
            module,
            example,
            timesteps,
            name=model.partition(":")[2],
            output=int(steps.output) if steps.output else None,
            repeat_input=steps.repeat_input,
        )
    return Model(graph=imported.graph, module=module, findings=imported.findings)


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
