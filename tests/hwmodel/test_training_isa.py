"""Instructions of training: words and text give the same instruction back, and their places in the word are fixed."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.assembler import assemble, decode, disassemble, encode
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import (
    OPCODE_OF,
    WORD_BYTES,
    AddGradient,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    HostLoss,
    HostUpdate,
    Instruction,
    Load,
    OuterTile,
    SgdStep,
    Store,
    UpdateFcTile,
    UpdateTile,
    layout,
    mnemonic,
)
from tests.hwmodel.instructions import field_range, instructions
from tests.hwmodel.samples import sample
from tests.hwmodel.training_programs import PROGRAMS

LOC = Loc("program.h2l")
# opcode, and bits in use: of opcode and layer 16, the others as declared
WORDS: dict[type[Instruction], tuple[int, int]] = {
    GradConvTile: (11, 16 + 3 + 1 + 6 * 10 + 2 * 16 + 16 + 3 * 12 + 1 + 2),
    GradFcTile: (12, 16 + 3 + 1 + 2 * 10 + 16 + 3 * 12),
    Grad: (13, 16 + 2 + 2 * 16 + 12 + 4 * 10 + 12 + 2 * (1 + 2 + 3 + 16) + 2 * 2 + 2),
    UpdateTile: (14, 16 + 3 + 2 + 6 * 10 + 16 + 12 + 16 + 12),
    UpdateFcTile: (15, 16 + 3 + 2 + 16 + 12 + 16 + 12),
    OuterTile: (16, 16 + 3 + 2 + 6 * 10 + 16 + 3 * 12 + 1),
    AddGradient: (17, 16 + 1 + 2 + 1 + 2 * 16),
    SgdStep: (18, 16 + 3 + 1 + 4 * 32 + 16),
    HostLoss: (19, 16 + 2 * 16),
    HostUpdate: (20, 16 + 2 * 16),
}


@pytest.mark.parametrize("kind", WORDS, ids=mnemonic)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_value_survives_words_and_text(kind: type[Instruction], data: st.DataObject) -> None:
    stream = tuple(data.draw(st.lists(instructions(kind), min_size=1, max_size=3)))
    words = encode(stream)
    assert (words.dtype, words.shape) == (np.uint8, (len(stream), WORD_BYTES))
    assert decode(words, LOC) == stream
    assert assemble("\n".join(map(disassemble, stream))) == stream


@pytest.mark.parametrize("kind", WORDS, ids=mnemonic)
def test_each_field_has_its_own_bits(kind: type[Instruction]) -> None:
    """All fields but one at 0, the one at its largest: its bits and no other are set, and they add up to the word."""
    opcode, bits = WORDS[kind]
    assert OPCODE_OF[kind] == opcode
    seen = opcode
    zero = kind(**{item.name: _least(item.enum, item.is_bool) for item in layout(kind)})  # type: ignore[arg-type]
    for item in layout(kind):
        assert item.name in {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
        largest: object = -1 if item.signed else field_range(item)[1]
        if item.enum is not None:
            largest = list(item.enum)[-1]
        elif item.is_bool:
            largest = True
        word = _number(replace(zero, **{item.name: largest})) ^ opcode
        assert word, item
        assert not word & seen & ~opcode, item
        assert word.bit_length() <= item.offset + item.width
        assert word >> item.offset << item.offset == word
        seen |= word
    last = layout(kind)[-1]
    assert last.offset + last.width == bits <= 8 * WORD_BYTES


def _least(enum: type | None, is_bool: bool) -> object:
    return next(iter(enum)) if enum is not None else False if is_bool else 0  # type: ignore[call-overload]  # an enum


def _number(instruction: Instruction) -> int:
    return int.from_bytes(encode([instruction]).tobytes(), "little")


def test_parts_of_a_bank_travel_with_loads_and_stores() -> None:
    """Behind layer, buffer (5 bits for 22 buffers) and bank: bits 22 and 23."""
    for kind in (Load, Store):
        part = next(item for item in layout(kind) if item.name == "part")
        assert (part.offset, part.width) == (6 + 10 + 5 + 1, 2)
        for value in range(4):
            moved = replace(sample(kind), part=value)  # type: ignore[call-arg]  # of Transfer
            assert _number(moved) >> 22 & 3 == value
    assert len(Buffer) == 22


@pytest.mark.parametrize(
    ("instruction", "field", "value"),
    [
        (GradConvTile, "top", -(1 << 15) - 1),
        (GradConvTile, "left", 1 << 15),
        (GradConvTile, "mask_part", 4),
        (AddGradient, "part", 4),
        (Grad, "eta1", 1 << 16),
        (SgdStep, "learning_rate", 1 << 32),
        (SgdStep, "batch_group", 1 << 16),
        (HostLoss, "output", -1),
    ],
)
def test_a_value_that_no_field_holds_is_refused(instruction: type[Instruction], field: str, value: int) -> None:
    with pytest.raises(CompileError, match=f"{mnemonic(instruction)}: {field} is {value}, its field holds"):
        encode([replace(sample(instruction), **{field: value})])


def test_compiled_streams_survive_words_and_text() -> None:
    for make in PROGRAMS:
        for streams in make().phases.values():
            for stream in streams.values():
                assert decode(encode(stream), LOC) == stream
                assert assemble("\n".join(map(disassemble, stream))) == stream
