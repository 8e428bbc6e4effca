"""The choices of spike kernels as rows and as text: which way each pass took, and what others would have cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.fused.spikes.costs import Pass, Way
from compiler.fused.spikes.geometry import Geometry
from runtime.fused.arena import Arena
from runtime.fused.spikes.choices import choices_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One pass of a layer in the last step.

    shares: of spikes, of neurons whose window is open, or of gradients that are not zero, by the way that goes by it.
    planes: where averages of spikes are read, the share of ones in each bit of their counts, of which the share is the
    sum.
    ms: measured milliseconds of each way at these shares; empty where none were measured.
    """

    layer: str
    sizes: str
    of: str
    way: str
    shares: Mapping[str, float]
    ms: Mapping[str, float]
    planes: tuple[float, ...] = ()


def explained(arena: Arena) -> list[Explained]:
    """The last choices of a module's stages, in the order in which they were made first."""
    return [
        Explained(
            layer=f"{stage}" if place == 0 else f"{stage}, layer {place}",
            sizes=_sizes(choice.layer.geometry),
            of=of.value,
            way=choice.way.value,
            shares={way.value: share for way, share in choice.shares.items() if way is not Way.LOOKUP},
            ms={way.value: 1e3 * seconds for way, seconds in choice.seconds(of).items()},
            planes=choice.planes,
        )
        for (stage, place, of), choice in choices_of(arena).items()
    ]


def explanation(arena: Arena) -> str:
    """As text, a line for each pass."""
    rows = explained(arena)
    if not rows:
        return "no layer chose a kernel: none that reads spikes in f32 on a CPU is large enough"
    lines = []
    for row in rows:
        shares = ", ".join(f"{100 * share:.1f} % {_WHAT[row.of, way]}" for way, share in row.shares.items())
        if row.planes:
            shares = " + ".join(f"{100 * share:.1f}" for share in row.planes) + " % of counts' bits"
        costs = ", ".join(f"{way} {ms:.2f}" for way, ms in row.ms.items())
        lines.append(
            f"{row.layer:24} {row.sizes:34} {row.of:16} {row.way:8} {shares}{f'; ms: {costs}' if costs else ''}"
        )
    return "\n".join(lines)


_WHAT = {
    (Pass.FORWARD.value, Way.EVENTS.value): "spikes",
    (Pass.WEIGHT_GRADIENT.value, Way.EVENTS.value): "spikes",
    (Pass.INPUT_GRADIENT.value, Way.EVENTS.value): "of gradients not zero",
    (Pass.INPUT_GRADIENT.value, Way.MASKED.value): "of windows open",
}


def _sizes(geometry: Geometry) -> str:
    if geometry.images == geometry.height == 1 and geometry.kernel == (1, 1):
        return f"{geometry.channels} -> {geometry.out_channels}, {geometry.width} rows"
    kernel = "x".join(map(str, geometry.kernel))
    stride = "" if geometry.stride == (1, 1) else f" s{geometry.stride[0]}"
    maps = f"{geometry.images} maps {geometry.height}x{geometry.width}"
    return f"{geometry.channels} -> {geometry.out_channels}, {kernel}{stride}, {maps}"
