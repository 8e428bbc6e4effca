"""The checker: every kind of fault put into a valid program is reported, and compiled programs are valid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile import compile_inference
from compiler.ir import Encoding
from hwmodel.checker import check
from hwmodel.config import H2LearnConfig, load_config
from hwmodel.errors import CompileError
from hwmodel.isa import (
    Buffer,
    ConvTile,
    FcTile,
    Halt,
    Instruction,
    Load,
    LutMode,
    LutProgram,
    PoolKind,
    PoolSetup,
    Queue,
    Signal,
    Soma,
    Store,
    Wait,
)
from hwmodel.program import Format, Program
from tests.hwmodel.mutations import (
    BE,
    DMA,
    FE,
    Mutation,
    both,
    change,
    cross_semaphores,
    drop,
    drop_all,
    move,
    place,
    put,
    retable,
    scattered_stores,
    third_user,
    to_queue,
)
from tests.hwmodel.programs import deep_program, linear_program, small_config, with_stream
from tests.strategies import RandomNetwork, networks


def refusal(program: Program) -> str:
    with pytest.raises(CompileError) as fault:
        check(program)
    assert fault.value.loc.file == program.name
    return fault.value.message.removeprefix("the program is not valid: ")


MUTATIONS: dict[str, tuple[Mutation, str]] = {
    # sizes of regions
    "load: fewer rows": (change(DMA, Load, {"h": 4}, buffer=Buffer.BE_IN), "needs a region (6, 6) of 1 steps"),
    "load: fewer columns": (change(DMA, Load, {"w": 3}, buffer=Buffer.S_IN), "needs a region"),
    "load: fewer channels": (change(DMA, Load, {"nc": 7}, buffer=Buffer.S_IN), "needs spikes of 8 channels, finds s1"),
    "load: fewer samples": (change(DMA, Load, {"nn": 1}, buffer=Buffer.S_IN), "steps and 2 samples, finds s1"),
    "load: fewer steps": (change(DMA, Load, {"nt": 1}, buffer=Buffer.S_IN), "needs a region"),
    "load: fewer output channels of weights": (
        change(DMA, Load, {"nc": 7}, buffer=Buffer.BE_W),
        "needs 9 x 2 x 8 constants, finds fp16 (1, 1, 9, 2, 7)",
    ),
    "load: fewer input channels of weights": (
        change(DMA, Load, {"w": 7}, buffer=Buffer.W),
        "needs 9 x 8 x 4 constants, finds fp16 (1, 1, 9, 7, 4)",
    ),
    "load: two rows of weights": (
        change(DMA, Load, {"h": 2}, buffer=Buffer.BE_W),
        "needs 9 x 2 x 8 constants, finds fp16 (1, 1, 2, 2, 8)",
    ),
    "load: a row of padding behind the weights": (
        change(DMA, Load, {"h": 10}, buffer=Buffer.W),
        "needs 9 x 8 x 4 constants, finds fp16 (1, 1, 10, 8, 4)",
    ),
    "load: fewer inputs of linear weights": (
        change(DMA, Load, {"w": 44}, buffer=Buffer.W, layer=3),
        "needs 1 x 45 x 4 constants, finds fp16 (1, 1, 1, 44, 4)",
    ),
    "load: weights in one row": (
        change(DMA, Load, {"flat": True, "c0": 0, "nc": 45 * 4}, buffer=Buffer.W, layer=3),
        "needs 1 x 45 x 4 constants, finds fp16 (1, 1, 1, 1, 180)",
    ),
    "load: fewer parameters": (
        change(DMA, Load, {"nc": 3}, buffer=Buffer.NEURON),
        "needs 1 x 9 x 4 constants, finds fp16 (1, 1, 1, 9, 3)",
    ),
    "load: fewer numbers of a neuron": (
        change(DMA, Load, {"w": 8}, buffer=Buffer.NEURON),
        "needs 1 x 9 x 4 constants, finds fp16 (1, 1, 1, 8, 4)",
    ),
    "load: one stage of parameters": (
        change(DMA, Load, {"h": 1}, buffer=Buffer.BE_NEURON),
        "needs 2 x 9 x 8 constants, finds fp16 (1, 1, 1, 9, 8)",
    ),
    "load: fewer inputs": (change(DMA, Load, {"nc": 9}, flat=True), "needs 45 inputs of"),
    "load: no rows": (change(DMA, Load, {"h": 0}), "h is 0"),
    "store: fewer rows": (change(DMA, Store, {"h": 1}, buffer=Buffer.BE_OUT), "stores a region"),
    "store: fewer channels": (change(DMA, Store, {"nc": 1}, buffer=Buffer.S_OUT), "stores a region"),
    # bounds
    "load: late steps": (change(DMA, Load, {"t0": 9}, buffer=Buffer.S_IN), "reads t 9 to "),
    "load: far samples": (change(DMA, Load, {"n0": 1}, buffer=Buffer.S_IN), "reads n 1 to 3 of 2"),
    "load: far channels": (change(DMA, Load, {"c0": 9}, buffer=Buffer.S_IN), "reads c 9 to 17 of 10"),
    "load: far elements": (change(DMA, Load, {"c0": 9}, flat=True), "reads elements up to 54 of 45"),
    "load: no tensor": (change(DMA, Load, {"tensor": 99}), "there are 14 tensors"),
    "store: row before": (change(DMA, Store, {"y0": -1}, buffer=Buffer.BE_OUT), "writes y -1 to 1 of 3"),
    "store: column behind": (change(DMA, Store, {"x0": 2}, buffer=Buffer.BE_OUT), "writes x 2 to 4 of 3"),
    "store: late steps": (change(DMA, Store, {"t0": 11}, buffer=Buffer.BE_OUT), "writes t 11 to "),
    "store: far channels": (change(DMA, Store, {"c0": 9}, buffer=Buffer.BE_OUT), "writes c 9 to 17 of 10"),
    "store: flat": (change(DMA, Store, {"flat": True}), "stores are boxes"),
    "store: onto weights": (change(DMA, Store, {"tensor": 2}, buffer=Buffer.BE_STATE), "writes to 0.weights"),
    "store: onto input": (change(DMA, Store, {"tensor": 0}, buffer=Buffer.BE_STATE), "writes to input, which is input"),
    "store: spikes as numbers": (change(DMA, Store, {"tensor": 4}, buffer=Buffer.BE_OUT), "stores s1 to 0.state0"),
    "load: too large for its bank": (
        change(DMA, Load, {"h": 500, "w": 500}, buffer=Buffer.S_IN),
        "bytes, a bank of s_in holds 512",
    ),
    # parts of banks
    "load: spikes to another part": (
        change(DMA, Load, {"part": 1}, buffer=Buffer.S_IN),
        "reads bank 0 of s_in, which nothing was written to",
    ),
    "load: weights to another part": (
        change(DMA, Load, {"part": 2}, buffer=Buffer.W),
        "reads bank 0 of w, which nothing was written to",
    ),
    "load: parameters to another part": (
        change(DMA, Load, {"part": 3}, buffer=Buffer.NEURON),
        "reads bank 0 of neuron, which nothing was written to",
    ),
    "load: state to another part": (
        change(DMA, Load, {"part": 1}, buffer=Buffer.BE_STATE),
        "part 1 of bank 0 of be_state is written, and never read",
    ),
    "load: a part too many": (
        lambda p: put(p, DMA, 0, change(DMA, Load, {"part": 1})(p).streams[DMA][0], p.streams[DMA][0]),
        "part 1 of bank 0 of be_in is written, and never read",
    ),
    "store: from another part": (
        change(DMA, Store, {"part": 1}, buffer=Buffer.S_OUT),
        "of s_out, which nothing was written to",
    ),
    "store: state from another part": (
        change(DMA, Store, {"part": 3}, buffer=Buffer.BE_STATE),
        "of be_state, which nothing was written to",
    ),
    "keeps what nothing stores": (
        change(FE, Soma, {"keep": True}),
        "part 1 of bank 0 of mask is written, and never read",
    ),
    "keeps more than the bank holds": (
        # 4 steps of 2 samples, 4 x 4 x 4 values, beside the sums of the next tile
        change(FE, Soma, {"keep": True, "keep_m1": True}),
        f"and other parts are {2 * 4 * 2 * 4 * 4 * 4 * 2} bytes, a bank of psum holds 1024",
    ),
    "keeps membranes of no neuron": (
        change(FE, Soma, {"keep": True, "keep_m2": True}),
        "keeps the membrane potentials of neuron 2, which does not fire",
    ),
    # order
    "soma before its last tile": (move(FE, Soma, ConvTile), "races on bank 0 of neuron with a write of dma0["),
    "soma before its first tile": (move(BE, Soma, ConvTile), "races on bank 0 of be_neuron with a write of dma0["),
    "tile before its LUTs": (move(FE, ConvTile, LutProgram), "the LUTs are not programmed for a convolution"),
    "store before its soma": (move(DMA, Store, Wait), "reads bank 0 of be_state, which nothing was written to"),
    # what is missing
    "no LUTs at first": (drop(FE, LutProgram), "the LUTs are not programmed for a convolution"),
    "no LUTs later": (drop(FE, LutProgram, nth=1), "the LUTs hold 8 x 4 PEs, not 2 x 4"),
    "no LUTs for linear": (drop(FE, LutProgram, mode=LutMode.FC), "the LUTs do not hold a linear layer's weights"),
    "no weights at first": (drop(DMA, Load, buffer=Buffer.W), "reads bank 0 of w, which nothing was written to"),
    "no dense weights": (drop(DMA, Load, buffer=Buffer.BE_W), "reads bank 0 of be_w, which nothing was written to"),
    "no parameters": (drop(DMA, Load, buffer=Buffer.NEURON), "reads bank 0 of neuron, which nothing was written to"),
    "no tile": (drop(BE, ConvTile), "reads bank 0 of be_psum, which nothing was written to"),
    "no soma": (drop(BE, Soma), "which nothing was written to"),
    "no pooling windows": (drop_all(BE, PoolSetup), "pools with the windows of slot 2, which were not set up"),
    "no windows before a neuron": (
        change(BE, Soma, {"pool1": PoolKind.AVG}),
        "pools with the windows of slot 1, which were not set up",
    ),
    "no state kept": (drop(DMA, Store, buffer=Buffer.BE_STATE), "reads what was not written"),
    "state not handed on": (change(BE, Soma, {"state_in": False}, nth=1), "overwrites bank 0 of be_state"),
    "no store": (drop(DMA, Store, buffer=Buffer.BE_OUT), "overwrites bank 0 of be_out, which nothing has read"),
    "output not stored": (drop(DMA, Store, tensor=11, nth=-1), "output 3.lif4 is not written completely"),
    "no halt": (drop(FE, Halt), "fe does not end with halt"),
    "an early halt": (lambda p: put(p, FE, 0, Halt(layer=0)), "fe goes on behind a halt"),
    "no instruction": (lambda p: with_stream(p, FE, ()), "fe does not end with halt"),
    "no queue": (lambda p: replace(p, streams={q: s for q, s in p.streams.items() if q is not FE}), "deadlock: dma0["),
    # engine instructions
    "fewer rows than programmed": (change(FE, ConvTile, {"rows": 7}), "needs spikes of 7 channels, finds s1"),
    "fewer columns than programmed": (change(FE, ConvTile, {"cols": 3}), "the LUTs hold 8 x 4 PEs, not 8 x 3"),
    "more rows than the engine has": (change(FE, LutProgram, {"rows": 9}), "9 rows, the engine has 8"),
    "more columns than the engine has": (change(FE, LutProgram, {"cols": 5}), "5 cols, the engine has 4"),
    "more groups than a LUT holds": (change(FE, LutProgram, {"groups": 9}, mode=LutMode.FC), "9 groups"),
    "fewer taps than the weights": (
        change(FE, LutProgram, {"taps": 8}),
        "needs 8 x 8 x 4 constants, finds fp16 (1, 1, 9, 8, 4)",
    ),
    "no taps": (change(FE, LutProgram, {"taps": 0}), "takes pieces up to 8 of 0 that the inputs have"),
    "more inputs than the weights": (
        change(FE, LutProgram, {"inputs": 9}),
        "needs 9 x 9 x 4 constants, finds fp16 (1, 1, 9, 8, 4)",
    ),
    "more pieces than the inputs have": (
        change(FE, LutProgram, {"inputs": 7}),
        "takes pieces up to 8 of 7 that the inputs have",
    ),
    "pieces behind the inputs": (
        change(FE, LutProgram, {"first_piece": 1}),
        "takes pieces up to 9 of 8 that the inputs have",
    ),
    "more linear inputs than the weights": (
        change(FE, LutProgram, {"inputs": 46}, mode=LutMode.FC),
        "needs 1 x 46 x 4 constants, finds fp16 (1, 1, 1, 45, 4)",
    ),
    "more linear inputs than the groups hold": (
        change(FE, LutProgram, {"groups": 1}, mode=LutMode.FC),
        "45 inputs, the engine has 24",
    ),
    "other LUT mode": (
        both(
            change(DMA, Load, {"h": 1}, buffer=Buffer.W),
            change(FE, LutProgram, {"mode": LutMode.FC, "groups": 1, "taps": 1}),
        ),
        "the LUTs are not programmed for a convolution",
    ),
    "other taps than programmed": (
        both(change(DMA, Load, {"h": 8}, buffer=Buffer.W), change(FE, LutProgram, {"taps": 8})),
        "the LUTs hold taps from piece 0 of 8",
    ),
    "other pieces than programmed": (
        both(
            change(FE, LutProgram, {"rows": 1}, nth=1),
            change(FE, ConvTile, {"rows": 1, "first_piece": 1}, nth=1),
        ),
        "the LUTs hold taps from piece 0 of 9",
    ),
    "other linear inputs than programmed": (
        both(
            change(DMA, Load, {"w": 44}, buffer=Buffer.W, layer=3),
            change(FE, LutProgram, {"inputs": 44}, mode=LutMode.FC),
        ),
        "the LUTs hold 44 inputs, not 45",
    ),
    "more dense rows": (change(BE, ConvTile, {"rows": 5}), "5 rows, the engine has 4"),
    "more dense columns": (change(BE, ConvTile, {"cols": 9}), "9 cols, the engine has 8"),
    "fewer dense columns": (change(BE, ConvTile, {"cols": 7}), "needs 9 x 2 x 7 constants, finds fp16"),
    "kernel rows outside": (change(BE, ConvTile, {"tap_row0": 1}), "kernel rows 1 to 4 of 3"),
    "no kernel": (change(FE, ConvTile, {"kernel_h": 0}), "kernel_h is 0"),
    "other kernel": (change(FE, ConvTile, {"kernel_h": 5}), "needs a region (8, 6)"),
    "other stride": (change(FE, ConvTile, {"stride_w": 2}), "needs a region (6, 9)"),
    "held where nothing holds": (change(FE, ConvTile, {"hold": True}), "only the Backward Engine holds"),
    "held linear": (change(FE, FcTile, {"hold": True}), "only the Backward Engine holds"),
    "more inputs": (change(FE, FcTile, {"inputs": 46}), "needs 46 inputs of"),
    "other groups": (change(FE, FcTile, {"groups": 1}), "the LUTs hold 2 groups of 8 x 4 PEs"),
    "accumulates on nothing": (change(FE, ConvTile, {"accumulate": True}), "reads bank 0 of psum"),
    "forgets its sums": (change(FE, ConvTile, {"accumulate": False}, accumulate=True), "overwrites bank 0 of psum"),
    "forgets linear sums": (
        change(FE, FcTile, {"accumulate": True}),
        "reads bank 0 of psum, which nothing was written",
    ),
    "soma of another tile": (change(BE, Soma, {"h": 3}), "steps of (2, 3, 4, 8), finds fp16"),
    "soma of more steps": (change(FE, Soma, {"nt": 9}), "needs 9 steps of"),
    "parameters of one stage": (change(BE, Soma, {"present2": False}), "averages spikes for no neuron"),
    "no first stage": (change(FE, Soma, {"present1": False}), "has neither a first neuron nor pooling"),
    "membranes to a second stage": (change(BE, Soma, {"fire1": False}), "hands a membrane potential to a second stage"),
    "membranes as spikes": (change(FE, Soma, {"fire1": False}), "which nothing was written to"),
    "pools numbers": (
        change(FE, Soma, {"present1": False, "pool2": PoolKind.MAX}),
        "pools spikes without a neuron, finds fp16",
    ),
    "pools before no neuron": (
        change(FE, Soma, {"present1": False, "pool1": PoolKind.MAX}),
        "pools before a first neuron that it does not have",
    ),
    "pool slot 3": (change(BE, PoolSetup, {"slot": 3}), "pooling slot 3 does not exist"),
    "pool windows of no size": (change(BE, PoolSetup, {"kernel_w": 0}), "kernel_w is 0"),
    "more windows": (change(BE, PoolSetup, {"out_h": 3}), "a pooling window of slot 2 lies outside the tile of 4 x 4"),
    "windows before the tile": (change(BE, PoolSetup, {"left": -2}), "lies outside the tile of 4 x 4"),
    "windows behind the limit": (change(BE, PoolSetup, {"limit_h": 2}), "lies outside the tile of 4 x 4"),
    "fewer windows": (change(BE, PoolSetup, {"out_w": 1}), "stores a region"),
    # queues
    "engine instruction in a DMA queue": (to_queue(BE, Soma, DMA), "dma0 has no unit for it"),
    "LUTs in the Backward Engine": (to_queue(FE, LutProgram, BE), "only the Forward Engine has LUTs"),
    "load in an engine": (to_queue(DMA, Load, FE), "only a DMA queue moves data"),
    "tile in the Weight Update Engine": (to_queue(FE, ConvTile, Queue.WUE), "wue has no unit for it"),
    "load of another memory": (to_queue(DMA, Load, Queue.DMA1), "input stands in memory 0"),
    "store to another memory": (to_queue(DMA, Store, Queue.DMA2), "0.state0 stands in memory 0"),
    # memory
    "activation onto weights": (place("1.lif3", "1.weights"), "constant 1.weights shares bytes with 1.lif3"),
    "weights onto parameters": (place("3.weights", "3.neuron"), "constant 3.weights shares bytes with 3.neuron"),
    "input onto weights": (place("input", "0.weights"), "constant 0.weights shares bytes with input"),
    "two live activations": (place("1.lif3", "0.lif2"), "reads what was not written"),
    "result onto its source": (place("2.pool2", "1.lif3"), "reads what was not written"),
    "two live states": (place("0.state1", "0.state0"), "reads what was not written"),
    "beyond the memory": (
        retable("3.lif4", address=(4 << 30) - 8),
        "tensor 3.lif4 ends beyond the memory of 4294967296",
    ),
    "far beyond the memory": (retable("3.lif4", address=10**30), "tensor 3.lif4 ends beyond the memory"),
    "larger than the memory": (retable("1.lif3", shape=(10**9,) * 5), "tensor 1.lif3 ends beyond the memory"),
    "in no memory": (retable("3.lif4", memory=3), "tensor 3.lif4 stands in memory 3, which does not exist"),
    "mirrored activation": (retable("1.lif3", mirrored=True), "tensor 1.lif3 is mirrored, but no constant"),
    "weights as bits": (retable("1.weights", format=Format.S1), "constant 1.weights is s1, must be fp16"),
    "spikes as numbers": (retable("0.lif2", format=Format.FP16), "stores s1 to 0.lif2, which is fp16"),
    "compressed spikes": (
        retable("1.lif3", format=Format.MCOMP),
        "packs what stands in s_out, which has no mask",
    ),
    "compressed input": (retable("input", format=Format.MCOMP), "needs real values of 2 channels, finds mcomp"),
    "a view of nothing": (
        retable("1.lif3", view_of="nothing"),
        "tensor 1.lif3 is a view of nothing, which is no tensor of its own",
    ),
    "a view of another tensor": (
        retable("1.lif3", view_of="0.lif2"),
        "tensor 1.lif3 does not show the bytes of 0.lif2",
    ),
    "larger output": (retable("3.lif4", shape=(12, 2, 1, 1, 7)), "output 3.lif4 is not written completely"),
    "scattered stores": (scattered_stores, "cut 1.lif3 into more than 65536 pieces"),
    # semaphores
    "crossed semaphores": (cross_semaphores, "deadlock: dma0[0] for semaphore"),
    "a third user": (third_user, "dma0 uses this semaphore too"),
    "a signal too many": (
        lambda p: with_stream(p, FE, (Signal(layer=0, semaphore=9), *p.streams[FE])),
        "semaphore 9 is",
    ),
    "a wait too many": (lambda p: with_stream(p, FE, (Wait(layer=0, semaphore=9), *p.streams[FE])), "for semaphore 9"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_reported(name: str) -> None:
    mutate, message = MUTATIONS[name]
    assert message in refusal(mutate(deep_program()))


def test_the_message_names_place_instruction_and_lack() -> None:
    program = put(linear_program(), FE, 0, Wait(layer=0, semaphore=1))
    assert refusal(program) == "deadlock: dma0[10] for semaphore 1, fe[0] for semaphore 1"
    program = change(DMA, Load, {"n0": 1})(linear_program())
    assert refusal(program).splitlines()[0] == (
        "dma0[0] load layer=0 buffer=s_in bank=0 part=0 tensor=0 t0=0 nt=3 n0=1 nn=2 y0=0 h=1 x0=0 w=1 c0=0 nc=5 flat: "
        "reads n 1 to 3 of 2"
    )


def test_at_most_five_faults_are_told() -> None:
    program = linear_program()
    stores = [replace(store, nn=3) if isinstance(store, Store) else store for store in program.streams[DMA] * 4]
    message = refusal(with_stream(program, DMA, (*stores, Halt(layer=0))))
    assert len(message.splitlines()) <= 5


BANKS = ("bank", "src_bank", "w_bank", "dst_bank", "psum_bank", "neuron_bank", "out_bank")


def is_unused(queue: Queue, instruction: Instruction, field: str) -> bool:
    """The Forward Engine's tiles take their weights from the LUTs; a Soma without neurons takes no parameters."""
    if field == "w_bank":
        return queue is FE and not isinstance(instruction, LutProgram)
    return (
        field == "neuron_bank" and isinstance(instruction, Soma) and not (instruction.present1 or instruction.present2)
    )


