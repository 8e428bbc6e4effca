"""Tiles of a convolution's gradient, and engines that count them, for the tests of time."""

from __future__ import annotations

from dataclasses import replace

from hwmodel.config import H2LearnConfig, load_config
from hwmodel.isa import GradConvTile

PRESET = load_config("h2learn")


def backward(**changes: object) -> H2LearnConfig:
    """The preset with another Backward Engine."""
    return replace(PRESET, backward=replace(PRESET.backward, **changes))  # type: ignore[arg-type]


def grad_tile(**changes: object) -> GradConvTile:
    """A tile of the preset's size in the middle of a map, 3 x 3 kernel; one sample and step."""
    fields = {
        **{"layer": 1, "src_bank": 0, "w_bank": 0, "dst_bank": 0, "accumulate": False, "kernel_h": 3, "kernel_w": 3},
        **{"stride_h": 1, "stride_w": 1, "h": 8, "w": 8, "top": 2, "left": 2, "nt": 1, "nn": 1, "rows": 16, "cols": 64},
        **{"out_sparsity": True, "mask_part": 1, **changes},
    }
    return GradConvTile(**fields)  # type: ignore[arg-type]
