"""Layers whose GPU kernels the tests run: every reset, norm, pooling and surrogate at least once, tails everywhere."""

from __future__ import annotations

from compiler.fused.cuda.description import CudaLayer
from compiler.fused.gpu_launch import Extents
from compiler.fused.population import PER_CHANNEL, Activation, Norm, Population, Window
from compiler.ir.values import Compare, Reset, Surrogate, SurrogateKind


def population(timesteps: int = 5, **fields: object) -> Population:
    """Neurons with a wide surrogate; the fields replace those of the default."""
    given: dict[str, object] = {
        "decay": 0.4,
        "threshold": 0.5,
        "norm": Norm.BATCH,
        "surrogate": Surrogate(kind=SurrogateKind.RECTANGLE, width=0.7),
    }
    return Population(timesteps=timesteps, **(given | fields))  # type: ignore[arg-type]


def extents(channels: int = 37, n: int = 3, height: int = 7, width: int = 9, window: Window | None = None) -> Extents:
    """Extents of a feature map and of what the window makes of it."""
    rows, columns = (1, 1) if window is None else window.kernel
    kept = 0 if window is None else int(window.ceil)
    return Extents(
        n=n,
        height=height,
        width=width,
        out_height=(height + (rows - 1) * kept) // rows,
        out_width=(width + (columns - 1) * kept) // columns,
        channels=channels,
    )


def _pooled(
    name: str, kernel: tuple[int, int], *, average: bool, height: int = 7, ceil: bool = False, **fields: object
) -> CudaLayer:
    window = Window(kernel=kernel, average=average, exact=height % kernel[0] == 0 and 9 % kernel[1] == 0, ceil=ceil)
    timesteps = fields.pop("timesteps", 4)
    assert isinstance(timesteps, int)
    return CudaLayer(
        name=name,
        population=population(timesteps, window=window, **fields),
        extents=extents(24, height=height, window=window),
    )


def _surrogate(kind: SurrogateKind) -> CudaLayer:
    surrogate = Surrogate(kind=kind, width=0.7, scale=0.9, offset=0.05)
    return CudaLayer(
        name=kind, population=population(4, norm=Norm.NONE, surrogate=surrogate), extents=extents(10, 2, 3, 3)
    )


LAYERS = (
    CudaLayer(name="hard", population=population(), extents=extents()),
    CudaLayer(name="wide", population=population(3, norm=Norm.NONE), extents=extents(64, 5, 8, 8)),
    CudaLayer(name="features", population=population(norm=Norm.RUNNING), extents=extents(130, 7, 1, 1)),
    CudaLayer(name="few", population=population(), extents=extents(3, 1, 2, 1)),
    CudaLayer(name="soft", population=population(reset=Reset.SOFT, norm=Norm.RUNNING), extents=extents(16)),
    CudaLayer(name="delayed", population=population(reset=Reset.SOFT, reset_delay=True), extents=extents()),
    CudaLayer(name="unreset", population=population(reset=Reset.NONE, norm=Norm.NONE), extents=extents(8)),
    CudaLayer(
        name="detached",
        population=population(detach_reset=True, compare=Compare.GT, reset_value=-0.1, initial=0.2, norm=Norm.NONE),
        extents=extents(48),
    ),
    CudaLayer(name="scaled", population=population(norm=Norm.NONE, input_scale=0.6, leak_bias=0.1), extents=extents()),
    CudaLayer(name="repeated", population=population(repeated=True), extents=extents(20)),
    CudaLayer(name="repeated without norm", population=population(repeated=True, norm=Norm.NONE), extents=extents(20)),
    CudaLayer(
        name="by channel",
        population=population(
            norm=Norm.RUNNING,
            decay=PER_CHANNEL,
            threshold=PER_CHANNEL,
            reset_value=PER_CHANNEL,
            initial=PER_CHANNEL,
            leak_bias=PER_CHANNEL,
        ),
        extents=extents(),
    ),
    CudaLayer(
        name="by channel without norm",
        population=population(norm=Norm.NONE, decay=PER_CHANNEL, input_scale=PER_CHANNEL, leak_bias=PER_CHANNEL),
        extents=extents(),
    ),
    CudaLayer(name="long", population=population(20, norm=Norm.RUNNING), extents=extents(33, 2, 4, 4)),
    CudaLayer(name="beyond the registers", population=population(41, norm=Norm.NONE), extents=extents(16, 1, 2, 3)),
    CudaLayer(name="bf16", population=population(3, activation=Activation.BF16), extents=extents()),
    _pooled("average", (2, 3), average=True, height=8, norm=Norm.NONE, timesteps=3),
    _pooled("average, dropped edge", (2, 1), average=True, norm=Norm.NONE),
    _pooled("average, kept edge", (2, 2), average=True, ceil=True, timesteps=3),
    _pooled("maximum", (1, 3), average=False, norm=Norm.NONE),
    _pooled("maximum, dropped edge", (1, 2), average=False, norm=Norm.NONE),
    _pooled("maximum, kept edge", (1, 2), average=False, ceil=True, repeated=True, norm=Norm.RUNNING, timesteps=3),
    _pooled("pooled, beyond the registers", (2, 1), average=True, timesteps=21, ceil=True, norm=Norm.NONE),
    *map(_surrogate, SurrogateKind),
)
