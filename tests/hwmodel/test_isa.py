"""The instruction set: words and text of every class give the same instruction back, faults are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.assembler import assemble, decode, disassemble, encode
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import (
    OPCODE_BITS,
    OPCODES,
    WORD_BYTES,
    FieldLayout,
    Halt,
    Instruction,
    Load,
    Wait,
    layout,
    mnemonic,
)
from tests.hwmodel.instructions import any_instruction, field_range, instructions
from tests.hwmodel.samples import GOLDEN, sample

LOC = Loc("program.h2l")
KINDS = list(OPCODES.values())
NUMBERS = [(kind, item) for kind in KINDS for item in layout(kind) if item.enum is None and not item.is_bool]
ENUMS = [
    (kind, item)
    for kind in KINDS
    for item in layout(kind)
    if item.enum is not None and len(item.enum) < 1 << item.width
]


def field_id(value: object) -> str:
    return value.name if isinstance(value, FieldLayout) else mnemonic(value) if isinstance(value, type) else ""


def word(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(number.to_bytes(WORD_BYTES, "little"), np.uint8).reshape(1, WORD_BYTES)


def number_of(instruction: Instruction) -> int:
    return int.from_bytes(encode([instruction]).tobytes(), "little")


@settings(max_examples=100, deadline=None)
@given(st.lists(any_instruction(), max_size=5))
def test_decode_inverts_encode(stream: list[Instruction]) -> None:
    words = encode(stream)
    assert words.shape == (len(stream), WORD_BYTES)
    assert decode(words, LOC) == tuple(stream)


@settings(max_examples=100, deadline=None)
@given(st.lists(any_instruction(), max_size=5))
def test_assemble_inverts_disassemble(stream: list[Instruction]) -> None:
    text = "\n".join(f"  {disassemble(instruction)}  ; comment\n" for instruction in stream)
    assert assemble(text) == tuple(stream)


@pytest.mark.parametrize("kind", KINDS, ids=mnemonic)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_class_survives_both_forms(kind: type[Instruction], data: st.DataObject) -> None:
    instruction = data.draw(instructions(kind))
    assert decode(encode([instruction]), LOC) == (instruction,)
    assert assemble(disassemble(instruction)) == (instruction,)


@pytest.mark.parametrize("kind", KINDS, ids=mnemonic)
def test_fields_lie_side_by_side_behind_the_opcode(kind: type[Instruction]) -> None:
    end = OPCODE_BITS
    for item in layout(kind):
        assert item.offset == end
        end += item.width
    assert end <= 8 * WORD_BYTES


@pytest.mark.parametrize(("kind", "item"), NUMBERS, ids=field_id)
def test_a_number_outside_its_field_is_refused(kind: type[Instruction], item: FieldLayout) -> None:
    low, high = field_range(item)
    example = sample(kind)
    for value in (low - 1, high + 1):
        faulty = replace(example, **{item.name: value})
        message = f"{mnemonic(kind)}: {item.name} is {value}, its field holds {low} to {high}"
        with pytest.raises(CompileError) as fault:
            encode([example, faulty])
        assert fault.value.message == message
        with pytest.raises(CompileError) as fault:
            assemble("\n" + disassemble(faulty), Loc("file.s"))
        assert (fault.value.message, fault.value.loc) == (message, Loc("file.s", 2))


@pytest.mark.parametrize("opcode", sorted(set(range(1 << OPCODE_BITS)) - set(OPCODES)))
def test_an_unknown_opcode_is_refused(opcode: int) -> None:
    with pytest.raises(CompileError, match=f"program.h2l: error: instruction 0: unknown opcode {opcode}$"):
        decode(word(opcode), LOC)


@pytest.mark.parametrize("kind", KINDS, ids=mnemonic)
def test_surplus_bits_are_refused(kind: type[Instruction]) -> None:
    last = layout(kind)[-1]
    for bit in {last.offset + last.width, 8 * WORD_BYTES - 1}:
        words = np.concatenate([encode([Halt(layer=0)]), word(number_of(sample(kind)) | 1 << bit)])
        with pytest.raises(CompileError, match=f"instruction 1: bits set beyond the fields of {mnemonic(kind)}$"):
            decode(words, LOC)


@pytest.mark.parametrize(("kind", "item"), ENUMS, ids=field_id)
def test_a_number_that_is_no_member_is_refused(kind: type[Instruction], item: FieldLayout) -> None:
    assert item.enum is not None
    raw = len(item.enum)
    mask = (1 << item.width) - 1 << item.offset
    with pytest.raises(CompileError, match=f"instruction 0: {item.name} {raw} is no {item.enum.__name__}$"):
        decode(word(number_of(sample(kind)) & ~mask | raw << item.offset), LOC)


@pytest.mark.parametrize("shape", [(3, 31), (32,), (1, 1, 32), (0, 16)])
def test_a_stream_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CompileError, match="is not made of 32-byte words"):
        decode(np.zeros(shape, np.uint8), LOC)
    with pytest.raises(CompileError, match="is not made of 32-byte words"):
        decode(np.zeros((1, 32), np.int16), LOC)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=WORD_BYTES, max_size=WORD_BYTES))
def test_any_word_decodes_to_itself_or_is_refused(content: bytes) -> None:
    words = np.frombuffer(content, np.uint8).reshape(1, WORD_BYTES)
    try:
        stream = decode(words, LOC)
    except CompileError:
        return
    np.testing.assert_array_equal(encode(stream), words)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["halt ", "wait ", "layer=", "semaphore=", "7", "-", "٣", " ", "\n", ";", "="])))
def test_any_text_assembles_or_is_refused(parts: list[str]) -> None:
    try:
        stream = assemble("".join(parts))
    except CompileError:
        return
    assert assemble("\n".join(map(disassemble, stream))) == stream


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("jump layer=0", 1, "unknown instruction 'jump'"),
        ("halt layer=0\nwait layer=0 colour=1", 2, "wait has no field 'colour'"),
        ("; nothing\n\nwait layer=0", 3, "wait lacks semaphore"),
        ("wait layer=0 semaphore=one", 1, "semaphore: 'one' is not a value of this field"),
        ("wait layer=0 semaphore", 1, "semaphore: '' is not a value of this field"),
        ("wait layer=0 semaphore=" + "9" * 5000, 1, "is not a value of this field"),
        ("wait layer=0 layer=0 semaphore=0", 1, "wait: layer is given twice"),
        (
            "lut_program layer=0 w_bank=0 mode=max rows=1 groups=0 cols=1 taps=9 inputs=1 first_piece=0",
            1,
            "mode: 'max' is not a value",
        ),
        ("lut_program layer=0 w_bank=0 mode=conv rows=1 groups=0 cols=1", 1, "lut_program lacks taps, inputs, first"),
        (
            "load layer=0 buffer=w bank=0 tensor=2 t0=0 nt=1 n0=0 nn=1 y0=0 h=9 x0=0 w=4 c0=0 nc=2",
            1,
            "load lacks part",
        ),
    ],
)
def test_faulty_text_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(CompileError) as fault:
        assemble(text, Loc("file.s"))
    assert message in fault.value.message
    assert fault.value.loc == Loc("file.s", line)


@pytest.mark.parametrize(("instruction", "text"), GOLDEN, ids=[mnemonic(type(i)) for i, _ in GOLDEN])
def test_text_of_each_class(instruction: Instruction, text: str) -> None:
    assert disassemble(instruction) == text
    assert assemble(text) == (instruction,)


def test_words_are_packed_from_the_lowest_bit() -> None:
    # opcode 4, then layer 3 in ten bits, then semaphore 5 in twelve
    assert number_of(Wait(layer=3, semaphore=5)) == 4 | 3 << 6 | 5 << 16
    # y0 = -1 is all ones in its 20 bits
    y0 = next(item for item in layout(Load) if item.name == "y0")
    assert number_of(sample(Load)) >> y0.offset & 0xFFFFF == 0xFFFFF