@pytest.mark.parametrize(("make", "step"), [(linear_program, 1), (deep_program, 6)])
def test_every_other_bank_is_reported(make: Callable[[], Program], step: int) -> None:
    program = make()
    flips = [
        (queue, at, field)
        for queue, stream in program.streams.items()
        for at, instruction in enumerate(stream)
        for field in BANKS
        if hasattr(instruction, field) and not is_unused(queue, instruction, field)
    ]
    for queue, at, field in flips[::step]:
        instruction = program.streams[queue][at]
        other = replace(instruction, **{field: 1 - getattr(instruction, field)})
        assert refusal(put(program, queue, at, other)), (queue, at, field)


@pytest.mark.parametrize("make", [linear_program, deep_program])
def test_every_other_part_is_reported(make: Callable[[], Program]) -> None:
    program = make()
    moves = [at for at, instruction in enumerate(program.streams[DMA]) if isinstance(instruction, Load | Store)]
    for at in moves[:: 1 + len(moves) // 60]:
        other = replace(program.streams[DMA][at], part=1)  # type: ignore[call-arg]
        assert refusal(put(program, DMA, at, other)), at


@pytest.mark.parametrize("field", ["nt", "nn", "h", "w", "nc"])
def test_every_smaller_region_is_reported(field: str) -> None:
    program = deep_program()
    moves = [
        at
        for at, i in enumerate(program.streams[DMA])
        if isinstance(i, Load | Store) and not (i.flat and field in "hw")
    ]
    for at in moves[::10]:
        instruction = program.streams[DMA][at]
        smaller = replace(instruction, **{field: getattr(instruction, field) - 1})
        assert refusal(put(program, DMA, at, smaller)), (at, field)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    network=networks(encodings=list(Encoding), late_encode=True),
    config=st.sampled_from([load_config("h2learn"), small_config()]),
    batch=st.integers(1, 5),
)
def test_compiled_programs_are_valid(network: RandomNetwork, config: H2LearnConfig, batch: int) -> None:
    check(compile_inference(network.graph, config, batch=batch).program)
