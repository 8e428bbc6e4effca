"""Writes NIR files, laid out as nir 1.0.8 writes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compiler.ir import Loc
from frontends.nir_file.nodes import GRAPH, Field, NirNode
from frontends.nir_file.read import needs_h5py
from hwmodel.whole_files import write_whole

if TYPE_CHECKING:
    import h5py

VERSION = "1.0.8"  # of the package whose layout this is
_MIN_COMPRESSED = 64  # values; a chunk's own description is larger than what fewer would save


def write_nir(root: NirNode, path: Path) -> None:
    """Write the file; it appears whole or not at all, and equal nodes give equal bytes.

    Raises: CompileError if it cannot be written.
    """
    loc = Loc(str(path))
    needs_h5py(loc)
    write_whole(path, nir_bytes(root), example="net.nir")


def nir_bytes(root: NirNode) -> bytes:
    """The file's content."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("version", data=VERSION, dtype=h5py.string_dtype())
        _write_node(file.create_group("node"), root)
    return buffer.getvalue()


def _write_node(group: h5py.Group, node: NirNode) -> None:
    import h5py

    _write_fields(group, {**node.fields, "type": node.kind})
    if node.metadata:
        _write_fields(group.create_group("metadata"), node.metadata)
    if node.kind == GRAPH:
        members = group.create_group("nodes")
        for name, member in node.nodes.items():
            _write_node(members.create_group(name), member)
        pairs = np.array(node.edges, dtype=object).reshape(-1, 2)
        group.create_dataset("edges", data=pairs, dtype=h5py.string_dtype())


def _write_fields(group: h5py.Group, fields: Mapping[str, Field]) -> None:
    import h5py

    for name, value in fields.items():
        if isinstance(value, str):
            group.create_dataset(name, data=value, dtype=h5py.string_dtype())
        else:
            packed = {"compression": "gzip", "shuffle": True} if value.size >= _MIN_COMPRESSED else {}
            group.create_dataset(name, data=value, **packed)
