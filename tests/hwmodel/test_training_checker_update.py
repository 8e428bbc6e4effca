"""Faults of what is trained put into a training program: weight gradients, the update, the table of parameters."""

from __future__ import annotations

import pytest

from hwmodel.isa import (
    AddGradient,
    Buffer,
    HostUpdate,
    Load,
    OuterTile,
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
    HOST,
    UPDATE,
    WUE,
    Case,
    before,
    change,
    digits,
    drop,
    drop_all,
    pooled,
    refusal,
    regroup,
    remachine,
    retrain,
    split,
)

_STEP = SgdStep(
    layer=0,
    gradient_bank=0,
    weight_bank=0,
    momentum_bank=0,
    has_momentum=False,
    learning_rate=0,
    momentum=0,
    weight_decay=0,
    inverse_loss_scale=0x3F800000,
    batch_group=1,
)

MUTATIONS: dict[str, Case] = {
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
    "a parameter of no tensor": digits(retrain(tensor="nothing"), "w4: nothing is no tensor of weight values"),
    "a parameter of an activation": digits(retrain(tensor="1.lif3"), "w4: 1.lif3 is no tensor of weight values"),
    "a parameter of another gradient": digits(
        retrain(gradient="2.weight_gradient"), "w4: 3.weight_momentum is no momentum of its gradient"
    ),
    "a parameter of no gradient": digits(
        retrain(gradient="3.gradient"), "w4: 3.gradient is no tensor of weight gradients"
    ),
    "a parameter of another momentum": digits(
        retrain(momentum="2.weight_momentum"), "w4: 2.weight_momentum is no momentum of its gradient"
    ),
    "weights as a bias": digits(retrain(is_bias=True), "w4: 3.weights is no tensor of neuron values"),
    "a parameter of another shape": digits(
        retrain(shape=(6, 3)), "parameter w4 (6, 3) does not fit 3.weights (1, 1, 1, 6, 3)"
    ),
    "a parameter of other positions": digits(retrain(positions=4), "parameter w4 (3, 6) does not fit 3.weights"),
    "a parameter of no layer": digits(retrain(layer=4), "parameter w4 (3, 6) does not fit 3.weights"),
    "a parameter twice": digits(retrain(parameter="w3"), "parameter w3 is listed twice"),
    "machines without end": digits(remachine(10**9), "more or fewer machines than 1 to 64"),
    "batch groups without end": digits(regroup(1 << 16), "more or fewer sub-batches between updates than 1 to 65535"),
    "no machines": digits(remachine(0), "more or fewer machines than 1 to 64"),
    "the host updates, and the accelerator": split(
        before(UPDATE, WUE, _STEP), "the host updates the weights of this program"
    ),
    "the accelerator updates, and the host": digits(
        before(UPDATE, HOST, HostUpdate(layer=0, gradient=30, weight=20)),
        "the host does not update the weights of this program",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_reported(name: str) -> None:
    make, mutate, message = MUTATIONS[name]
    assert message in refusal(mutate(make()))
