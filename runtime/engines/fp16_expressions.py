"""TensorIR expressions on FP16 values that every kernel must form in the same way."""

from __future__ import annotations

from runtime.engines.tvm_build import Expr, T, rounded

LANES = 16  # FP16 or f32 values of one native vector


def not_finite(value: Expr) -> Expr:
    """Bit 15 of the result is set exactly if the exponent of an FP16 value is all ones."""
    exponent = T.bitwise_and(T.reinterpret("uint16", value), T.uint16(0x7C00))
    return T.bitwise_and(exponent + T.uint16(0x0400), T.uint16(0x8000))


def nonzero(value: Expr) -> Expr:
    """Whether an FP16 value is not a zero; a comparison of floats would call NaN one."""
    return T.bitwise_and(T.reinterpret("uint16", value), T.uint16(0x7FFF)) != T.uint16(0)


def f32(value: Expr) -> Expr:
    """An FP16 value, exactly."""
    return T.Cast("float32", value)


def f16(value: Expr) -> Expr:
    """An f32 value rounded to FP16, and kept apart from the operation that takes it.

    A product of two FP16 values is exact in f32, and a sum rounded to f32 and then to FP16 is the sum rounded to
    FP16 at once (24 >= 2 * 11 + 2 bits), so f32 arithmetic between roundings is FP16 arithmetic.
    """
    return rounded(T.Cast("float16", value))


def positive_zero() -> Expr:
    """+0 as an operand: TVM would drop the addition of a literal, which turns -0 into +0."""
    return rounded(T.float16(0))
