"""`.spk` files: what is loaded is what was saved, and a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from compiler.ir import CompileError, Graph, Loc
from compiler.ir.file import load_graph, save_graph
from compiler.ir.ops import Array
from compiler.ir.text import parse_graph, print_graph
from tests.golden import Golden
from tests.strategies import RandomNetwork, networks

TEXT = """graph "small" {
  %x = input(shape=(3, N, 2), dtype=spike, axes=TNC) loc("zoo.py":4)
  %fc = linear(%x, weight=@w, bias=@b) loc("zoo.py":5)
  return %fc
}
"""
W, B = np.arange(8, dtype=np.float32).reshape(4, 2), np.zeros(4, np.float32)
HEADER = "spikec graph, format 1\n"
ONCE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def small() -> Graph:
    return parse_graph(TEXT, {"w": W, "b": B})


def refusal(path: Path) -> CompileError:
    with pytest.raises(CompileError) as caught:
        load_graph(path)
    return caught.value


def forged(path: Path, arrays: dict[str, Array], metadata: dict[str, str] | None) -> Path:
    save_file(arrays, path, metadata=metadata)
    return path


@ONCE
@given(network=networks(dyadic=False, max_size=9))
def test_networks_round_trip(tmp_path: Path, network: RandomNetwork) -> None:
    save_graph(network.graph, tmp_path / "net.spk")
    assert load_graph(tmp_path / "net.spk") == network.graph


def test_equal_graphs_give_equal_bytes(tmp_path: Path) -> None:
    reordered = parse_graph(TEXT, {"b": B, "w": W})
    contents = set()
    for i, graph in enumerate([small(), small(), reordered] * 3):
        save_graph(graph, tmp_path / f"{i}.spk")
        contents.add((tmp_path / f"{i}.spk").read_bytes())
    assert len(contents) == 1


def test_arrays_that_no_node_reads_are_left_out(tmp_path: Path) -> None:
    save_graph(parse_graph(TEXT, {"w": W, "b": B, "unread": B}), tmp_path / "net.spk")
    assert load_graph(tmp_path / "net.spk") == small()


def test_saving_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "net.spk"
    path.write_text("old")
    save_graph(small(), path)
    assert load_graph(path) == small()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["missing/net.spk", "file/net.spk", "folder", "n" * 300])
def test_a_file_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CompileError) as caught:
        save_graph(small(), tmp_path / place)
    assert caught.value.loc == Loc(str(tmp_path / place))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.spk"
    save_graph(small(), path)
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CompileError, match="cannot be written: No space left on device"):
        save_graph(small(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_hold_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden) -> None:
    """What each foreign or inconsistent file is told."""
    monkeypatch.chdir(tmp_path)
    text, both = {"spikec.graph": HEADER + TEXT}, {"w": W, "b": B}
    whole = forged(Path("whole.spk"), both, text).read_bytes()
    assert load_graph(Path("whole.spk")) == small()
    Path("folder.spk").mkdir()
    for name, content in {
        "empty.spk": b"",
        "truncated.spk": whole[:-1],
        "cut_header.spk": whole[:50],
        "random.spk": np.random.default_rng(0).bytes(500),
        "pickle.spk": b"\x80\x04\x95\x10\x00\x00\x00",
    }.items():
        Path(name).write_bytes(content)
    forged(Path("weights.spk"), both, None)
    forged(Path("newer.spk"), both, {"spikec.graph": "spikec graph, format 2\n" + TEXT})
    forged(Path("no_format.spk"), both, {"spikec.graph": TEXT})
    forged(Path("missing.spk"), {"w": W}, text)
    forged(Path("surplus.spk"), {**both, "c": B, "d": B}, text)
    forged(Path("misshapen.spk"), {"w": W.T.copy(), "b": B}, text)
    forged(Path("double.spk"), {"w": W.astype(np.float64), "b": B}, text)
    forged(Path("nan.spk"), {"w": W, "b": B * np.nan}, text)
    forged(Path("bad_text.spk"), both, {"spikec.graph": HEADER + TEXT.replace("linear", "dense")})
    names = ["absent.spk", *sorted(path.name for path in Path().iterdir() if path.name != "whole.spk")]
    golden("file_messages.txt", "\n".join(f"{refusal(Path(name))}\n" for name in names))


@ONCE
@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "net.spk"
    save_graph(small(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    refusal(path)


@settings(ONCE, max_examples=200)
@given(data=st.data())
def test_flipped_bits_are_refused_or_give_a_graph(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "net.spk"
    save_graph(small(), path)
    content = bytearray(path.read_bytes())
    for bit in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3)):
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        graph = load_graph(path)
    except CompileError:
        return
    assert parse_graph(print_graph(graph), graph.parameters) == graph
