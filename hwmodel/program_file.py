"""Reads and writes `.h2l` files: safetensors with streams and constants, everything else as JSON metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hwmodel.assembler import decode, encode
from hwmodel.config import config_from_mapping
from hwmodel.errors import CompileError, Loc
from hwmodel.header_fields import choice, count, flag, integer, only_fields, pair, text
from hwmodel.isa import Instruction, Queue
from hwmodel.program import F16, Format, Host, Layer, NeuronFacts, Phase, Program, Role, Tensor
from hwmodel.training_header import TRAINING_PHASES, check_training, training_from, training_header
from hwmodel.whole_files import write_whole

FORMAT_VERSION = "3"
_KEY = "spikec.h2l"  # the only key: safetensors writes several in random order
_STREAM = "stream."
_CONSTANT = "constant."


def save_program(program: Program, path: Path) -> None:
    """Write a program beside its final place, then rename; the same program gives the same bytes.

    Raises: CompileError if the file cannot be written; nothing is left behind.
    """
    header = {
        "version": FORMAT_VERSION,
        "name": program.name,
        "timesteps": program.timesteps,
        "batch": program.batch,
        "config": program.config.as_mapping(),
        "tensors": [asdict(tensor) for tensor in program.tensors],
        "layers": [asdict(layer) for layer in program.layers],
        "host": asdict(program.host),
        "meta": dict(program.meta),
        "training": training_header(program.training) if program.training is not None else None,
    }
    arrays: dict[str, npt.NDArray[np.generic]] = {
        f"{_STREAM}{phase}.{queue}": encode(stream)
        for phase, streams in program.phases.items()
        for queue, stream in streams.items()
    }
    arrays |= {f"{_CONSTANT}{name}": np.ascontiguousarray(array) for name, array in program.constants.items()}
    content = save(arrays, {_KEY: json.dumps(header, sort_keys=True)})
    write_whole(path, content, example="net.h2l")


def load_program(path: Path) -> Program:
    """Read a program.

    Raises: CompileError for a file that is missing, truncated, foreign, of another version, or inconsistent.
    """
    loc = Loc(str(path))
    try:
        if path.is_dir():
            raise CompileError("is a folder, not a program", loc, hint="name the .h2l file inside it")
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise CompileError("is no H2Learn program", loc, hint="make one with: spikec compile MODEL -o OUT.h2l")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as fault:
        reason = fault.strerror or str(fault).removesuffix(f": {path}")
        raise CompileError(f"cannot read the program: {reason}", loc) from fault
    except (SafetensorError, ValueError, TypeError, AttributeError) as fault:  # the last two: element types
        hint = "it is cut off, damaged or of another kind; compile the network again"
        raise CompileError(f"is not an .h2l file: {fault}", loc, hint=hint) from fault
    try:
        header = json.loads(metadata[_KEY])
        if header["version"] != FORMAT_VERSION:
            found = f"format version {header['version']!r}, this spikec reads {FORMAT_VERSION}"
            raise CompileError(found, loc, hint="compile it again")
        return _program(header, arrays, loc)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as fault:
        raise CompileError(f"the program's header is inconsistent: {fault!r}", loc) from fault


def _program(header: Mapping[str, object], arrays: Mapping[str, npt.NDArray[np.generic]], loc: Loc) -> Program:
    phases: dict[Phase, dict[Queue, tuple[Instruction, ...]]] = {}
    for name, array in arrays.items():
        if name.startswith(_STREAM):
            phase, _, queue = name.removeprefix(_STREAM).partition(".")
            phases.setdefault(Phase(phase), {})[Queue(queue)] = decode(cast(npt.NDArray[np.uint8], array), loc)
    training = header["training"]
    constants: dict[str, F16] = {}
    for name, array in arrays.items():
        if name.startswith(_CONSTANT):
            if array.dtype != np.float16:
                raise CompileError(f"{name} is {array.dtype}, must be FP16", loc)
            constants[name.removeprefix(_CONSTANT)] = cast(F16, array)
        elif not name.startswith(_STREAM):
            raise CompileError(f"{name!r} is neither a stream nor a constant", loc)
    program = Program(
        name=text(header["name"]),
        config=config_from_mapping(cast(Mapping[str, object], header["config"]), loc),
        timesteps=count(header["timesteps"]),
        batch=count(header["batch"]),
        streams=phases.get(Phase.RUN, {}),
        tensors=tuple(_tensor(item) for item in cast(list[dict[str, object]], header["tensors"])),
        constants=constants,
        layers=tuple(_layer(item) for item in cast(list[dict[str, object]], header["layers"])),
        host=_host(cast(dict[str, object], header["host"])),
        meta={text(k): text(v) for k, v in cast(dict[str, object], header["meta"]).items()},
        training=None if training is None else training_from(cast(dict[str, object], training), phases),
    )
    wanted = (Phase.RUN,) if training is None else TRAINING_PHASES
    if stray := sorted(set(phases) - set(wanted)):
        raise CompileError(f"has streams of phase {stray[0]}, which this kind of program does not have", loc)
    _check_tables(program, loc)
    return program


def _check_tables(program: Program, loc: Loc) -> None:
    roles = [tensor.role for tensor in program.tensors if not tensor.view_of]
    if roles.count(Role.INPUT) != 1 or roles.count(Role.OUTPUT) != 1:
        raise CompileError("the program needs one input and one output tensor", loc)
    named = {tensor.name: tensor for tensor in program.tensors if not tensor.view_of}
    if len({tensor.name for tensor in program.tensors}) != len(program.tensors):
        raise CompileError("two tensors have the same name", loc)
    constant_roles = {Role.WEIGHT, Role.NEURON}
    expected = {name for name, tensor in named.items() if tensor.role in constant_roles}
    if expected != set(program.constants):
        raise CompileError(f"constants {sorted(expected ^ set(program.constants))} do not match the table", loc)
    for name, array in program.constants.items():
        if array.size != prod(named[name].shape):
            raise CompileError(f"constant {name} has {array.size} values, not {named[name].shape}", loc)
        if not np.isfinite(array).all():
            raise CompileError(f"constant {name} holds a NaN or infinite value", loc)
    _check_host(program, loc)
    if program.training is not None:
        check_training(program, loc)
    for streams in program.phases.values():
        for queue, stream in streams.items():
            bad = next((i for i in stream if i.layer >= len(program.layers)), None)
            if bad is not None:
                raise CompileError(f"{queue}: instruction of layer {bad.layer}, there are {len(program.layers)}", loc)


def _check_host(program: Program, loc: Loc) -> None:
    """The tensors that the host writes and reads must be what it makes and expects."""
    host, source, output = program.host, program.tensors[program.input_index], program.tensors[program.output_index]
    if len(host.input_shape) not in (1, 3):
        raise CompileError(f"the host's input {host.input_shape} is neither (C,) nor (C, H, W)", loc)
    channels, height, width = (*host.input_shape, 1, 1)[:3]
    steps = {1, program.timesteps} if host.encoding == "direct" else {program.timesteps}
    if source.shape[1:] != (program.batch, height, width, channels) or source.shape[0] not in steps:
        raise CompileError(f"the host's input {host.input_shape} does not fit tensor {source.shape}", loc)
    if output.shape[:2] != (program.timesteps, program.batch):
        raise CompileError(f"the output tensor {output.shape} does not hold all steps and samples", loc)


def _tensor(item: Mapping[str, object]) -> Tensor:
    only_fields(Tensor, item)
    shape = tuple(count(size) for size in cast(list[object], item["shape"]))
    if len(shape) != 5:  # t, n, y, x, c
        raise ValueError(f"tensor shape {shape}")
    return Tensor(
        name=text(item["name"]),
        memory=integer(item["memory"]),
        mirrored=flag(item["mirrored"]),
        address=integer(item["address"]),
        shape=shape,
        format=Format(text(item["format"])),
        role=Role(text(item["role"])),
        layer=integer(item["layer"]),
        view_of=text(item["view_of"]),
    )


def _layer(item: Mapping[str, object]) -> Layer:
    only_fields(Layer, item)
    neurons = []
    for part in cast(list[dict[str, object]], item["neurons"]):
        channels, height, width = (count(size) for size in cast(list[object], part["shape"]))
        neurons.append(NeuronFacts(node=text(part["node"]), fires=flag(part["fires"]), shape=(channels, height, width)))
    return Layer(
        name=text(item["name"]),
        engine=Queue(text(item["engine"])),
        kind=choice(item["kind"], ("conv", "fc", "pool")),
        nodes=tuple(text(node) for node in cast(list[object], item["nodes"])),
        neurons=tuple(neurons),
        c_in=count(item["c_in"]),
        c_out=count(item["c_out"]),
        kernel=pair(item["kernel"]),
        stride=pair(item["stride"]),
        out_h=count(item["out_h"]),
        out_w=count(item["out_w"]),
        groups=count(item["groups"]),
        hold=flag(item["hold"]),
    )


def _host(item: Mapping[str, object]) -> Host:
    only_fields(Host, item)
    return Host(
        input_shape=tuple(count(size) for size in cast(list[object], item["input_shape"])),
        input_has_time=flag(item["input_has_time"]),
        encoding=choice(item["encoding"], ("none", "direct", "bernoulli", "latency")),
        seed=integer(item["seed"]),
        output_is_flat=flag(item["output_is_flat"]),
        readout=choice(item["readout"], ("none", "rate", "last", "max")),
    )
