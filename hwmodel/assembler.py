"""Instructions as words and as text, both ways; all derived from the declarations of the instruction set."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from hwmodel.errors import CompileError, Loc
from hwmodel.isa import OPCODE_BITS, OPCODE_OF, OPCODES, WORD_BYTES, FieldLayout, Instruction, layout, mnemonic

_BY_MNEMONIC = {mnemonic(kind): kind for kind in OPCODES.values()}


def encode(stream: Iterable[Instruction]) -> npt.NDArray[np.uint8]:
    """Words of a stream. Shapes: (instructions, 32).

    Raises: CompileError for a value that its field cannot hold.
    """
    loc = Loc("instruction set")
    words = b"".join(_encode_one(instruction, loc) for instruction in stream)
    return np.frombuffer(words, np.uint8).reshape(-1, WORD_BYTES)


def _encode_one(instruction: Instruction, loc: Loc) -> bytes:
    kind = type(instruction)
    word = OPCODE_OF[kind]
    for item in layout(kind):
        value = getattr(instruction, item.name)
        number = list(item.enum).index(value) if item.enum else int(value)
        low = -(1 << item.width - 1) if item.signed else 0
        high = (1 << item.width - item.signed) - 1
        if not low <= number <= high:
            raise CompileError(
                f"{mnemonic(kind)}: {item.name} is {number}, its field holds {low} to {high}",
                loc,
                hint="larger than the instruction set can state; use fewer samples or time steps, or smaller layers",
            )
        word |= (number & (1 << item.width) - 1) << item.offset
    return word.to_bytes(WORD_BYTES, "little")


def decode(words: npt.NDArray[np.uint8], loc: Loc) -> tuple[Instruction, ...]:
    """The instructions of a stream.

    Raises: CompileError for an unknown opcode, an enum or slot out of range, or bits set beyond the fields.
    """
    if words.ndim != 2 or words.dtype != np.uint8 or words.shape[1] != WORD_BYTES:
        raise CompileError(f"a stream of shape {words.shape} is not made of {WORD_BYTES}-byte words", loc)
    return tuple(_decode_one(int.from_bytes(row.tobytes(), "little"), i, loc) for i, row in enumerate(words))


def _decode_one(word: int, index: int, loc: Loc) -> Instruction:
    opcode = word & (1 << OPCODE_BITS) - 1
    kind = OPCODES.get(opcode)
    if kind is None:
        raise CompileError(f"instruction {index}: unknown opcode {opcode}", loc)
    fields = layout(kind)
    end = fields[-1].offset + fields[-1].width
    if word >> end:
        raise CompileError(f"instruction {index}: bits set beyond the fields of {mnemonic(kind)}", loc)
    values: dict[str, object] = {}
    for item in fields:
        raw = word >> item.offset & (1 << item.width) - 1
        if item.enum is not None:
            members = list(item.enum)
            if raw >= len(members):
                raise CompileError(f"instruction {index}: {item.name} {raw} is no {item.enum.__name__}", loc)
            values[item.name] = members[raw]
        elif item.is_bool:
            values[item.name] = bool(raw)
        else:
            values[item.name] = raw - (1 << item.width) if item.signed and raw >> item.width - 1 else raw
    return kind(**values)  # type: ignore[arg-type]


def disassemble(instruction: Instruction) -> str:
    """One line of assembler text; a flag that is off is left out."""
    parts = [mnemonic(type(instruction))]
    for item in layout(type(instruction)):
        value = getattr(instruction, item.name)
        if item.is_bool:
            parts += [item.name] if value else []
        else:
            parts.append(f"{item.name}={value}")
    return " ".join(parts)


def assemble(text: str, loc: Loc | None = None) -> tuple[Instruction, ...]:
    """Instructions from assembler text, one per line; blank lines and `;` comments are skipped.

    Raises: CompileError with the line for an unknown mnemonic or field, a missing field, or a bad value.
    """
    file = loc.file if loc is not None else "<assembler>"
    stream = []
    for number, line in enumerate(text.splitlines(), 1):
        code = line.split(";")[0].split()
        if code:
            stream.append(_assemble_one(code, Loc(file, number)))
    return tuple(stream)


def _assemble_one(code: list[str], loc: Loc) -> Instruction:
    kind = _BY_MNEMONIC.get(code[0])
    if kind is None:
        raise CompileError(f"unknown instruction {code[0]!r}", loc, hint=f"known: {', '.join(_BY_MNEMONIC)}")
    fields = {item.name: item for item in layout(kind)}
    values: dict[str, object] = {name: False for name, item in fields.items() if item.is_bool}
    given: set[str] = set()
    for word in code[1:]:
        name, _, value = word.partition("=")
        item = fields.get(name)
        if item is None:
            raise CompileError(f"{code[0]} has no field {name!r}", loc, hint=f"fields: {', '.join(fields)}")
        if name in given:
            raise CompileError(f"{code[0]}: {name} is given twice", loc)
        given.add(name)
        values[name] = _parse_value(item, value, loc)
    missing = [name for name in fields if name not in values]
    if missing:
        raise CompileError(f"{code[0]} lacks {', '.join(missing)}", loc)
    instruction = kind(**values)  # type: ignore[arg-type]
    _encode_one(instruction, loc)
    return instruction


def _parse_value(item: FieldLayout, value: str, loc: Loc) -> object:
    if item.is_bool and not value:
        return True
    if item.enum is not None and value in list(item.enum):
        return item.enum(value)
    if item.enum is None and not item.is_bool and re.fullmatch(r"-?[0-9]{1,10}", value):
        return int(value)
    raise CompileError(f"{item.name}: {value!r} is not a value of this field", loc)
