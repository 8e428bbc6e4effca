"""ONNX files and the arrays in them, none larger than it says and none from outside the model's folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from compiler.ir import CompileError, Loc

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto

MAX_BYTES = 2**31 - 1  # of a protobuf message
MAX_ELEMENTS = 2**28  # of one value, 1 GiB in float32
MAX_CONSTANT = 2**26  # of an input, and of a constant that the file computes rather than holds
OPSETS = range(13, 24)
_STANDARD = ("", "ai.onnx")
_MAX_DIMS = 8
_Fail = Callable[..., CompileError]


@dataclass(frozen=True, slots=True)
class Storage:
    """How an element type of ONNX is stored: in raw bytes, or as the items of a field."""

    raw: str  # NumPy's little-endian type
    field: str
    item: str  # type that an item of the field is cast to first


_STORAGE: Mapping[int, Storage] = MappingProxyType(
    {
        1: Storage("<f4", "float_data", "<f4"),
        2: Storage("u1", "int32_data", "u1"),
        3: Storage("i1", "int32_data", "i1"),
        6: Storage("<i4", "int32_data", "<i4"),
        7: Storage("<i8", "int64_data", "<i8"),
        9: Storage("?", "int32_data", "?"),
        10: Storage("<f2", "int32_data", "<u2"),
        11: Storage("<f8", "double_data", "<f8"),
    }
)


def read_model(path: Path) -> ModelProto:
    """The file's message, nothing in it checked but that it has a graph and versions that this import knows.

    Raises: CompileError if the file cannot be read, is damaged, or is of another version.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    loc = Loc(str(path))
    try:
        if path.is_dir():
            raise CompileError("is a folder, not an ONNX file", loc, hint="name the file inside it")
        if path.stat().st_size > MAX_BYTES:
            raise CompileError(f"has {path.stat().st_size} bytes, an ONNX file has {MAX_BYTES} at most", loc)
        content = path.read_bytes()
    except OSError as fault:
        raise CompileError(f"cannot be read: {fault.strerror}", loc) from fault
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as fault:
        hint = "it is cut off, damaged or of another kind; export the network again"
        raise CompileError("is not an ONNX file", loc, hint=hint) from fault
    if not _is_text(model):
        raise CompileError("holds a name that is no text", loc, hint="it is damaged; export the network again")
    if not model.HasField("graph") or not model.graph.output:
        raise CompileError("holds no network: its graph has no output", loc, hint="export the network again")
    versions = [entry.version for entry in model.opset_import if entry.domain in _STANDARD]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise CompileError(
            f"has opset {', '.join(map(str, versions)) or 'none'}, opsets {OPSETS[0]} to {OPSETS[-1]} are read",
            loc,
            hint="onnx.version_converter.convert_version, or export with another opset_version",
        )
    return model


def _is_text(model: ModelProto) -> bool:
    """Whether every string of the message is one: the reader hands out bytes where it is not UTF-8."""
    from google.protobuf.descriptor import FieldDescriptor

    waiting: list[Message] = [model]
    while waiting:
        for item, value in waiting.pop().ListFields():
            if item.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
                continue
            values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
            if item.type == FieldDescriptor.TYPE_MESSAGE:
                waiting += values
            elif not all(isinstance(text, str) for text in values):
                return False
    return True


def to_tensor(proto: TensorProto, folder: Path, loc: Loc) -> Tensor:
    """The values of a tensor; external ones only from inside the model's folder.

    Raises: CompileError if its extents, element type and data do not fit together.
    """

    def fail(message: str, hint: str = "") -> CompileError:
        return CompileError(f"array {proto.name or '(unnamed)'}: {message}", loc, hint=hint)

    storage = _STORAGE.get(proto.data_type)
    if storage is None:
        raise fail(f"element type {proto.data_type} is not read", "networks are imported in float32")
    shape = tuple(proto.dims)
    if (
        len(shape) > _MAX_DIMS
        or any(not 0 <= size <= MAX_ELEMENTS for size in shape)
        or math.prod(shape) > MAX_ELEMENTS
    ):
        raise fail(f"shape {shape[: _MAX_DIMS + 1]} is not one of a network's array")
    count, raw = math.prod(shape), np.dtype(storage.raw)
    if proto.data_location == proto.EXTERNAL:
        content = _external(proto, folder, count * raw.itemsize, fail)
    elif proto.HasField("raw_data"):
        content = proto.raw_data
    else:
        items = getattr(proto, storage.field)
        if len(items) != count:
            raise fail(f"shape {shape} needs {count} values, the file holds {len(items)}")
        content = np.array(items).astype(storage.item).tobytes()
    if len(content) != count * raw.itemsize:
        raise fail(f"shape {shape} needs {count * raw.itemsize} bytes, the file holds {len(content)}")
    values = np.frombuffer(content, raw).reshape(shape)
    return torch.from_numpy(values.astype(raw.newbyteorder("=")))


def _external(proto: TensorProto, folder: Path, size: int, fail: _Fail) -> bytes:
    entries = {entry.key: entry.value for entry in proto.external_data}
    place, root = entries.get("location", ""), folder.resolve()
    try:
        target = (root / place).resolve()
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", size))
    except (ValueError, OSError, RuntimeError) as fault:  # no number, a NUL in the path, a loop of links
        raise fail(f"its external data cannot be found: {fault}") from fault
    if not place or Path(place).is_absolute() or not target.is_relative_to(root):
        raise fail(
            f"its external data is at {place!r}, outside the model's folder", "put the data file beside the model"
        )
    try:
        if not target.is_file() or offset < 0 or length != size or target.stat().st_size < offset + size:
            raise fail(f"its external data {place!r} has no {size} bytes at {offset}")
        with target.open("rb") as file:
            file.seek(offset)
            content: bytes = file.read(size)
            return content
    except OSError as fault:
        raise fail(f"its external data {place!r} cannot be read: {fault.strerror}") from fault
