"""Faults of the units put into a training program: gradients, Grad, weight gradients, the update."""

from __future__ import annotations

import pytest

from hwmodel.isa import (
    AddGradient,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    Load,
    OuterTile,
    Part,
    PoolKind,
    PoolSetup,
    ResetKind,
    SgdStep,
    Store,
    UpdateTile,
)
from tests.hwmodel.mutations import both
from tests.hwmodel.training_mutations import (
    BACKWARD,
    BE,
    DMA0,
    DMA1,
    DMA2,
    FORWARD,
    UPDATE,
    WUE,
    Case,
    change,
    digits,
    drop,
    drop_all,
    pooled,
    refusal,
    retrain,
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
        "overwrites part 3 of bank 0 of be_mask, which nothing has read",
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
    # weight gradients
    "no spikes": digits(
        drop(BACKWARD, DMA1, Load, buffer=Buffer.WU_IN), "reads bank 0 of wu_in, which nothing was written to"
    ),
    "no gradients of the sums": digits(
        drop(BACKWARD, DMA1, Load, buffer=Buffer.WU_GM), "reads bank 0 of wu_gm, which nothing was written to"
    ),
    "spikes of other steps": pooled(
        change(BACKWARD, DMA1, Load, {"t0": 1}, buffer=Buffer.WU_IN, t0=0),
        "takes 3.gradient at t 0, 2.lif3.before at 1",
    ),
    "gradients of other steps": pooled(
        change(BACKWARD, DMA1, Load, {"t0": 1}, buffer=Buffer.WU_GM, t0=0),
        "takes 3.gradient at t 1, 2.lif3.before at 0",
    ),
    "features not flat": digits(
        change(BACKWARD, DMA1, Load, {"flat": False}, buffer=Buffer.WU_IN),
        "needs s1 (3, 2, 1, 1, 6) in wu_in, finds s1 (3, 2, 1, 1, 6)",
    ),
    "steps of all samples at once": digits(
        change(BACKWARD, WUE, UpdateTile, {"nt": 4}), "needs s1 (4, 2, 6, 6, 4) in wu_in, finds s1 (3, 2, 6, 6, 4)"
    ),
    "a bias in one tile only": digits(
        change(BACKWARD, WUE, UpdateTile, {"bias": False}, accumulate=True),
        "accumulates onto bank 0 of wu_psum, which holds no such partial sums",
    ),
    "a bias from the second tile on": digits(
        change(BACKWARD, WUE, UpdateTile, {"bias": False}),
        "accumulates onto bank 0 of wu_psum, which holds no such partial sums",
    ),
    "a bias of no gradient": pooled(
        change(BACKWARD, WUE, UpdateTile, {"bias": True}, layer=1),
        "accumulates onto bank 0 of wu_psum, which holds no such partial sums",
    ),
    "the image at every step": digits(
        change(BACKWARD, BE, OuterTile, {"hold": False}),
        "needs fp16 (3, 2, 6, 6, 1) in be_in, finds fp16 (1, 2, 6, 6, 1)",
    ),
    "weight sums forgotten": digits(
        change(BACKWARD, WUE, UpdateTile, {"accumulate": False}, accumulate=True),
        "overwrites bank 0 of wu_psum, which nothing has read",
    ),
    "weight sums of an earlier block": pooled(
        change(BACKWARD, WUE, UpdateTile, {"accumulate": True}, nth=-1, accumulate=False),
        "accumulates onto bank 0 of wu_psum, which holds no such partial sums",
    ),
    "weight sums not added": digits(drop(BACKWARD, WUE, AddGradient), "stores what no unit has changed in wu_grad"),
    "bias sums not added": digits(
        drop(BACKWARD, WUE, AddGradient, part=1), "stores what no unit has changed in wu_grad"
    ),
    "other channels added": digits(
        change(BACKWARD, WUE, AddGradient, {"first": 1}, layer=2),
        "adds channels 1 to 17 of 36, not those that come next",
    ),
    "a slice added twice": digits(
        change(BACKWARD, WUE, AddGradient, {"first": 0}, nth=1, part=0, layer=2),
        "adds channels 0 to 16 of 36, not those that come next",
    ),
    "weight sums added as bias": digits(
        change(BACKWARD, WUE, AddGradient, {"part": 1}, layer=3),
        "reads part 1 of bank 0 of wu_psum, which nothing was written to",
    ),
    "a bias added as weights": digits(
        change(BACKWARD, WUE, AddGradient, {"part": 0}, part=1), "adds channels 0 to 1 of 36, not those that come next"
    ),
    "gradient sums not loaded": digits(
        drop(BACKWARD, DMA2, Load, nth=-1), "reads bank 1 of be_grad, which nothing was written to"
    ),
    "gradient sums not stored": digits(
        drop(BACKWARD, DMA2, Store), "overwrites bank 0 of wu_grad, which nothing has read"
    ),
    "gradient sums loaded from elsewhere": digits(
        change(BACKWARD, DMA2, Load, {"x0": 1}, layer=2), "stores a region of wu_grad that was not loaded from there"
    ),
    "gradient sums stored elsewhere": digits(
        change(BACKWARD, DMA2, Store, {"x0": 1}, layer=2), "stores a region of wu_grad that was not loaded from there"
    ),
    "gradient sums of the momentum": digits(
        change(BACKWARD, DMA2, Load, {"tensor": 31}), "adds to 3.weight_momentum, which is momentum"
    ),
    "gradient sums to the momentum": digits(
        both(change(BACKWARD, DMA2, Load, {"tensor": 31}), change(BACKWARD, DMA2, Store, {"tensor": 31})),
        "adds to 3.weight_momentum, which is momentum",
    ),
    "a slice of the gradient left out": digits(
        both(
            both(drop(BACKWARD, DMA2, Load, nth=-1, tensor=37), drop(BACKWARD, DMA2, Store, nth=-1, tensor=37)),
            drop(BACKWARD, WUE, AddGradient, nth=-1, layer=2, part=0),
        ),
        "2.weight_gradient is not written completely in memory 2",
    ),
    # the update
    "weights not stored in Mem 0": digits(drop(UPDATE, DMA0, Store), "3.weights is not written completely in memory 0"),
    "weights stored in only one memory": digits(
        drop(UPDATE, DMA1, Store), "3.weights is not written completely in memory 1"
    ),
    "weights of a layer in only one memory": digits(
        drop_all(UPDATE, DMA1, Store, layer=2), "2.weights is not written completely in memory 1"
    ),
    "weights stored as gradients": digits(
        change(UPDATE, DMA0, Store, {"buffer": Buffer.WU_GRAD}),
        "stores a region of wu_grad that was not loaded from there",
    ),
    "weights stored a row late": digits(
        change(UPDATE, DMA0, Store, {"x0": 1}, layer=2), "stores a region of wu_weight that was not loaded from there"
    ),
    "weights loaded from another layer": digits(
        change(UPDATE, DMA0, Load, {"tensor": 15}),
        "updates regions of 3.weight_gradient, 2.weights, 3.weight_momentum, which are not those of one parameter",
    ),
    "gradients not cleared": digits(
        drop(UPDATE, DMA2, Store, buffer=Buffer.WU_GRAD), "overwrites bank 0 of wu_grad, which nothing has read"
    ),
    "gradients of another parameter": digits(
        change(UPDATE, DMA2, Load, {"tensor": 59}), "reads x 0 to 6 of 1, and wu_grad has no halo"
    ),
    "momentum not loaded": digits(
        drop(UPDATE, DMA2, Load, buffer=Buffer.WU_MOMENTUM), "reads bank 0 of wu_momentum, which nothing was written to"
    ),
    "momentum not loaded later": digits(
        drop(UPDATE, DMA2, Load, buffer=Buffer.WU_MOMENTUM, nth=-1),
        "updates regions of 0.bias_gradient, 0.neuron, 0.weight_momentum, which are not those of one parameter",
    ),
    "momentum not stored": digits(
        drop(UPDATE, DMA2, Store, buffer=Buffer.WU_MOMENTUM), "overwrites bank 0 of wu_momentum, which nothing has read"
    ),
    "momentum not changed": digits(
        change(UPDATE, WUE, SgdStep, {"has_momentum": False}),
        "updates regions of 3.weight_gradient, 3.weights, which are not those of one parameter",
    ),
    "momentum of nothing": pooled(
        change(UPDATE, WUE, SgdStep, {"has_momentum": True}),
        "reads bank 0 of wu_momentum, which nothing was written to",
    ),
    "weights not changed": digits(drop(UPDATE, WUE, SgdStep), "stores what no unit has changed in wu_weight"),
    "no batch group": digits(change(UPDATE, WUE, SgdStep, {"batch_group": 0}), "divides by a batch group of 0"),
    "no loss scale": digits(
        change(UPDATE, WUE, SgdStep, {"inverse_loss_scale": 0}), "has a number that is not finite, or no loss scale"
    ),
    "a rate that is no number": digits(
        change(UPDATE, WUE, SgdStep, {"learning_rate": 0x7FC00000}), "has a number that is not finite, or no loss scale"
    ),
    "weights stored in the forward pass": digits(
        change(FORWARD, DMA0, Store, {"tensor": 2}, buffer=Buffer.BE_PSUM, part=1),
        "writes to 0.weights, which is weight",
    ),
    "a parameter of no tensor": digits(
        retrain(tensor="nothing"),
        "updates regions of 3.weight_gradient, 3.weights, 3.weight_momentum, which are not those of one parameter",
    ),
    "a parameter of another gradient": digits(
        retrain(gradient="2.weight_gradient"),
        "updates regions of 3.weight_gradient, 3.weights, 3.weight_momentum, which are not those of one parameter",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_reported(name: str) -> None:
    make, mutate, message = MUTATIONS[name]
    assert message in refusal(mutate(make()))
