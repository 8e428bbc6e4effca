"""Pooling ops."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.ir.ops.base import Op, Site, image, window_extent
from compiler.ir.types import DType, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class AvgPool2d(Op):
    """Average over windows.

    With `ceil_mode` a last partial window is kept; `count_include_pad` says whether padding counts in the
    divisor. Shapes: x (..., C, H, W). Source: PyTorch's avg_pool2d for both options.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        return _pooled(self, image(inputs[0], site), site).of(DType.F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool2d(Op):
    """Maximum over windows; of spikes it is their logical or, and stays a spike.

    Shapes: x (..., C, H, W).
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        return _pooled(self, image(inputs[0], site), site)


def _pooled(op: AvgPool2d | MaxPool2d, x: TensorType, site: Site) -> TensorType:
    if min(op.kernel) < 1 or min(op.stride) < 1 or min(op.padding) < 0:
        raise site.fail(f"kernel {op.kernel}, stride {op.stride}, padding {op.padding} out of range")
    if any(2 * padding > kernel for padding, kernel in zip(op.padding, op.kernel, strict=True)):
        raise site.fail(f"padding {op.padding} is more than half the kernel {op.kernel}")
    rows, columns = (
        window_extent(x.size(axis), op.kernel[i], op.stride[i], op.padding[i], op.ceil_mode)
        for i, axis in enumerate("HW")
    )
    if rows < 1 or columns < 1:
        raise site.fail(f"kernel {op.kernel} is larger than the padded input {x}")
    return x.resized(H=rows, W=columns)
