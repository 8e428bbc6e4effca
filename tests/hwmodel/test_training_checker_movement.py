"""Faults of order and of data movement put into a training program: the host, queues, semaphores, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwmodel.isa import (
    AddGradient,
    Buffer,
    Grad,
    GradConvTile,
    HostLoss,
    HostUpdate,
    Load,
    OuterTile,
    PoolSetup,
    SgdStep,
    Signal,
    Soma,
    Store,
    UpdateFcTile,
    UpdateTile,
    Wait,
)
from hwmodel.program import Format, Program, Role
from tests.hwmodel.mutations import retable
from tests.hwmodel.training_mutations import (
    BACKWARD,
    BE,
    DMA0,
    DMA1,
    DMA2,
    FE,
    FORWARD,
    HOST,
    OVERLAP,
    UPDATE,
    WUE,
    Case,
    before,
    change,
    digits,
    drop,
    drop_all,
    move,
    other_semaphore,
    pooled,
    refusal,
    repeat,
    retable_all,
    split,
    to_queue,
    without_queue,
)


def _without_update(program: Program) -> Program:
    assert program.training is not None
    return replace(program, training=replace(program.training, phases={**program.phases, UPDATE: {}}))


MUTATIONS: dict[str, Case] = {
    # the host
    "no signal of the host": digits(drop(BACKWARD, HOST, Signal), "deadlock: dma1[0] for semaphore 6"),
    "no signal of the host beside the next sub-batch": digits(
        drop(OVERLAP, HOST, Signal), "deadlock: be[21] for semaphore 6"
    ),
    "nobody waits for the host": digits(drop(BACKWARD, DMA1, Wait), "races with a write of host[0]"),
    "no loss": digits(drop(BACKWARD, HOST, HostLoss), "reads what was not written"),
    "loss of the weights": digits(change(BACKWARD, HOST, HostLoss, {"output": 2}), "takes weight to loss_gradient"),
    "loss to a gradient": digits(change(BACKWARD, HOST, HostLoss, {"gradient": 25}), "takes output to gradient"),
    "loss to the output": digits(change(BACKWARD, HOST, HostLoss, {"gradient": 19}), "takes output to output"),
    "loss of no tensor": digits(change(BACKWARD, HOST, HostLoss, {"output": 999}), "there are 64 tensors"),
    "loss to no tensor": digits(change(BACKWARD, HOST, HostLoss, {"gradient": 999}), "there are 64 tensors"),
    "loss of another sub-batch": digits(
        change(BACKWARD, HOST, HostLoss, {"output": 19}), "takes 3.lif5 to loss_gradient of another sub-batch or shape"
    ),
    "loss in an engine": digits(to_queue(BACKWARD, HOST, HostLoss, BE), "only the host does this"),
    "update of an activation": split(
        change(UPDATE, HOST, HostUpdate, {"weight": 1}),
        "updates 0.lif2 by 2.weight_gradient, which are not of one parameter",
    ),
    "update by another's gradient": split(
        change(UPDATE, HOST, HostUpdate, {"gradient": 28}),
        "updates 2.weights by 1.weight_gradient, which are not of one parameter",
    ),
    "update of no tensor": split(change(UPDATE, HOST, HostUpdate, {"weight": 999}), "there are 42 tensors"),
    "update in a memory's queue": split(to_queue(UPDATE, HOST, HostUpdate, DMA2), "only the host does this"),
    "a parameter without update": split(
        drop(UPDATE, HOST, HostUpdate), "2.weight_gradient is not written completely in memory 2"
    ),
    "update of a convolution before its time": split(
        before(BACKWARD, HOST, HostUpdate(layer=1, gradient=28, weight=12)), "writes to 1.weights, which is weight"
    ),
    # queues
    "gradient tile in the Forward Engine": digits(
        to_queue(BACKWARD, BE, GradConvTile, FE), "only the Backward Engine does this"
    ),
    "grad in the Weight Update Engine": digits(to_queue(BACKWARD, BE, Grad, WUE), "only the Backward Engine does this"),
    "outer tile in the Weight Update Engine": digits(
        to_queue(BACKWARD, BE, OuterTile, WUE), "only the Backward Engine does this"
    ),
    "update tile in the Backward Engine": digits(
        to_queue(BACKWARD, WUE, UpdateTile, BE), "only the Weight Update Engine does this"
    ),
    "linear update in the Backward Engine": digits(
        to_queue(BACKWARD, WUE, UpdateFcTile, BE), "only the Weight Update Engine does this"
    ),
    "SGD in the Backward Engine": digits(to_queue(UPDATE, WUE, SgdStep, BE), "only the Weight Update Engine does this"),
    "adder in the Forward Engine": digits(to_queue(BACKWARD, WUE, AddGradient, FE), "fe has no adder for gradients"),
    "adder in the host": digits(to_queue(BACKWARD, WUE, AddGradient, HOST), "host has no adder for gradients"),
    "adder of the other engine": digits(
        to_queue(BACKWARD, WUE, AddGradient, BE), "races on bank 0 of be_psum with a write of dma1[1]"
    ),
    "gradient store to Mem 0": digits(to_queue(BACKWARD, DMA2, Store, DMA0), "3.weight_gradient stands in memory 2"),
    "gradient load from Mem 1": digits(to_queue(BACKWARD, DMA2, Load, DMA1), "3.weight_gradient stands in memory 2"),
    "kept load from Mem 0": digits(to_queue(BACKWARD, DMA1, Load, DMA0), "loss_gradient stands in memory 1"),
    "no Weight Update Engine": digits(without_queue(BACKWARD, WUE), "deadlock: dma1[74] for semaphore 7"),
    "no queue of Mem 2": digits(without_queue(OVERLAP, DMA2), "deadlock: be[93] for semaphore 6"),
    "nothing to update": digits(_without_update, "3.weight_gradient is not written completely in memory 2"),
    # semaphores
    "a second writer of a semaphore": digits(
        before(BACKWARD, HOST, Signal(layer=0, semaphore=2)), "host uses this semaphore too"
    ),
    "a second reader of a semaphore": digits(
        before(BACKWARD, HOST, Wait(layer=0, semaphore=0)), "deadlock: host[0] for semaphore 0"
    ),
    "a signal to another queue": digits(other_semaphore(BACKWARD, WUE, Signal, 0), "be uses this semaphore too"),
    "a wait for another queue": digits(other_semaphore(BACKWARD, WUE, Wait, 9), "deadlock: dma1[74] for semaphore 7"),
    # what the forward pass keeps
    "mask not stored": digits(
        drop(FORWARD, DMA0, Store, buffer=Buffer.MASK, part=1),
        "overwrites part 1 of bank 0 of mask, which nothing has read",
    ),
    "membranes not stored": digits(
        drop(FORWARD, DMA0, Store, buffer=Buffer.PSUM, part=1),
        "overwrites part 1 of bank 0 of psum, which nothing has read",
    ),
    "first spikes not stored": digits(
        drop(FORWARD, DMA0, Store, buffer=Buffer.S_OUT, part=1),
        "overwrites part 1 of bank 0 of s_out, which nothing has read",
    ),
    "spikes not stored": digits(
        drop(FORWARD, DMA0, Store, buffer=Buffer.S_OUT, part=0), "overwrites bank 0 of s_out, which nothing has read"
    ),
    "winners not stored": pooled(
        drop(FORWARD, DMA0, Store, part=3), "overwrites part 3 of bank 0 of mask, which nothing has read"
    ),
    "mask not stored beside a backward pass": digits(
        drop(OVERLAP, DMA0, Store, buffer=Buffer.MASK, part=1),
        "overwrites part 1 of bank 0 of mask, which nothing has read",
    ),
    "all masks of a layer not stored": digits(
        drop_all(FORWARD, DMA0, Store, buffer=Buffer.MASK, layer=3),
        "part 1 of bank 0 of mask is written, and never read",
    ),
    "nothing kept": digits(
        change(FORWARD, FE, Soma, {"keep": False}), "reads part 1 of bank 0 of s_out, which nothing was written to"
    ),
    "first spikes not kept": digits(
        change(FORWARD, FE, Soma, {"keep_s1": False}), "reads part 1 of bank 0 of s_out, which nothing was written to"
    ),
    "first membranes not kept": digits(
        change(FORWARD, FE, Soma, {"keep_m1": False}), "reads part 1 of bank 0 of psum, which nothing was written to"
    ),
    "second membranes not kept": digits(
        change(FORWARD, FE, Soma, {"keep_m2": False}), "reads part 2 of bank 0 of psum, which nothing was written to"
    ),
    "membranes kept of no neuron": digits(
        change(FORWARD, BE, Soma, {"keep_m2": True}), "keeps the membrane potentials of neuron 2, which does not fire"
    ),
    "mask stored over its neighbour": digits(
        change(FORWARD, DMA0, Store, {"x0": 3}, buffer=Buffer.MASK, part=1, layer=1, x0=4),
        "writes a part of 1.mask0 again",
    ),
    "winners stored twice": pooled(repeat(FORWARD, DMA0, Store, part=3), "writes a part of 0.winners again"),
    "spikes stored as mask": digits(
        change(FORWARD, DMA0, Store, {"buffer": Buffer.S_OUT}, buffer=Buffer.MASK, part=1, layer=1),
        "overwrites part 1 of bank 0 of mask, which nothing has read",
    ),
    "membranes packed without mask": digits(
        change(FORWARD, DMA0, Store, {"buffer": Buffer.STATE}, buffer=Buffer.PSUM, part=1),
        "packs what stands in state, which has no mask",
    ),
    "membranes packed by no mask": digits(
        change(FORWARD, DMA0, Store, {"part": 0, "buffer": Buffer.BE_M}, buffer=Buffer.BE_PSUM, part=1),
        "packs what stands in be_m, which has no mask",
    ),
    "mask as numbers": digits(retable_all("1.mask0", format=Format.FP16), "stores s1 to 1.mask0, which is fp16"),
    "overlapping windows of a maximum": pooled(
        change(FORWARD, FE, PoolSetup, {"kernel_h": 3}), "2 windows of slot 1 do not lie side by side over 4"
    ),
    # tensors
    "two kept tensors share bytes": digits(move("1.mask0", "1.spikes0"), "reads what was not written"),
    "gradient onto what was kept": digits(move("1.gradient", "1.membrane0"), "reads what was not written"),
    "gradient onto the gradient before it": digits(move("1.gradient", "2.gradient"), "reads what was not written"),
    "gradient onto weights": digits(move("1.gradient", "1.weights"), "constant 1.weights shares bytes with 1.gradient"),
    "loss onto the output": digits(move("loss_gradient", "3.lif5"), "reads what was not written"),
    "kept onto an input of the update": digits(move("1.mask0", "0.lif1"), "reads what was not written"),
    "gradient onto the input": digits(move("1.gradient", "input"), "reads what was not written"),
    "accumulators share bytes": digits(move("3.weight_gradient", "2.weight_gradient"), "reads what was not written"),
    "an accumulator beside samples": digits(
        retable("3.weight_gradient", memory=0), "tensor 3.weight_gradient accumulates in memory 0, must stand in 2"
    ),
    "an accumulator that is kept": digits(
        retable("3.weight_gradient", role=Role.KEPT), "3.weight_gradient is no tensor of weight gradients"
    ),
    "kept as if it were there": digits(
        retable_all("1.mask0", role=Role.MOMENTUM), "tensor 1.mask0 accumulates in memory 0, must stand in 2"
    ),
    "kept as a constant": digits(retable_all("1.mask0", role=Role.WEIGHT), "constant 1.mask0 is s1, must be fp16"),
    "a view of other bytes": digits(
        retable("1.mask0.before", address=0), "tensor 1.mask0.before does not show the bytes of 1.mask0"
    ),
    "a view of another format": digits(
        retable("1.membrane0.before", format=Format.FP16),
        "tensor 1.membrane0.before does not show the bytes of 1.membrane0",
    ),
    "a view of another size": digits(
        retable("1.mask0.before", shape=(3, 2, 6, 6, 3)), "tensor 1.mask0.before does not show the bytes of 1.mask0"
    ),
    "a view of another role": digits(
        retable("1.mask0.before", role=Role.GRADIENT), "tensor 1.mask0.before does not show the bytes of 1.mask0"
    ),
    "a view of another tensor": digits(
        retable("1.mask0.before", view_of="1.spikes0"), "tensor 1.mask0.before does not show the bytes of 1.spikes0"
    ),
    "a view of a view": digits(
        retable("1.mask0.before", view_of="1.spikes0.before"),
        "tensor 1.mask0.before is a view of 1.spikes0.before, which is no tensor of its own",
    ),
    "a view of nothing": digits(
        retable("1.mask0.before", view_of="nothing"),
        "tensor 1.mask0.before is a view of nothing, which is no tensor of its own",
    ),
    "a view in Mem 2": digits(
        retable("1.mask0.before", memory=2), "tensor 1.mask0.before shows 1.mask0 in another memory"
    ),
    "a view in the near memory": digits(retable("1.mask0.before", memory=0), "1.mask0.before stands in memory 0"),
    "a mirrored gradient": digits(
        retable("1.gradient", mirrored=True), "tensor 1.gradient is mirrored, but no constant"
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_reported(name: str) -> None:
    make, mutate, message = MUTATIONS[name]
    assert message in refusal(mutate(make()))
