"""Opcodes, and where each field lies in its word; both follow from the declarations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import get_args, get_type_hints

from hwmodel.isa.forward import ConvTile, FcTile, LutProgram, PoolSetup, Soma
from hwmodel.isa.movement import Halt, Instruction, Load, Signal, Store, Wait
from hwmodel.isa.training import (
    AddGradient,
    Grad,
    GradConvTile,
    GradFcTile,
    HostLoss,
    HostUpdate,
    OuterTile,
    SgdStep,
    UpdateFcTile,
    UpdateTile,
)

WORD_BYTES = 32
OPCODE_BITS = 6

OPCODES: dict[int, type[Instruction]] = {
    1: Load,
    2: Store,
    3: Signal,
    4: Wait,
    5: LutProgram,
    6: ConvTile,
    7: FcTile,
    8: PoolSetup,
    9: Soma,
    10: Halt,
    11: GradConvTile,
    12: GradFcTile,
    13: Grad,
    14: UpdateTile,
    15: UpdateFcTile,
    16: OuterTile,
    17: AddGradient,
    18: SgdStep,
    19: HostLoss,
    20: HostUpdate,
}
OPCODE_OF = {kind: code for code, kind in OPCODES.items()}


@dataclass(frozen=True, slots=True)
class FieldLayout:
    """Where a field lies in the word, and how it is read."""

    name: str
    offset: int
    width: int
    signed: bool
    enum: type[StrEnum] | None
    is_bool: bool


def _layout(kind: type[Instruction]) -> tuple[FieldLayout, ...]:
    fields = []
    offset = OPCODE_BITS
    for name, hint in get_type_hints(kind, include_extras=True).items():
        arguments = get_args(hint)
        enum = hint if not arguments and issubclass(hint, StrEnum) else None
        if arguments:
            width, signed = arguments[1].width, arguments[1].signed
        else:
            width, signed = (max(1, (len(enum) - 1).bit_length()) if enum else 1), False
        fields.append(FieldLayout(name, offset, width, signed, enum, hint is bool))
        offset += width
    assert offset <= WORD_BYTES * 8, kind
    return tuple(fields)


_LAYOUTS = {kind: _layout(kind) for kind in OPCODES.values()}


def layout(kind: type[Instruction]) -> tuple[FieldLayout, ...]:
    """The fields of an instruction class, derived from its annotations."""
    return _LAYOUTS[kind]


def most(kind: type[Instruction], name: str) -> int:
    """The largest number that a field states."""
    item = next(item for item in layout(kind) if item.name == name)
    return (1 << item.width - item.signed) - 1


def mnemonic(kind: type[Instruction]) -> str:
    """The assembler's name of an instruction class."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
