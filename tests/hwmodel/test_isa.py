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
    Buffer,
    CompareRule,
    ConvTile,
    FcTile,
    FieldLayout,
    Halt,
    Instruction,
    Load,
    LutMode,
    LutProgram,
    PoolKind,
    PoolSetup,
    ResetKind,
    Signal,
    Soma,
    Store,
    Wait,
    layout,
    mnemonic,
)
from tests.hwmodel.instructions import any_instruction, field_range, instructions

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
        ("lut_program layer=0 w_bank=0 mode=max rows=1 groups=0 cols=1", 1, "mode: 'max' is not a value"),
    ],
)
def test_faulty_text_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(CompileError) as fault:
        assemble(text, Loc("file.s"))
    assert message in fault.value.message
    assert fault.value.loc == Loc("file.s", line)


REGION = {"t0": 0, "nt": 10, "n0": 0, "nn": 4, "y0": -1, "h": 10, "x0": -1, "w": 10, "c0": 64, "nc": 64}
GOLDEN: list[tuple[Instruction, str]] = [
    (
        Load(layer=3, buffer=Buffer.S_IN, bank=1, tensor=7, flat=False, **REGION),
        "load layer=3 buffer=s_in bank=1 tensor=7 t0=0 nt=10 n0=0 nn=4 y0=-1 h=10 x0=-1 w=10 c0=64 nc=64",
    ),
    (
        Store(layer=3, buffer=Buffer.BE_OUT, bank=0, tensor=8, flat=True, **REGION),
        "store layer=3 buffer=be_out bank=0 tensor=8 t0=0 nt=10 n0=0 nn=4 y0=-1 h=10 x0=-1 w=10 c0=64 nc=64 flat",
    ),
    (Signal(layer=3, semaphore=2), "signal layer=3 semaphore=2"),
    (Wait(layer=1023, semaphore=4095), "wait layer=1023 semaphore=4095"),
    (
        LutProgram(layer=3, w_bank=1, mode=LutMode.CONV, rows=64, groups=0, cols=16),
        "lut_program layer=3 w_bank=1 mode=conv rows=64 groups=0 cols=16",
    ),
    (
        ConvTile(
            layer=3,
            src_bank=1,
            w_bank=1,
            dst_bank=0,
            accumulate=True,
            kernel_h=3,
            kernel_w=3,
            stride_h=1,
            stride_w=1,
            h=8,
            w=8,
            nt=10,
            nn=4,
            rows=64,
            cols=16,
            first_piece=0,
            tap_row0=0,
            tap_rows=3,
            hold=False,
            in_sparsity=False,
            out_sparsity=False,
        ),
        "conv_tile layer=3 src_bank=1 w_bank=1 dst_bank=0 accumulate kernel_h=3 kernel_w=3 stride_h=1 stride_w=1 "
        "h=8 w=8 nt=10 nn=4 rows=64 cols=16 first_piece=0 tap_row0=0 tap_rows=3",
    ),
    (
        FcTile(
            layer=4,
            src_bank=0,
            w_bank=0,
            dst_bank=1,
            accumulate=False,
            groups=3,
            inputs=576,
            rows=64,
            cols=10,
            nt=10,
            nn=4,
            hold=True,
        ),
        "fc_tile layer=4 src_bank=0 w_bank=0 dst_bank=1 groups=3 inputs=576 rows=64 cols=10 nt=10 nn=4 hold",
    ),
    (
        PoolSetup(
            layer=3,
            slot=2,
            kernel_h=3,
            kernel_w=3,
            stride_h=2,
            stride_w=2,
            out_h=4,
            out_w=4,
            top=-1,
            left=0,
            limit_h=9,
            limit_w=9,
            include_pad=True,
        ),
        "pool_setup layer=3 slot=2 kernel_h=3 kernel_w=3 stride_h=2 stride_w=2 out_h=4 out_w=4 top=-1 left=0 "
        "limit_h=9 limit_w=9 include_pad",
    ),
    (
        Soma(
            layer=3,
            psum_bank=0,
            neuron_bank=0,
            out_bank=0,
            nt=10,
            nn=4,
            h=8,
            w=8,
            cols=16,
            present1=True,
            reset1=ResetKind.HARD,
            compare1=CompareRule.GE,
            fire1=True,
            pre_bias1=False,
            scale1=True,
            bias1=True,
            present2=True,
            reset2=ResetKind.SOFT,
            compare2=CompareRule.GT,
            fire2=True,
            scale2=False,
            bias2=False,
            pool1=PoolKind.NONE,
            pool2=PoolKind.AVG,
            state_in=True,
            state_out=False,
        ),
        "soma layer=3 psum_bank=0 neuron_bank=0 out_bank=0 nt=10 nn=4 h=8 w=8 cols=16 present1 reset1=hard "
        "compare1=ge fire1 scale1 bias1 present2 reset2=soft compare2=gt fire2 pool1=none pool2=avg state_in",
    ),
    (Halt(layer=0), "halt layer=0"),
]


def sample(kind: type[Instruction]) -> Instruction:
    return next(instruction for instruction, _ in GOLDEN if type(instruction) is kind)


@pytest.mark.parametrize(("instruction", "text"), GOLDEN, ids=[mnemonic(type(i)) for i, _ in GOLDEN])
def test_text_of_each_class(instruction: Instruction, text: str) -> None:
    assert disassemble(instruction) == text
    assert assemble(text) == (instruction,)


def test_words_are_packed_from_the_lowest_bit() -> None:
    # opcode 4, then layer 3 in ten bits, then semaphore 5 in twelve
    assert number_of(Wait(layer=3, semaphore=5)) == 4 | 3 << 6 | 5 << 16
    # y0 = -1 is all ones in its 16 bits
    y0 = next(item for item in layout(Load) if item.name == "y0")
    assert number_of(sample(Load)) >> y0.offset & 0xFFFF == 0xFFFF
