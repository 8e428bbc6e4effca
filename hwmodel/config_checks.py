"""Sizes of a configuration that must fit each other, and what the functional engines can execute."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hwmodel.isa import Buffer

if TYPE_CHECKING:
    from hwmodel.config import H2LearnConfig

MOST_LUT_ROWS = 64  # PE rows that the functional Forward Engine can look up at once


def check_structure(config: H2LearnConfig, faults: list[str]) -> None:
    """Sizes that must fit each other: LUTs their taps, banks at least one output of one sample and step."""
    forward, backward = config.forward, config.backward
    update = config.weight_update
    _check_luts("forward", forward.sub_luts, forward.lut_entries, "taps_per_pe", forward.taps_per_pe, faults)
    _check_luts("weight_update", update.sub_luts, update.lut_entries, "window", update.window, faults)
    for path, rows in (("forward.rows", forward.rows), ("backward.rows", backward.rows)):
        if rows & (rows - 1):
            faults.append(f"{path} is {rows}, must be a power of two, as the adder tree of a column")
    _check_balance(config, faults)
    if config.memory.count != 3:
        faults.append(f"memory.count is {config.memory.count}, the engines use 3")
    tile_bytes = config.tile.h * config.tile.w * 2
    least = {
        "forward.buffers_kb.s_in": (Buffer.S_IN, forward.rows * 3 * 3 / 8),
        "forward.buffers_kb.w": (Buffer.W, forward.rows * forward.taps_per_pe * forward.cols * 2),
        "forward.buffers_kb.psum": (Buffer.PSUM, tile_bytes * forward.cols),
        "forward.buffers_kb.s_out": (Buffer.S_OUT, tile_bytes * forward.cols / 16),
        "forward.buffers_kb.neuron": (Buffer.NEURON, 2 * 9 * 2 * forward.cols),
        "forward.buffers_kb.state": (Buffer.STATE, tile_bytes * forward.cols),
        "backward.buffers_kb.psum": (Buffer.BE_PSUM, tile_bytes * backward.cols),
        "backward.buffers_kb.s_out": (Buffer.BE_OUT, tile_bytes * backward.cols / 16),
        "backward.buffers_kb.neuron": (Buffer.BE_NEURON, 2 * 9 * 2 * backward.cols),
        "backward.buffers_kb.state": (Buffer.BE_STATE, tile_bytes * backward.cols),
    }
    for path, (buffer, needed) in least.items():
        if config.bank_bytes(buffer) < needed:
            faults.append(
                f"{path} gives a bank of {config.bank_bytes(buffer)} bytes, one tile needs {math.ceil(needed)}"
            )


def functional_fault(config: H2LearnConfig) -> str:
    """Why the functional engines cannot execute a configuration that can be timed; "" where they can.

    Their arithmetic is that of 3 sub-LUTs of 8 entries and of at most 64 PE rows in a column's adder tree.
    """
    forward = config.forward
    if (forward.sub_luts, forward.lut_entries, forward.taps_per_pe) != (3, 8, 9):
        return (
            f"forward.sub_luts x lut_entries is {forward.sub_luts} x {forward.lut_entries} with "
            f"forward.taps_per_pe {forward.taps_per_pe}; the functional engine has 3 x 8 and 9"
        )
    if forward.rows > MOST_LUT_ROWS:
        return f"forward.rows is {forward.rows}, the functional engine has at most {MOST_LUT_ROWS}"
    return ""


def _check_luts(engine: str, count: int, entries: int, what: str, taps: int, faults: list[str]) -> None:
    """A sub-LUT of 2**k entries serves k taps of the window."""
    served = count * (entries.bit_length() - 1)
    if entries & (entries - 1) or entries < 2:
        faults.append(f"{engine}.lut_entries is {entries}, must be a power of two from 2")
    elif served < taps:
        faults.append(
            f"{engine}.sub_luts x lut_entries is {count} x {entries}, which serves {served} taps of "
            f"{engine}.{what} {taps}"
        )


def _check_balance(config: H2LearnConfig, faults: list[str]) -> None:
    """A tile that a PE is ahead stands in the other bank of its tile buffer, its sums in another bank of partial sums.

    The finders of shared columns deal one list of output IDs, so that each has as many columns as the others.
    """
    backward, tile = config.backward, config.tile
    if backward.cols % backward.shared_columns:
        faults.append(
            f"backward.shared_columns is {backward.shared_columns}, must divide backward.cols {backward.cols}"
        )
    if not backward.run_ahead:
        return
    if backward.run_ahead > 1:
        faults.append(
            f"backward.run_ahead is {backward.run_ahead}, must be at most 1: a PE's tile buffer has two banks"
        )
    if str(backward.synchronise) != "tile":
        faults.append(
            f"backward.run_ahead is {backward.run_ahead}, must be 0 where backward.synchronise is "
            f"{str(backward.synchronise)!r}"
        )
    needed = (backward.run_ahead + 1) * 2 * math.ceil(tile.h * tile.w / backward.pe_group)
    if backward.pe_psum_bytes < needed:
        faults.append(
            f"backward.pe_psum_bytes is {backward.pe_psum_bytes}, needs {needed} for backward.run_ahead "
            f"{backward.run_ahead}"
        )
