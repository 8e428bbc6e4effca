"""Damaged and hostile NIR files are refused, or are graphs; nothing crashes, loops, swells or opens other files."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from compiler.ir import CompileError
from frontends.from_nir import from_nir_node, load_nir
from frontends.nir_export.network import nir_graph
from frontends.nir_file.hdf5_child import limit
from frontends.nir_file.nodes import Field, NirNode
from frontends.nir_file.read import node_of_answer
from frontends.nir_file.write import nir_bytes
from tests.frontends.nir_files import BYTES, chain, lif
from tests.golden import Golden
from tests.spikec.graphs import small_graph

SECONDS = 5.0
GIBIBYTE = 1 << 20  # in the unit of ru_maxrss, KiB

OPENED: list[str] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        OPENED.append(str(arguments[0]))


sys.addaudithook(watch)


def largest_child() -> int:
    """Peak size of the largest process that this one or its tests have waited for, in KiB.

    A child's peak counts that of its parent, whose memory it has until it becomes another program.
    """
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))


def answers(content: bytes, seeds: range, tmp_path: Path) -> Iterator[bytes | int]:
    """What the reading process says of the damaged content; the signal that ended it, where one did."""
    file = tmp_path / "whole.nir"
    file.write_bytes(content)
    module = "tests.frontends.damaged_hdf5"
    command = [sys.executable, "-m", module, str(file), str(seeds.start), str(seeds.stop), str(BYTES)]
    said = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True).stdout
    at = 0
    while at < len(said):
        signal, size = int.from_bytes(said[at : at + 4], "little"), int.from_bytes(said[at + 4 : at + 12], "little")
        yield signal or said[at + 12 : at + 12 + size]
        at += 12 + size


def imported(read: Callable[[], NirNode]) -> str:
    """How an import ends; any exception but a refusal reaches the test."""
    begin = time.perf_counter()
    OPENED.clear()
    try:
        from_nir_node(read(), "net.nir").graph.verify()
        return "graph"
    except CompileError:
        return "refused"
    finally:
        assert time.perf_counter() - begin < SECONDS
        assert OPENED == []


def damaged(seeds: range, tmp_path: Path) -> Counter[str]:
    """How files of these seeds end, as we write them, and without what is ours in them."""
    before = largest_child()
    own = nir_graph(small_graph({"w3": np.ones((2, 320), np.float32)}), 1e-4).root
    plain = replace(own, metadata={}, nodes={n: replace(node, metadata={}) for n, node in own.nodes.items()})
    ends = Counter[str]()
    for root in (own, plain):
        for told in answers(nir_bytes(root), seeds, tmp_path):
            if isinstance(told, int):
                ends[f"signal {told}"] += 1
            else:
                ends[imported(lambda told=told: node_of_answer(told, "net.nir"))] += 1  # type: ignore[misc]
    assert largest_child() < max(2 * GIBIBYTE, before + GIBIBYTE // 4)
    return ends


def test_damaged_files(tmp_path: Path) -> None:
    ends = damaged(range(100, 175), tmp_path)
    assert ends["refused"] > 0
    assert ends["graph"] > 0
    assert sum(ends.values()) == 150


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    """The library loops for ever on a few files in a thousand; the limit of processor time ends it (signal 24)."""
    ends = damaged(range(1_000, 2_000), tmp_path)
    print(dict(ends))
    assert sum(ends.values()) == 2_000


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass", "takes too long"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", r"the HDF5 library crashes on it \(SIGSEGV\)"),
        ("raise ImportError('no h5py')", "the process that reads HDF5 fails: ImportError: no h5py"),
    ],
)
def test_what_becomes_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    """The library's loops and crashes are a refusal of the file."""
    child = tmp_path / "child.py"
    child.write_text(script)
    monkeypatch.setattr("frontends.nir_file.read._CHILD", child)
    with pytest.raises(CompileError, match=words):
        load_nir(chain(tmp_path / "net.nir", (2,), lif((2,))))


# Nodes that say something else


def changed_field(value: Field, rng: random.Random) -> Field:
    strange: list[Callable[[], Field]] = [
        lambda: np.array(float("nan")),
        lambda: np.array([float("inf"), -1.0]),
        lambda: np.array(2**62),
        lambda: np.array([10**9, 10**9, 10**9]),
        lambda: np.zeros((0,), np.float32),
        lambda: np.array(-1),
        lambda: "same",
        lambda: "",
        lambda: np.array(True),
        lambda: np.array([1 + 0.5, 1e300]),
    ]
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        strange += [lambda: value * np.float32(-1.0), lambda: value[..., None], lambda: value.astype(np.int64)]
        strange += [
            lambda: value.reshape(-1),
            lambda: value * rng.random(),
            lambda: value.astype(np.float16),
        ]
    return rng.choice(strange)()


def changed(root: NirNode, rng: random.Random) -> NirNode:
    """A tree of nodes with one thing changed."""
    nodes, edges = dict(root.nodes), list(root.edges)
    name = rng.choice(sorted(nodes))
    node = nodes[name]
    match rng.randrange(7):
        case 0 | 1 | 2 if node.fields:
            key = rng.choice(sorted(node.fields))
            nodes[name] = replace(node, fields={**node.fields, key: changed_field(node.fields[key], rng)})
        case 3 if node.fields:
            key = rng.choice(sorted(node.fields))
            nodes[name] = replace(node, fields={k: v for k, v in node.fields.items() if k != key})
        case 4:
            kinds = (
                "LIF",
                "IF",
                "LI",
                "I",
                "CubaLIF",
                "Delay",
                "Conv2d",
                "Flatten",
                "Input",
                "Output",
                "NIRGraph",
                "?",
            )
            nodes[name] = replace(node, kind=rng.choice(kinds))
        case 5:
            edges.append((rng.choice(sorted(nodes)), rng.choice(sorted(nodes))))
        case _:
            del edges[rng.randrange(len(edges))]
    return replace(root, nodes=nodes, edges=tuple(edges))


