"""The network that is certified, as bounds take it, and what it gets of a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compiler.certify.quantise import Rounding, quantise_dyadic
from compiler.certify.verdicts import Arithmetic
from compiler.codes import bernoulli_draws
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node
from compiler.ir.ops import Encode
from compiler.passes import DropEncode

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network without its Bernoulli encoding, maybe on a dyadic grid.

    encode: the encoding that was taken off; verdicts then are about its draws for each sample, one mask.
    takes_spikes: or reals, which a direct code repeats.
    changes: what quantisation rounded; None where nothing was to be quantised.
    """

    graph: Graph
    encode: Encode | None
    draws: Floats | None  # a fixed mask, where the encoding has one
    changes: tuple[Rounding, ...] | None

    @classmethod
    def of(cls, graph: Graph, fraction_bits: int | None = None, decay_bits: int = 2) -> Subject:
        """Raises: CompileError for a latency code, an encoding beside other readers of the input, and as
        `quantise_dyadic`.
        """
        node = next((node for node in graph.nodes if isinstance(node.op, Encode)), None)
        encode = node.op if node is not None and isinstance(node.op, Encode) else None
        if node is not None and encode is not None and encode.kind is Encoding.LATENCY:
            raise graph.site(node).fail(
                "a latency code of an input set has no bounds", "certify networks with direct or Bernoulli codes"
            )
        is_drawn = encode is not None and encode.kind is Encoding.BERNOULLI
        bare = DropEncode()(graph) if is_drawn else graph
        changes = None
        if fraction_bits is not None:
            quantised = quantise_dyadic(bare, fraction_bits=fraction_bits, decay_bits=decay_bits)
            bare, changes = quantised.graph, quantised.changes
        return cls(
            graph=bare,
            encode=encode if is_drawn else None,
            draws=_mask(graph, node, encode) if is_drawn else None,
            changes=changes,
        )

    @property
    def takes_spikes(self) -> bool:
        return self.graph.types[self.graph.input.name].dtype is DType.SPIKE

    @property
    def arithmetic(self) -> Arithmetic:
        """Exact integers where the network is quantised, and its inputs are spikes."""
        return Arithmetic.INTEGERS if self.changes is not None and self.takes_spikes else Arithmetic.F32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample as the data set holds it."""
        shape = self.network_shape
        return shape if self.encode is None else shape[1:]

    @property
    def network_shape(self) -> tuple[int, ...]:
        """Of what the network gets of one sample: (T, C, ...), or (C, ...) of reals."""
        kind = self.graph.types[self.graph.input.name]
        return tuple(size for size, axis in zip(kind.shape, kind.axes, strict=True) if not isinstance(size, str))

    def check(self, x: Floats, sample: int) -> None:
        """Raises: CompileError for a sample of another shape or with values that the network does not take."""
        fault = ""
        if x.shape != self.shape:
            fault = f"has shape {x.shape}, the network takes {self.shape}"
        elif self.takes_spikes and self.encode is None and not np.isin(x, (0, 1)).all():
            fault = "holds values other than 0 and 1, and the network takes spikes"
        elif not ((x >= 0) & (x <= 1)).all():
            fault = "holds values outside [0, 1]"
        if fault:
            raise CompileError(f"sample {sample}: {fault}", self.graph.input.loc)

    def mask(self, sample: int) -> Floats:
        """The encoding's draws for a sample, as `evaluate` takes them. Shapes: (T, C, ...)."""
        assert self.encode is not None
        if self.draws is not None:
            of_each = self.draws.shape[1]
            if of_each > 1 and sample >= of_each:
                raise CompileError(f"sample {sample}: the encoding's mask has {of_each} samples", Loc("--first"))
            return self.draws[:, sample if of_each > 1 else 0]
        shape = self.network_shape
        return bernoulli_draws(self.encode.seed or 0, shape[0], (1, *shape[1:]), sample)[:, 0]

    def seen(self, x: Floats, sample: int) -> Floats:
        """What the network gets of a sample: its code, or the sample itself."""
        return x if self.encode is None else (self.mask(sample) < x).astype(np.float32)


def _mask(graph: Graph, node: Node | None, encode: Encode | None) -> Floats | None:
    if node is None or encode is None or encode.mask is None:
        return None
    return np.asarray(graph.parameters[encode.mask.name], np.float32)
