"""The few words of TensorIR that the fused kernels are written in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from compiler.tvm_setup import tvm  # before anything else of TVM

from tvm import tirx  # isort: skip
from tvm.script.ir_builder import IRBuilder  # isort: skip
from tvm.tirx.script import builder as T  # noqa: N812  # isort: skip

__all__ = ["Buffer", "Expr", "Lanes", "T", "argument", "both", "f32", "kernel", "local", "put", "select", "tirx", "tvm"]

Expr: TypeAlias = tirx.Expr
Buffer: TypeAlias = tirx.Buffer


@dataclass(frozen=True, slots=True)
class Lanes:
    """Neighbouring neurons that one statement treats: a vector of the CPU, or one thread's neuron."""

    width: int

    @contextmanager
    def each(self) -> Iterator[Expr | int]:
        """The statement inside, for every lane."""
        if self.width == 1:
            yield 0
        else:
            with T.vectorized(self.width) as lane:
                yield lane


def kernel(name: str, body: Callable[[], None]) -> tirx.PrimFunc:
    """A kernel of that name; the body declares its arguments and writes its statements."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        body()
    return builder.get()


def argument(name: str, shape: Sequence[Expr | int], dtype: str = "float32") -> Buffer:
    """The next argument of the kernel: a C-contiguous array that need not be aligned to vectors."""
    return T.match_buffer(T.arg(name, T.handle()), shape, dtype, align=_BYTES[dtype])


def local(*shape: int, dtype: str = "float32") -> Buffer:
    """Registers, or the stack where they do not suffice."""
    return T.alloc_buffer(shape, dtype, scope="local")


def put(buffer: Buffer, value: Expr, *indices: Expr | int) -> None:
    """Store one element."""
    T.buffer_store(buffer, value, list(indices))


def f32(value: Expr | float) -> Expr:
    """The value as f32."""
    return T.float32(value) if isinstance(value, float | int) else T.cast(value, "float32")


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """A choice without a branch; both sides are computed."""
    return T.Select(condition, yes, no)


def both(left: Expr | None, right: Expr | None) -> Expr | None:
    """The conjunction of conditions; None is always true."""
    if left is None or right is None:
        return left if right is None else right
    return tirx.And(left, right)


_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8}