def strange_graphs(seeds: range) -> Counter[str]:
    own = nir_graph(small_graph(), 1e-4).root
    ends = Counter[str]()
    for seed in seeds:
        rng = random.Random(seed)
        root = own
        for _ in range(rng.randint(1, 3)):
            root = changed(root, rng) if root.edges else root
        ends[imported(lambda root=root: root)] += 1  # type: ignore[misc]
    return ends


def test_strange_nodes() -> None:
    ends = strange_graphs(range(150))
    assert ends["refused"] > ends["graph"] > 0


@pytest.mark.slow
def test_many_strange_nodes() -> None:
    assert sum(strange_graphs(range(1_000, 3_000)).values()) == 2_000


# Files that try to reach others, or to be large


def external_link(group: h5py.Group, folder: Path) -> None:
    group["secret"] = h5py.ExternalLink(str(folder / "other.h5"), "/node")


def soft_link(group: h5py.Group, folder: Path) -> None:
    group["elsewhere"] = h5py.SoftLink("/node/nodes")


def external_storage(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("raw", (4,), "f4", external=[(str(folder / "other.raw"), 0, 16)])


def virtual_dataset(group: h5py.Group, folder: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "values", (4,))
    group.create_virtual_dataset("mapped", layout)


def loop(group: h5py.Group, folder: Path) -> None:
    group.create_group("inner")["again"] = group


def same_twice(group: h5py.Group, folder: Path) -> None:
    group["copy"] = group["type"]


def huge(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("weight", (1 << 40,), "f4", chunks=(1 << 20,))


def bomb(group: h5py.Group, folder: Path) -> None:
    """A chunk of 16 bytes that unpacks to 256 MiB."""
    data = group.create_dataset("weight", (16,), "u1", chunks=(16,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 28), 1))


def huge_chunks(group: h5py.Group, folder: Path) -> None:
    data = group.create_dataset("weight", (4,), "f4", maxshape=(None,), chunks=((1 << 30) - 1,), compression="gzip")
    data.id.write_direct_chunk((0,), b"\x78\x9c\x03\x00\x00\x00\x00\x01")


def reference(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("reference", data=group.ref, dtype=h5py.ref_dtype)


def foreign_filter(group: h5py.Group, folder: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(group.id, b"zstd", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4,)), plist)


def named_type(group: h5py.Group, folder: Path) -> None:
    group["type of ours"] = np.dtype("f4")


HOSTILE = (
    external_link,
    soft_link,
    external_storage,
    virtual_dataset,
    loop,
    same_twice,
    huge,
    huge_chunks,
    reference,
    foreign_filter,
    named_type,
)


def test_hostile_files(tmp_path: Path, golden: Golden) -> None:
    before = largest_child()
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with h5py.File(folder / "other.h5", "w") as other:
        other.create_group("node")
        other["values"] = np.ones(4, "f4")
    (folder / "other.raw").write_bytes(bytes(16))
    lines = []
    for hostile in HOSTILE:
        path = chain(tmp_path / "net.nir", (2,), lif((2,)))
        with h5py.File(path, "a") as file:
            hostile(file["node/nodes/n0"], folder)
        OPENED.clear()
        with pytest.raises(CompileError) as fault:
            load_nir(path)
        lines.append(f"{hostile.__name__}:\n{fault.value}\n".replace(str(tmp_path), "FOLDER"))
        assert not any("elsewhere" in name for name in OPENED)
    golden("nir_hostile.txt", "\n".join(lines))
    assert largest_child() < max(2 * GIBIBYTE, before + GIBIBYTE // 4)


def test_a_chunk_that_swells(tmp_path: Path) -> None:
    """It costs the memory of what it unpacks to, which has a limit, and nothing of it is kept."""
    before = largest_child()
    path = chain(tmp_path / "net.nir", (2,), lif((2,)))
    with h5py.File(path, "a") as file:
        bomb(file["node/nodes/n0"], tmp_path)
    assert load_nir(path).graph.types["n0"].shape == (10, "N", 2)
    assert largest_child() < max(2 * GIBIBYTE, before + GIBIBYTE // 4)


def test_the_process_that_reads_opens_nothing() -> None:
    child = os.fork()
    if not child:
        limit(2, BYTES)
        try:
            os.open("/dev/null", os.O_RDONLY)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def files_that_are_none() -> dict[str, Any]:
    return {
        "text": b"not HDF5",
        "empty": b"",
        "cut": nir_bytes(nir_graph(small_graph(), 1e-4).root)[:5000],
    }


def test_files_that_are_none(tmp_path: Path, golden: Golden) -> None:
    lines = []
    for name, content in files_that_are_none().items():
        (tmp_path / f"{name}.nir").write_bytes(content)
    (tmp_path / "folder.nir").mkdir()
    with h5py.File(tmp_path / "other.nir", "w") as other:
        other["values"] = np.ones(4)
    for name in ("text", "empty", "cut", "folder", "other", "absent"):
        with pytest.raises(CompileError) as fault:
            load_nir(tmp_path / f"{name}.nir")
        lines.append(f"{name}:\n{fault.value}\n".replace(str(tmp_path), "FOLDER"))
    golden("nir_files.txt", "\n".join(lines))
