"""Types that the ops infer, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.ir import CompileError, DType, Encoding, Loc, Param, Reading, Surrogate, TensorType
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
    Site,
    parameter_names,
    window_extent,
)
from compiler.ir.values import Number

MAPS = TensorType((4, "N", 2, 8, 6), DType.SPIKE, "TNCHW")
FEATURES = TensorType((4, "N", 6), DType.SPIKE, "TNC")
IMAGE = TensorType(("N", 2, 8, 6), DType.F32, "NCHW")
ARRAYS = {
    "conv": np.ones((4, 2, 3, 3), np.float32),
    "linear": np.ones((5, 6), np.float32),
    "two": np.ones(2, np.float32),
    "four": np.ones(4, np.float32),
    "five": np.ones(5, np.float32),
    "negative": np.array([0.5, -1], np.float32),
    "big": np.array([0.5, 1.5], np.float32),
    "mask": np.ones((4, 1, 2, 8, 6), np.float32),
    "flat_mask": np.ones((4, 1, 2, 8, 5), np.float32),
    "empty": np.ones((0, 2, 3, 3), np.float32),
}
TWO, NEGATIVE = Param("two"), Param("negative")


def infer(op: Op, *inputs: TensorType) -> TensorType:
    return op.infer(inputs, Site("node", Loc("net.py", 7), ARRAYS))


def lif(decay: Number = 0.5, threshold: Number = 1.0, **fields: Number) -> Lif:
    return Lif(decay=decay, threshold=threshold, **fields)  # type: ignore[arg-type]  # numbers only


def batch_norm(var: Param, eps: float = 1e-5, weight: Param = TWO) -> BatchNorm:
    return BatchNorm(weight=weight, bias=TWO, mean=TWO, var=var, eps=eps)


@pytest.mark.parametrize(
    ("op", "inputs", "want"),
    [
        (Conv2d(weight=Param("conv"), stride=(2, 1)), [MAPS], "f32[T=4, N, C=4, H=3, W=4]"),
        (Conv2d(weight=Param("conv"), padding=(1, 1)), [IMAGE], "f32[N, C=4, H=8, W=6]"),
        (Linear(weight=Param("linear"), bias=Param("five")), [FEATURES], "f32[T=4, N, C=5]"),
        (batch_norm(TWO), [MAPS], "f32[T=4, N, C=2, H=8, W=6]"),
        (AvgPool2d(kernel=(2, 2), stride=(2, 2)), [MAPS], "f32[T=4, N, C=2, H=4, W=3]"),
        (MaxPool2d(kernel=(2, 2), stride=(2, 2)), [MAPS], "spike[T=4, N, C=2, H=4, W=3]"),
        (MaxPool2d(kernel=(3, 4), stride=(3, 4), ceil_mode=True), [IMAGE], "f32[N, C=2, H=3, W=2]"),
        (Flatten(), [MAPS], "spike[T=4, N, C=96]"),
        (Add(), [MAPS, MAPS], "f32[T=4, N, C=2, H=8, W=6]"),
        (Scale(factor=TWO), [IMAGE], "f32[N, C=2, H=8, W=6]"),
        (lif(decay=TWO), [MAPS], "spike[T=4, N, C=2, H=8, W=6]"),
        (Li(decay=1.0), [FEATURES], "f32[T=4, N, C=6]"),
        (Readout(kind=Reading.RATE), [FEATURES], "f32[N, C=6]"),
        (Encode(kind=Encoding.DIRECT, timesteps=3), [IMAGE], "f32[T=3, N, C=2, H=8, W=6]"),
        (Encode(kind=Encoding.BERNOULLI, timesteps=3, seed=0), [IMAGE], "spike[T=3, N, C=2, H=8, W=6]"),
        (Input(shape=("N", 3), dtype=DType.F32, axes="NC"), [], "f32[N, C=3]"),
    ],
)
def test_inferred_types(op: Op, inputs: list[TensorType], want: str) -> None:
    assert str(infer(op, *inputs)) == want


@pytest.mark.parametrize(
    ("op", "inputs", "part"),
    [
        (Conv2d(weight=Param("gone")), [MAPS], "parameter @gone is not in the graph"),
        (Conv2d(weight=Param("linear")), [MAPS], "@linear has 2 axes, 4 are needed"),
        (Conv2d(weight=Param("empty")), [MAPS], "@empty (0, 2, 3, 3) is empty"),
        (Conv2d(weight=Param("conv"), groups=2), [MAPS], "with 2 groups does not fit 2 channels"),
        (Conv2d(weight=Param("conv"), stride=(0, 1)), [MAPS], "stride (0, 1)"),
        (Conv2d(weight=Param("conv"), bias=TWO), [MAPS], "bias @two has 2 values for 4 channels"),
        (Conv2d(weight=Param("conv")), [MAPS.resized(H=2)], "larger than the padded input"),
        (Conv2d(weight=Param("conv")), [FEATURES], "takes feature maps"),
        (Linear(weight=Param("linear")), [MAPS], "takes features, got"),
        (Linear(weight=Param("linear")), [FEATURES.resized(C=7)], "takes 6 features, got 7"),
        (batch_norm(NEGATIVE), [MAPS], "variance @negative plus eps 1e-05 is not positive"),
        (batch_norm(TWO, eps=math.nan), [MAPS], "plus eps nan is not positive"),
        (batch_norm(TWO, eps=math.inf), [MAPS], "plus eps inf is not positive"),
        (batch_norm(TWO, weight=Param("four")), [MAPS], "@four has 4 values for 2 channels"),
        (AvgPool2d(kernel=(2, 2), stride=(2, 0)), [MAPS], "stride (2, 0)"),
        (MaxPool2d(kernel=(2, 2), stride=(2, 2), padding=(2, 0)), [MAPS], "more than half the kernel"),
        (MaxPool2d(kernel=(9, 2), stride=(2, 2)), [MAPS], "larger than the padded input"),
        (Add(), [MAPS, MAPS.resized(C=3)], "shapes differ"),
        (Scale(factor=math.inf), [MAPS], "factor is not finite"),
        (lif(decay=1.2), [MAPS], "decay is 1.2, not inside [0, 1]"),
        (lif(decay=Param("big")), [MAPS], "decay is 1.5"),
        (lif(decay=math.nan), [MAPS], "decay is nan"),
        (lif(threshold=1e39), [MAPS], "threshold is not finite"),
        (lif(leak_bias=math.nan), [MAPS], "leak_bias is not finite"),
        (lif(), [IMAGE], "takes a sequence over time"),
        (Lif(decay=0.5, threshold=1.0, surrogate=Surrogate(width=0.0)), [MAPS], "width is 0.0"),
        (Lif(decay=0.5, threshold=1.0, surrogate=Surrogate(scale=math.nan)), [MAPS], "must be finite"),
        (Li(decay=-0.1), [FEATURES], "decay is -0.1"),
        (Readout(kind=Reading.LAST), [IMAGE], "reads a sequence over time"),
        (Encode(kind=Encoding.DIRECT, timesteps=0), [IMAGE], "timesteps is 0"),
        (Encode(kind=Encoding.DIRECT, timesteps=2), [MAPS], "without time"),
        (Encode(kind=Encoding.DIRECT, timesteps=2), [IMAGE.of(DType.SPIKE)], "got spikes"),
        (Encode(kind=Encoding.DIRECT, timesteps=2, seed=1), [IMAGE], "with 1 of seed and mask"),
        (Encode(kind=Encoding.BERNOULLI, timesteps=2), [IMAGE], "with 0 of seed and mask"),
        (Encode(kind=Encoding.BERNOULLI, timesteps=4, mask=Param("flat_mask")), [IMAGE], "has shape"),
        (Encode(kind=Encoding.BERNOULLI, timesteps=3, mask=Param("mask")), [IMAGE], "has shape"),
        (Input(shape=(1, 2), dtype=DType.F32, axes="CN"), [], "input axes are 'CN'"),
        (Input(shape=(1,), dtype=DType.F32, axes="NC"), [], "1 extents for 2 axes"),
        (Input(shape=("N", "C"), dtype=DType.F32, axes="NC"), [], "only N may be"),
        (Input(shape=("N", 0), dtype=DType.F32, axes="NC"), [], "axis C is 0"),
    ],
)
def test_refusals(op: Op, inputs: list[TensorType], part: str) -> None:
    with pytest.raises(CompileError) as caught:
        infer(op, *inputs)
    assert part in caught.value.message
    assert str(caught.value).startswith("net.py:7: error: node: ")


def test_checks_do_not_allocate_what_the_text_says() -> None:
    assert infer(lif(), MAPS.resized(C=10**15)).size("C") == 10**15


def test_parameter_names_in_field_order() -> None:
    assert parameter_names(batch_norm(Param("v"))) == ("two", "two", "two", "v")
    assert parameter_names(lif(decay=Param("d"), leak_bias=Param("l"))) == ("d", "l")


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 12),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 5),
    padding=st.integers(0, 3),
    ceil_mode=st.booleans(),
)
def test_window_extent_is_torchs_pooling(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> None:
    assume(2 * padding <= kernel)
    x = torch.zeros(1, 1, size, 1)
    pool = torch.nn.MaxPool2d((kernel, 1), (stride, 1), (padding, 0), ceil_mode=ceil_mode)
    extent = window_extent(size, kernel, stride, padding, ceil_mode)
    if extent > 0:
        assert pool(x).shape[2] == extent
    else:
        with pytest.raises(RuntimeError, match="too small"):
            pool(x)
