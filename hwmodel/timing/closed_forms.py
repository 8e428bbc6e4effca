"""Closed forms: cycles that an engine is busy with a layer, from its facts and the configuration alone.

They are the second path beside the sums over a program's instructions; stalls, fill and waits are not in them.
"""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel.config import H2LearnConfig, TileConfig
from hwmodel.program import Layer


def forward_conv_cycles(layer: Layer, config: H2LearnConfig, timesteps: int, batch: int, chunks: int = 1) -> int:
    """Closed form of a convolution on the Forward Engine; `chunks` is how often time is cut.

    ceil(Cin * ceil(k^2 / 9) / 64) * ceil(Cout / 16) * tiles * (ceil(N / 4) * T * 64 + 10 * chunks), per group.
    """
    forward = config.forward
    pieces = -(-layer.kernel[0] * layer.kernel[1] // forward.taps_per_pe)
    rows = -(-(layer.c_in // layer.groups) * pieces // forward.rows)
    columns = -(-(layer.c_out // layer.groups) // forward.cols) * layer.groups
    tiles = -(-layer.out_h // config.tile.h) * -(-layer.out_w // config.tile.w)
    per_tile = -(-batch // forward.lanes) * timesteps * config.tile.h * config.tile.w
    return rows * columns * tiles * (per_tile + forward.program_cycles * chunks)


def forward_linear_cycles(layer: Layer, config: H2LearnConfig, timesteps: int, batch: int) -> int:
    """Closed form of a linear layer on the Forward Engine.

    ceil(Cout / 16) * ceil(Cin / 192) * ceil(N / 4) * T.
    """
    forward = config.forward
    groups = -(-layer.c_in // (forward.rows * forward.sub_luts))
    return -(-layer.c_out // forward.cols) * groups * -(-batch // forward.lanes) * timesteps


def encoding_conv_cycles(layer: Layer, config: H2LearnConfig, timesteps: int, batch: int, cut: TileConfig) -> int:
    """Closed form of a dense convolution on the Backward Engine, in tiles of `cut`, which fit a PE's buffer.

    ceil(Cin / 16) * ceil(Cout / 64) * T * N * sum over tiles of (ceil(rows * row width / 4) * k^2 + pipe), per group.
    """
    backward = config.backward
    rows = -(-(layer.c_in // layer.groups) // backward.rows)
    columns = -(-(layer.c_out // layer.groups) // backward.cols) * layer.groups
    taps = layer.kernel[0] * layer.kernel[1]
    per_image = sum(
        -(-min(cut.h, layer.out_h - y) * config.tile.w // backward.pe_group) * taps + backward.pipe
        for y in range(0, layer.out_h, cut.h)
        for _ in range(0, layer.out_w, cut.w)
    )
    return rows * columns * timesteps * batch * per_image


def update_conv_cycles(
    layer: Layer,
    config: H2LearnConfig,
    timesteps: int,
    batch: int,
    channel_blocks: Sequence[int],
    cut: TileConfig,
) -> int:
    """Closed form of a convolution's weight gradients, in tiles of `cut`, whose source fits its buffer.

    `channel_blocks` are the input channels that stay on chip at once.

    N * ceil(T / 10) * ceil(Cout / 128) * H * ceil(W / 8) * sum over blocks of (ceil(k^2 * channels / 4) + 8), per
    group. Windows do not cross tiles, so W counts tile by tile.
    """
    update = config.weight_update
    columns = -(-(layer.c_out // layer.groups) // update.cols) * layer.groups
    steps = -(-timesteps // update.rows)
    windows = layer.out_h * sum(-(-min(cut.w, layer.out_w - x) // update.window) for x in range(0, layer.out_w, cut.w))
    taps = layer.kernel[0] * layer.kernel[1]
    look_ups = sum(-(-taps * channels // update.lanes) + update.program_cycles for channels in channel_blocks)
    return batch * steps * columns * windows * look_ups


def update_linear_cycles(
    layer: Layer, config: H2LearnConfig, timesteps: int, batch: int, feature_blocks: Sequence[int]
) -> int:
    """Closed form of a linear layer's weight gradients.

    ceil(T / 10) * ceil(Cout / 128) * sum over blocks of ceil(features * ceil(N / 2) / 4).
    """
    update = config.weight_update
    blocks = -(-timesteps // update.rows) * -(-layer.c_out // update.cols)
    return blocks * sum(-(-features * -(-batch // 2) // update.lanes) for features in feature_blocks)
