"""The instruction set: each instruction is declared once; encoder, decoder, assembler and text follow.

A word has 256 bits, little-endian: the opcode in the lowest 6, then the fields in the order declared, then
zeros. Enums are encoded as the position of their member.
"""

from hwmodel.isa.fields import Bits, CompareRule, LutMode, PoolKind, ResetKind
from hwmodel.isa.forward import ConvTile, FcTile, LutProgram, PoolSetup, Soma
from hwmodel.isa.movement import Halt, Instruction, Load, Signal, Store, Transfer, Wait
from hwmodel.isa.places import ENGINE_BUFFERS, GRADIENT_BUFFERS, Buffer, EngineBuffers, GradientBuffers, Part, Queue
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
from hwmodel.isa.words import OPCODE_BITS, OPCODE_OF, OPCODES, WORD_BYTES, FieldLayout, layout, mnemonic, most

NEURON_FIELDS = 9  # pre_bias, scale, bias, decay, threshold, reset_value, initial, th_l, th_r: a Soma stage's table
FP16_OVERFLOW = 65520.0  # the smallest magnitude that FP16 rounds to infinity

__all__ = [
    "ENGINE_BUFFERS",
    "FP16_OVERFLOW",
    "GRADIENT_BUFFERS",
    "NEURON_FIELDS",
    "OPCODES",
    "OPCODE_BITS",
    "OPCODE_OF",
    "WORD_BYTES",
    "AddGradient",
    "Bits",
    "Buffer",
    "CompareRule",
    "ConvTile",
    "EngineBuffers",
    "FcTile",
    "FieldLayout",
    "Grad",
    "GradConvTile",
    "GradFcTile",
    "GradientBuffers",
    "Halt",
    "HostLoss",
    "HostUpdate",
    "Instruction",
    "Load",
    "LutMode",
    "LutProgram",
    "OuterTile",
    "Part",
    "PoolKind",
    "PoolSetup",
    "Queue",
    "ResetKind",
    "SgdStep",
    "Signal",
    "Soma",
    "Store",
    "Transfer",
    "UpdateFcTile",
    "UpdateTile",
    "Wait",
    "layout",
    "mnemonic",
    "most",
]
