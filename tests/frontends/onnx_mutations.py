"""Damaged and hostile ONNX files, and what must hold of each: refused with a CompileError, or imported rightly."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import torch
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import AvgPool2d, Conv2d, Encode, Flatten, Input, Lif, Linear, Readout
from frontends.from_onnx import load_onnx
from frontends.onnx_export.model import onnx_model
from tests.frontends.onnx_models import saved

T = 3
MAX_SECONDS = 5.0
MAX_BYTES = 2**31
HUGE = (-1, 0, 2**20, 2**31 - 1, 2**40, 2**62)


def network() -> Graph:
    """A small one with most of the ops."""
    rng = np.random.default_rng(0)
    arrays = {
        "conv.weight": (rng.integers(-8, 13, (2, 1, 3, 3)) / 16).astype(np.float32),
        "conv.bias": np.array([0.25, 0.5], np.float32),
        "fc.weight": (rng.integers(-8, 13, (3, 8)) / 16).astype(np.float32),
        "decay": np.array([0.5, 0.75], np.float32),
    }
    conv = Conv2d(weight=Param("conv.weight"), bias=Param("conv.bias"), padding=(1, 1))
    ops = (
        ("x", Input(shape=("N", 1, 4, 4), dtype=DType.F32, axes="NCHW")),
        ("code", Encode(kind=Encoding.DIRECT, timesteps=T)),
        ("conv", conv),
        ("lif", Lif(decay=Param("decay"), threshold=1.0)),
        ("pool", AvgPool2d(kernel=(2, 2), stride=(2, 2))),
        ("flat", Flatten()),
        ("fc", Linear(weight=Param("fc.weight"))),
        ("out", Lif(decay=0.5, threshold=0.5, reset=Reset.SOFT)),
        ("rate", Readout(kind=Reading.RATE)),
    )
    names = [name for name, _ in ops]
    nodes = tuple(
        Node(name, op, (names[at - 1],) if at else (), Loc("net.py", at + 1)) for at, (name, op) in enumerate(ops)
    )
    return Graph("net", nodes, "rate", arrays)


class Unrolled(torch.nn.Module):
    """Neurons written out over time."""

    def __init__(self) -> None:
        super().__init__()
        arrays = network().parameters
        self.conv, self.fc = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Linear(8, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(np.array(arrays["conv.weight"])))
            self.conv.bias.copy_(torch.from_numpy(np.array(arrays["conv.bias"])))  # type: ignore[union-attr]
            self.fc.weight.copy_(torch.from_numpy(np.array(arrays["fc.weight"])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        first, second, total = torch.zeros(count, 2, 4, 4), torch.zeros(count, 3), torch.zeros(count, 3)
        for _ in range(T):
            first = 0.5 * first + self.conv(x)
            fired = (first >= 1.0).float()
            first = first * (1 - fired)
            second = 0.5 * second + self.fc(torch.nn.functional.avg_pool2d(fired, 2).flatten(1))
            out = (second >= 0.5).float()
            second = second - 0.5 * out
            total = total + out
        return total / T


def unrolled(opset: int, folder: Path) -> Path:
    """A direct-coded network of two layers, written out over time."""
    path = folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(2, 1, 4, 4),)
        torch.onnx.export(Unrolled().eval(), example, str(path), dynamo=False, opset_version=min(opset, 17))
    if opset > 17:
        return saved(onnx.version_converter.convert_version(onnx.load(str(path)), opset), folder)
    return path


def seed_files() -> tuple[bytes, ...]:
    """What spikec writes, without its text, with its functions written out; a loop unrolled by an exporter."""
    own = onnx_model(network())
    bare = ModelProto()
    bare.CopyFrom(own)
    del bare.metadata_props[:]
    with tempfile.TemporaryDirectory() as folder:
        loop = unrolled(17, Path(folder)).read_bytes()
    scans = onnx.inliner.inline_local_functions(own).SerializeToString()
    return own.SerializeToString(), bare.SerializeToString(), scans, loop


@dataclass(slots=True)
class Mutator:
    """Damages of bytes, and of messages that stay well formed."""

    rng: random.Random

    def damaged(self, content: bytes) -> bytes:
        """One damage, sometimes several."""
        for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
            change = self.rng.choice((self.cut, self.flip, self.flip, self.splice, self.structure, self.structure))
            content = change(content)
        return content

    def cut(self, content: bytes) -> bytes:
        return content[: self.rng.randrange(len(content) + 1)]

    def flip(self, content: bytes) -> bytes:
        if not content:
            return content
        damaged = bytearray(content)
        for _ in range(self.rng.choice((1, 1, 4, 32))):
            damaged[self.rng.randrange(len(damaged))] ^= 1 << self.rng.randrange(8)
        return bytes(damaged)

    def splice(self, content: bytes) -> bytes:
        first, last = sorted(self.rng.randrange(len(content) + 1) for _ in range(2))
        return content[:first] + content[first:last] * self.rng.choice((0, 2, 3)) + content[last:]

    def structure(self, content: bytes) -> bytes:
        model = ModelProto()
        try:
            model.ParseFromString(content)
        except DecodeError:
            return content
        changes: tuple[Callable[[ModelProto], None], ...] = (
            self.rewire,
            self.leave_out,
            self.rename,
            self.resize,
            self.number,
            self.move_outside,
            self.swap,
            self.drop,
        )
        self.rng.choice(changes)(model)
        return bytes(model.SerializeToString())

    def nodes(self, model: ModelProto) -> list[onnx.NodeProto]:
        return [node for graph in self.graphs(model) for node in graph]

    def graphs(self, model: ModelProto) -> Iterator[list[onnx.NodeProto]]:
        waiting = [list(model.graph.node), *(list(function.node) for function in model.functions)]
        while waiting:
            nodes = waiting.pop()
            yield nodes
            waiting += [list(a.g.node) for node in nodes for a in node.attribute if a.type == AttributeProto.GRAPH]

    def rewire(self, model: ModelProto) -> None:
        """An input becomes any other value, also one that is made later."""
        nodes = self.nodes(model)
        values = [name for node in nodes for name in (*node.input, *node.output)]
        takers = [node for node in nodes if node.input]
        if takers:
            node = self.rng.choice(takers)
            node.input[self.rng.randrange(len(node.input))] = self.rng.choice(values)

    def leave_out(self, model: ModelProto) -> None:
        """An input or output less, or one without a name."""
        nodes = self.nodes(model)
        if not nodes:
            return
        node = self.rng.choice(nodes)
        names = self.rng.choice((node.input, node.output))
        if names and self.rng.random() < 0.5:
            names[self.rng.randrange(len(names))] = ""
        elif names:
            del names[self.rng.randrange(len(names)) :]

    def rename(self, model: ModelProto) -> None:
        nodes = self.nodes(model)
        if nodes:
            node = self.rng.choice(nodes)
            node.op_type = self.rng.choice([*(other.op_type for other in nodes), "Loop", "If", "Pad", "Expand", "Tile"])

    def resize(self, model: ModelProto) -> None:
        """Extents out of all proportion."""
        arrays = [array for array in model.graph.initializer if array.dims]
        if arrays:
            array = self.rng.choice(arrays)
            array.dims[self.rng.randrange(len(array.dims))] = self.rng.choice(HUGE)

    def number(self, model: ModelProto) -> None:
        """Another number in an attribute, a shape or a constant."""
        integers = [array for array in model.graph.initializer if array.data_type == TensorProto.INT64]
        attributes = [a for node in self.nodes(model) for a in node.attribute]
        if integers and self.rng.random() < 0.5:
            array = self.rng.choice(integers)
            values = np.frombuffer(array.raw_data[: len(array.raw_data) // 8 * 8], np.int64).copy()
            if values.size:
                values[self.rng.randrange(values.size)] = self.rng.choice((*HUGE, 1, 2, T))
                array.raw_data = values.tobytes()
        elif attributes:
            attribute = self.rng.choice(attributes)
            if attribute.ints:
                attribute.ints[self.rng.randrange(len(attribute.ints))] = self.rng.choice((*HUGE, 1, 2))
            attribute.i = self.rng.choice((*HUGE, 1, 2))
            attribute.f = self.rng.choice((0.0, -1.0, 1e30, float("nan")))

    def move_outside(self, model: ModelProto) -> None:
        """An array whose data stands in another file."""
        if model.graph.initializer:
            array = self.rng.choice(list(model.graph.initializer))
            array.ClearField("raw_data")
            array.data_location = TensorProto.EXTERNAL
            place = self.rng.choice(("../secret.bin", "/etc/passwd", "a/../../secret.bin", "link.bin", "", "none.bin"))
            array.external_data.add(key="location", value=place)
            if self.rng.random() < 0.5:
                array.external_data.add(key="offset", value=str(self.rng.choice(HUGE)))

    def swap(self, model: ModelProto) -> None:
        """Two nodes change places."""
        nodes: GraphProto = model.graph
        if len(nodes.node) > 1:
            first, last = sorted(self.rng.sample(range(len(nodes.node)), 2))
            order = list(range(len(nodes.node)))
            order[first], order[last] = order[last], order[first]
            copies = [onnx.NodeProto.FromString(nodes.node[at].SerializeToString()) for at in order]
            del nodes.node[:]
            nodes.node.extend(copies)

    def drop(self, model: ModelProto) -> None:
        parts = self.rng.choice((model.graph.node, model.graph.initializer, model.graph.output, model.functions))
        if parts:
            del parts[self.rng.randrange(len(parts))]


@dataclass(slots=True)
class Watch:
    """Files opened while it is on, outside the folders that may be read."""

    allowed: tuple[str, ...]
    on: bool = False
    outside: list[str] | None = None

    def __post_init__(self) -> None:
        self.outside = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on or event != "open" or not isinstance(arguments[0], str) or self.outside is None:
            return
        if not arguments[0].startswith(self.allowed):
            self.outside.append(arguments[0])


def check(content: bytes, path: Path, watch: Watch) -> str:
    """Import one file; the outcome in a word.

    Raises: AssertionError, or whatever the import raises besides CompileError.
    """
    path.write_bytes(content)
    start = time.process_time()
    watch.on = True
    try:
        with limited(MAX_SECONDS):
            imported = load_onnx(path, timesteps=T)
    except CompileError:
        return "refused"
    finally:
        watch.on = False
        assert not watch.outside, watch.outside
        assert time.process_time() - start < MAX_SECONDS
    return agreement(content, imported.graph)


def agreement(content: bytes, graph: Graph) -> str:
    """Whether the reference evaluator of ONNX, if it runs the model, computes the same."""
    want = reference(content, graph)
    if want is None:
        return "imported, not run by the reference"
    x = example(graph)
    got = evaluate(graph, x).output.numpy()
    arrays = [array.astype(np.float64) for array in graph.parameters.values()]
    dyadic = all(bool((array * 64 % 1 == 0).all() and abs(array).max() < 64) for array in arrays)
    if dyadic:
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
        return "imported, equal"
    assert got.shape == want.shape  # with other weights rounding may move single spikes
    return "imported, of equal shape"


def example(graph: Graph) -> torch.Tensor:
    """Multiples of 1/8."""
    shape = [2 if isinstance(extent, str) else extent for extent in graph.types[graph.input.name].shape]
    return torch.randint(-4, 9, shape, generator=torch.Generator().manual_seed(0)) / 8


def reference(content: bytes, graph: Graph) -> np.ndarray | None:
    """The output in plain NumPy; None where that evaluator refuses the model."""
    from onnx.reference import ReferenceEvaluator

    model = ModelProto.FromString(content)
    names = [value.name for value in model.graph.input]
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        try:
            with limited(MAX_SECONDS):
                (result,) = ReferenceEvaluator(model).run(None, {names[0]: example(graph).numpy()})
        except Exception:  # its own faults are many, and not what is looked for here
            return None
    return np.asarray(result)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """A TimeoutError after so long, as the process counts its own time."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def campaign(count: int, seed: int, folder: Path) -> Counter[str]:
    """So many damaged files one after the other."""
    inside, files = folder / "model", seed_files()
    inside.mkdir()
    (folder / "secret.bin").write_bytes(bytes(4096))
    (inside / "link.bin").symlink_to(folder / "secret.bin")
    watch = Watch(allowed=(str(inside), sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])))
    mutator = Mutator(random.Random(seed))
    for content in files:
        (inside / "net.onnx").write_bytes(content)
        load_onnx(inside / "net.onnx", timesteps=T)  # the first trace of a process imports for seconds
        assert check(content, inside / "net.onnx", watch) == "imported, equal"
    outcomes: Counter[str] = Counter()
    for number in range(count):
        content = mutator.damaged(files[number % len(files)])
        try:
            outcomes[check(content, inside / "net.onnx", watch)] += 1
        except BaseException:
            print(f"file {number} of seed {seed}: {inside / 'net.onnx'}", file=sys.stderr)
            raise
    return outcomes


if __name__ == "__main__":
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))  # of addresses; torch maps several GB
    with tempfile.TemporaryDirectory() as place:
        seen = campaign(int(sys.argv[1]), int(sys.argv[2]), Path(place))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < MAX_BYTES, f"{peak} bytes"
    print(json.dumps({"outcomes": seen, "peak_bytes": peak}))
