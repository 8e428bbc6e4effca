"""Faults of the backward pass put into a training program: spatial gradients and Grad."""

from __future__ import annotations

import pytest

from hwmodel.isa import (
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    Load,
    Part,
    PoolKind,
    PoolSetup,
    ResetKind,
    Store,
)
from tests.hwmodel.training_mutations import (
    BACKWARD,
    BE,
    DMA1,
    Case,
    change,
    digits,
    drop,
    drop_all,
    pooled,
    refusal,
    repeat,
    split,
)

MUTATIONS: dict[str, Case] = {
    # a spatial gradient
    "no mask of the zeros": digits(
        drop(BACKWARD, DMA1, Load, buffer=Buffer.BE_IN, part=1),
        "reads part 1 of bank 0 of be_in, which nothing was written to",
    ),
    "no gradients": digits(
        drop(BACKWARD, DMA1, Load, buffer=Buffer.BE_IN, part=0), "reads bank 0 of be_in, which nothing was written to"
    ),
    "no weights": digits(
        drop(BACKWARD, DMA1, Load, buffer=Buffer.BE_W), "reads bank 0 of be_w, which nothing was written to"
    ),
    "no mask of the outputs": digits(
        drop(BACKWARD, DMA1, Load, buffer=Buffer.BE_MASK, part=1, layer=0),
        "reads part 1 of bank 0 of be_mask, which nothing was written to",
    ),
    "mask of other zeros": digits(
        change(BACKWARD, DMA1, Load, {"x0": 0}, buffer=Buffer.BE_IN, part=1),
        "takes 1.gradient_mask at x 0, 1.gradient at -1",
    ),
    "gradients one row up": digits(
        change(BACKWARD, DMA1, Load, {"y0": -2}, buffer=Buffer.BE_IN, layer=0),
        "takes 1.gradient_mask at y -1, 1.gradient at -2",
    ),
    "mask of another neuron": digits(
        change(BACKWARD, BE, GradConvTile, {"mask_part": 2}),
        "reads part 2 of bank 0 of be_mask, which nothing was written to",
    ),
    "mask of the result": digits(
        change(BACKWARD, BE, GradConvTile, {"mask_part": 0}),
        "needs s1 (3, 2, 4, 4, 4) in be_mask, finds s1 (3, 2, 2, 4, 4)",
    ),
    "mask where none is": pooled(
        change(BACKWARD, BE, GradConvTile, {"out_sparsity": True, "mask_part": 1}),
        "races on part 1 of bank 0 of be_mask with a write of dma1[29]",
    ),
    "one row lower": digits(
        change(BACKWARD, BE, GradConvTile, {"top": 3}), "takes rows 1 to 7 of gradients, finds fp16 (3, 2, 6, 6, 4)"
    ),
    "one row higher": digits(
        change(BACKWARD, BE, GradConvTile, {"top": 1}), "takes rows -1 to 5 of gradients, finds fp16 (3, 2, 6, 6, 4)"
    ),
    "one column to the right": digits(
        change(BACKWARD, BE, GradConvTile, {"left": 3}), "takes columns 1 to 7 of gradients, finds fp16 (3, 2, 6, 6, 4)"
    ),
    "one column to the left": digits(
        change(BACKWARD, BE, GradConvTile, {"left": 1}),
        "takes columns -1 to 5 of gradients, finds fp16 (3, 2, 6, 6, 4)",
    ),
    "behind all gradients": digits(
        change(BACKWARD, BE, GradConvTile, {"top": -1000}),
        "takes rows -1002 to -996 of gradients, finds fp16 (3, 2, 6, 6, 4)",
    ),
    "another stride": digits(
        change(BACKWARD, BE, GradConvTile, {"stride_h": 2}),
        "takes rows 0 to 3 of gradients, finds fp16 (3, 2, 6, 6, 4)",
    ),
    "a larger kernel": digits(
        change(BACKWARD, BE, GradConvTile, {"kernel_w": 5}),
        "takes columns -2 to 6 of gradients, finds fp16 (3, 2, 6, 6, 4)",
    ),
    "more rows than the engine": digits(
        change(BACKWARD, BE, GradConvTile, {"rows": 5}),
        "needs fp16 (3, 2, None, None, 5) in be_in, finds fp16 (3, 2, 6, 6, 4)",
    ),
    "more columns than the engine": digits(change(BACKWARD, BE, GradFcTile, {"cols": 5}), "5 cols, the engine has 4"),
    "sums of nothing": digits(
        change(BACKWARD, BE, GradConvTile, {"accumulate": True}),
        "accumulates onto bank 0 of be_psum, which holds no such partial sums",
    ),
    "sums of another block": digits(
        change(BACKWARD, BE, GradFcTile, {"accumulate": True}, nth=-2),
        "accumulates onto bank 1 of be_psum, which holds no such partial sums",
    ),
    "sums forgotten": digits(
        change(BACKWARD, BE, GradFcTile, {"accumulate": False}, accumulate=True),
        "overwrites bank 0 of be_psum, which nothing has read",
    ),
    "one position less": digits(
        change(BACKWARD, BE, GradFcTile, {"w": 1}, w=2), "needs 1 x 4 x 4 constants, finds fp16 (1, 1, 2, 4, 4)"
    ),
    "no tile": digits(
        drop(BACKWARD, BE, GradConvTile), "needs fp16 (3, 2, 4, 4, 4) in be_psum, finds fp16 (3, 2, 2, 4, 4)"
    ),
    "no linear tile": digits(
        drop(BACKWARD, BE, GradFcTile), "needs fp16 (3, 2, 1, 1, 4) in be_psum, finds fp16 (3, 2, 1, 1, 3)"
    ),
    # Grad
    "no grad": digits(drop(BACKWARD, BE, Grad), "reads bank 0 of be_mask, which nothing was written to"),
    "no windows": digits(drop_all(BACKWARD, BE, PoolSetup), "pools with the windows of slot 2, which were not set up"),
    "overlapping windows": digits(
        change(BACKWARD, BE, PoolSetup, {"stride_w": 1}), "2 windows of slot 2 do not lie side by side over 4"
    ),
    "larger windows": digits(
        change(BACKWARD, BE, PoolSetup, {"kernel_h": 3}), "1 windows of slot 2 do not lie side by side over 2"
    ),
    "windows from the second row": digits(
        change(BACKWARD, BE, PoolSetup, {"top": 1}), "1 windows of slot 2 do not lie side by side over 2"
    ),
    "windows that end too early": digits(
        change(BACKWARD, BE, PoolSetup, {"limit_w": 3}), "2 windows of slot 2 do not lie side by side over 4"
    ),
    "windows of another layer": pooled(
        change(BACKWARD, BE, PoolSetup, {"out_h": 1}), "walks back from 2 x 2 gradients, its pooling leaves 1 x 2"
    ),
    "no neuron": digits(change(BACKWARD, BE, Grad, {"present1": False}), "has no neuron"),
    "a neuron too many": digits(
        change(BACKWARD, BE, Grad, {"present2": True}), "needs 2 x 9 x 3 constants, finds fp16 (1, 1, 1, 9, 3)"
    ),
    "a neuron too few": digits(
        change(BACKWARD, BE, Grad, {"present2": False}, present2=True),
        "needs 1 x 9 x 4 constants, finds fp16 (1, 1, 2, 9, 4)",
    ),
    "a neuron that does not fire": digits(
        change(BACKWARD, BE, Grad, {"fire1": False}), "overwrites part 1 of bank 0 of be_mask, which nothing has read"
    ),
    "another reset": digits(
        change(BACKWARD, BE, Grad, {"reset1": ResetKind.SOFT}),
        "overwrites part 1 of bank 0 of be_m, which nothing has read",
    ),
    "a hard reset": pooled(
        change(BACKWARD, BE, Grad, {"reset1": ResetKind.HARD}, reset1=ResetKind.SOFT),
        "reads part 1 of bank 0 of be_m, which nothing was written to",
    ),
    "a reset that is detached": digits(
        change(BACKWARD, BE, Grad, {"detach1": True}), "overwrites part 1 of bank 0 of be_m, which nothing has read"
    ),
    "a reset that is not": pooled(
        change(BACKWARD, BE, Grad, {"detach1": False}, detach1=True),
        "reads part 1 of bank 0 of be_m, which nothing was written to",
    ),
    "an average": pooled(
        change(BACKWARD, BE, Grad, {"pool1": PoolKind.AVG}, pool1=PoolKind.MAX),
        "part 3 of bank 0 of be_mask is written, and never read",
    ),
    "no pooling": digits(
        change(BACKWARD, BE, Grad, {"pool2": PoolKind.NONE}, pool2=PoolKind.AVG),
        "walks back from 1 x 2 gradients, its pooling leaves 2 x 4",
    ),
    "kept spikes to another part": digits(
        change(BACKWARD, DMA1, Load, {"part": 2}, buffer=Buffer.BE_OUT),
        "reads part 1 of bank 0 of be_out, which nothing was written to",
    ),
    "kept membranes not loaded": digits(
        drop(BACKWARD, DMA1, Load, buffer=Buffer.BE_M, part=1, layer=0),
        "reads part 1 of bank 0 of be_m, which nothing was written to",
    ),
    "kept membranes of other channels": digits(
        change(BACKWARD, DMA1, Load, {"c0": 3}, buffer=Buffer.BE_M, part=1, layer=2, c0=4),
        "takes 2.membrane0.before at c 3, 2.mask0.before at 4",
    ),
    "parameters of other channels": digits(
        change(BACKWARD, DMA1, Load, {"c0": 3}, buffer=Buffer.BE_NEURON, layer=2, c0=4),
        "takes 2.mask0.before at c 4, 2.neuron at 3",
    ),
    "parameters of an earlier row": digits(
        change(BACKWARD, DMA1, Load, {"y0": -1}, buffer=Buffer.BE_NEURON),
        "reads y -1 to 0 of 1, and be_neuron has no halo",
    ),
    "nothing but halo": digits(
        change(BACKWARD, DMA1, Load, {"x0": 99}, buffer=Buffer.BE_M, part=1),
        "reads x 99 to 100 of 1, and be_m has no halo",
    ),
    "winners of other channels": pooled(
        change(BACKWARD, DMA1, Load, {"c0": 1}, part=Part.WINNERS, c0=0),
        "takes 0.winners.before at c 1, 0.mask0.before at 0",
    ),
    "gradient not stored": digits(drop(BACKWARD, DMA1, Store, buffer=Buffer.BE_PSUM), "reads what was not written"),
    "gradient stored twice": digits(
        repeat(BACKWARD, DMA1, Store, buffer=Buffer.BE_PSUM), "writes a part of 3.gradient again"
    ),
    "gradient stored over its neighbour": digits(
        change(BACKWARD, DMA1, Store, {"x0": 3}, buffer=Buffer.BE_PSUM, layer=1, x0=4),
        "writes a part of 1.gradient again",
    ),
    "gradient stored a column late": digits(
        change(BACKWARD, DMA1, Store, {"x0": 1}, buffer=Buffer.BE_PSUM), "writes x 1 to 2 of 1"
    ),
    "mask of the gradient not stored": digits(
        drop(BACKWARD, DMA1, Store, buffer=Buffer.BE_MASK), "overwrites bank 0 of be_mask, which nothing has read"
    ),
    "mask of the gradient onto what was kept": digits(
        change(BACKWARD, DMA1, Store, {"tensor": 27}, buffer=Buffer.BE_MASK),
        "writes through 3.mask0.before, which is there to be read",
    ),
    "gradient state not stored": split(
        drop(BACKWARD, DMA1, Store, buffer=Buffer.BE_STATE), "reads what was not written"
    ),
    "gradient state not handed on": split(
        change(BACKWARD, BE, Grad, {"state_in": False}, state_in=True),
        "overwrites bank 0 of be_state, which nothing has read",
    ),
    "gradient state of nothing": split(
        change(BACKWARD, BE, Grad, {"state_in": True}), "reads bank 0 of be_state, which nothing was written to"
    ),
    "gradient state not left": split(
        change(BACKWARD, BE, Grad, {"state_out": False}, state_out=True),
        "reads bank 0 of be_state, which nothing was written to",
    ),
    "gradient state for nobody": split(
        change(BACKWARD, BE, Grad, {"state_out": True}), "overwrites bank 0 of be_state, which nothing has read"
    ),
    "forward state as the gradient's": split(
        change(BACKWARD, DMA1, Load, {"tensor": 4}, buffer=Buffer.BE_STATE), "0.state0 stands in memory 0"
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_reported(name: str) -> None:
    make, mutate, message = MUTATIONS[name]
    assert message in refusal(mutate(make()))
