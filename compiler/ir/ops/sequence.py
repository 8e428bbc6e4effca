"""Ops at the ends of a network: inputs, encodings over time, and readouts."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.ir.ops.base import Op, Site
from compiler.ir.types import Dim, DType, TensorType
from compiler.ir.values import Encoding, Param, Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Op):
    """The network's input, real-valued (`f32`) or binary (`spike`), with its shape.

    Shapes: any of NCHW, NC, TNCHW, TNC.
    """

    shape: tuple[Dim, ...]
    dtype: DType
    axes: str

    @property
    def arity(self) -> int:
        return 0

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        if self.axes not in ("NCHW", "NC", "TNCHW", "TNC"):
            raise site.fail(f"input axes are {self.axes!r}, must be NCHW, NC, TNCHW or TNC")
        if len(self.axes) != len(self.shape):
            raise site.fail(f"input has {len(self.shape)} extents for {len(self.axes)} axes")
        for axis, size in zip(self.axes, self.shape, strict=True):
            if isinstance(size, str) and axis != "N":
                raise site.fail(f"axis {axis} is symbolic; only N may be")
            if isinstance(size, int) and size < 1:
                raise site.fail(f"axis {axis} is {size}, must be at least 1")
        return TensorType(self.shape, self.dtype, self.axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode(Op):
    """Turn one real-valued input into a sequence of `timesteps`.

    direct     y[t] = x
    bernoulli  y[t] = u[t] < x, u uniform in [0, 1): drawn from `seed` (one stream per sample), or `mask`
    latency    y[t] = (t == round((1 - x) * (timesteps - 1))) where x > 0: one spike, early for strong input

    Shapes: x (N, ...) -> y (T, N, ...); mask (T, 1 or N, ...).
    Raises: CompileError unless bernoulli, and only it, has exactly one of seed and mask.
    """

    kind: Encoding
    timesteps: int
    seed: int | None = None
    mask: Param | None = None

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        (x,) = inputs
        if self.timesteps < 1:
            raise site.fail(f"timesteps is {self.timesteps}, must be at least 1")
        if x.has("T"):
            raise site.fail(f"encodes a value without time, got {x}")
        if x.dtype is DType.SPIKE:
            raise site.fail("encodes a real-valued input, got spikes")
        draws = (self.seed is not None) + (self.mask is not None)
        if draws != (1 if self.kind is Encoding.BERNOULLI else 0):
            raise site.fail(f"{self.kind} encoding with {draws} of seed and mask", "bernoulli needs exactly one")
        if self.mask is not None:
            shape = site.array(self.mask, len(x.shape) + 1).shape
            if shape[0] != self.timesteps or tuple(x.shape[1:]) != shape[2:]:
                raise site.fail(f"mask {self.mask} has shape {shape}, not (T, 1 or N) + {x.shape[1:]}")
        dtype = DType.F32 if self.kind is Encoding.DIRECT else DType.SPIKE
        return TensorType((self.timesteps, *x.shape), dtype, "T" + x.axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout(Op):
    """Reduce a sequence over time: `rate` is the mean, `last` the last step, `max` the maximum.

    Shapes: x (T, N, ...) -> y (N, ...).
    """

    kind: Reading

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        (x,) = inputs
        if not x.has("T"):
            raise site.fail(f"reads a sequence over time, got {x}")
        return x.without("T").of(DType.F32)
