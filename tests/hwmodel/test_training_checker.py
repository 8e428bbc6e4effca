"""The checker on training programs, field by field: a change is reported, or its reason to be harmless is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from hwmodel.checker import check
from hwmodel.errors import CompileError
from hwmodel.isa import (
    AddGradient,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    HostLoss,
    HostUpdate,
    Instruction,
    Load,
    OuterTile,
    PoolKind,
    PoolSetup,
    ResetKind,
    SgdStep,
    Signal,
    Store,
    UpdateFcTile,
    UpdateTile,
    Wait,
    layout,
)
from hwmodel.program import Phase, Program
from tests.hwmodel.training_mutations import (
    BACKWARD,
    FORWARD,
    OVERLAP,
    UPDATE,
    Site,
    first_sites,
    numbers,
    refusal,
    sites,
)
from tests.hwmodel.training_programs import PROGRAMS, digits_program, pooled_program, split_program

TRAINING_KINDS: tuple[type[Instruction], ...] = (
    *(GradConvTile, GradFcTile, Grad, UpdateTile, UpdateFcTile, OuterTile, AddGradient, SgdStep, HostLoss, HostUpdate),
)
STREAMS = (Buffer.BE_GRAD, Buffer.WU_GRAD, Buffer.WU_WEIGHT, Buffer.WU_MOMENTUM)
KEPT = (Buffer.BE_M, Buffer.BE_OUT, Buffer.BE_MASK)
# A load that is left out leaves what the same bank held before: of the same shape, it is taken for the reuse that the
# hardware allows. That compiled programs load all that they use is proved by execution, in tests/runtime.
REUSED = (Buffer.BE_IN, Buffer.BE_W, Buffer.BE_NEURON, Buffer.WU_IN, Buffer.WU_GM)


def is_valid(program: Program) -> bool:
    try:
        check(program)
    except CompileError:
        return False
    return True


def other_values(instruction: Instruction) -> Iterator[tuple[str, object]]:
    """Each field with other values: numbers one more and 0, flags turned, all other members."""
    yield from numbers(instruction)
    for item in layout(type(instruction)):
        value = getattr(instruction, item.name)
        if item.is_bool:
            yield item.name, not value
        elif item.enum is not None:
            yield from ((item.name, member) for member in item.enum if member is not value)


def harmless(instruction: Instruction, changed: Instruction, field: str) -> str:
    """Why a checker of places, sizes and order need not mind a change; "" where it must."""
    if field == "layer":
        return "names the layer in messages and reports"
    match instruction, changed:
        case Grad(), Grad():
            return _harmless_in_grad(instruction, changed, field)
        case GradConvTile(), GradConvTile():
            if field == "mask_part" and not instruction.out_sparsity:
                return "not used"
            if field == "out_sparsity" and instruction.out_sparsity:
                return "computes gradients that Grad multiplies by 0"
            strides = changed.stride_h and changed.stride_w
            if (
                field in ("stride_h", "stride_w", "top", "left")
                and strides
                and _source(instruction) == _source(changed)
            ):
                return "takes the same rows and columns; which tap meets which of them is a matter of values"
        case ((UpdateTile() | OuterTile() as tile), _):
            if (field, tile.h) == ("stride_h", 1) or (field, tile.w) == ("stride_w", 1):
                return "there is one window" if getattr(changed, field) else ""
        case SgdStep(), SgdStep():
            if field == "momentum_bank" and not instruction.has_momentum:
                return "not used"
            if field in ("learning_rate", "momentum", "weight_decay") or (
                field in ("inverse_loss_scale", "batch_group") and getattr(changed, field)
            ):
                return "a factor; the host writes rate and batch group before each update"
    return ""


def _harmless_in_grad(grad: Grad, changed: Grad, field: str) -> str:
    if field == "t0":
        return "names the step in messages"
    if field.startswith("eta"):
        return "a factor"
    if field in ("scale1", "scale2"):
        return "multiplies by the table's input_scale or not"
    if field == "pool2" and PoolKind.NONE not in (grad.pool2, changed.pool2):
        return "shares or selects; the spikes are kept for the reset too" if grad.reset1 is ResetKind.HARD else ""
    stage = field[-1]
    if field in ("fire2", "reset2", "detach2") and not grad.present2:
        return "not used"
    hard = ResetKind.HARD in (getattr(grad, f"reset{stage}", None), getattr(changed, f"reset{stage}", None))
    fires = getattr(grad, f"fire{stage}", False)
    if field.startswith(("reset", "detach")) and (not hard or not fires):
        return "reads nothing that was kept"
    return ""


def _source(tile: GradConvTile) -> tuple[set[int], set[int]]:
    """Rows and columns of gradients from the first to the last that a tap of any stride meets, by trial."""
    axes = ((tile.h, tile.top, tile.kernel_h, tile.stride_h), (tile.w, tile.left, tile.kernel_w, tile.stride_w))
    found = []
    for size, start, kernel, stride in axes:
        met = [(y + start - k) // stride for y in range(size) for k in range(kernel) if (y + start - k) % stride == 0]
        found.append(set(range(min(met), max(met) + 1)) if met else set())
    return found[0], found[1]


def _form(instruction: Instruction) -> object:
    """Grad of one neuron and of two, with and without the state of the chunk behind."""
    match instruction:
        case Grad():
            return instruction.present2, instruction.state_in
    return None


FIELDS = [
    *((digits_program, kind) for kind in TRAINING_KINDS if kind is not HostUpdate),
    *((pooled_program, kind) for kind in (GradConvTile, Grad)),
    *((split_program, kind) for kind in (Grad, HostUpdate)),
]


@pytest.mark.parametrize(("make", "kind"), FIELDS)
def test_every_field_matters_or_is_known_not_to(make: Callable[[], Program], kind: type[Instruction]) -> None:
    program = make()
    for site in first_sites(program, kind, phases=(BACKWARD, UPDATE), key=_form):
        instruction = site.of(program)
        for field, value in other_values(instruction):
            changed = replace(instruction, **{field: value})  # type: ignore[arg-type]
            reason = harmless(instruction, changed, field)
            if field == "layer" and value == len(program.layers):
                reason = ""
            assert is_valid(site.put(program, changed)) == bool(reason), (str(site), instruction, field, value, reason)


def test_the_programs_hold_every_training_instruction() -> None:
    held = {type(site.of(make())) for make in PROGRAMS for site in sites(make(), phases=(BACKWARD, UPDATE))}
    assert held >= set(TRAINING_KINDS)


@pytest.mark.parametrize(("make", "step"), [(digits_program, 10), (pooled_program, 10), (split_program, 5)])
def test_every_other_bank_is_reported(make: Callable[[], Program], step: int) -> None:
    program = make()
    flips = [
        (site, item.name)
        for site in sites(program, *TRAINING_KINDS, phases=(OVERLAP, UPDATE))
        for item in layout(type(site.of(program)))
        if item.name.endswith("bank")
    ]
    for site, field in flips[::step]:
        instruction = site.of(program)
        other = replace(instruction, **{field: 1 - getattr(instruction, field)})
        assert is_valid(site.put(program, other)) == bool(harmless(instruction, other, field)), (str(site), field)


@pytest.mark.parametrize("make", PROGRAMS)
def test_every_other_part_is_reported(make: Callable[[], Program]) -> None:
    program = make()
    moves = list(sites(program, Load, Store, AddGradient, phases=(OVERLAP, UPDATE)))
    for site in moves[:: 1 + len(moves) // 12]:
        part = getattr(site.of(program), "part")  # noqa: B009 - of three classes
        assert refusal(site.changed(program, part=(part + 1) % 4)), str(site)


@pytest.mark.parametrize(("make", "phase", "step"), [
    (pooled_program, FORWARD, 5), (digits_program, OVERLAP, 12), (pooled_program, BACKWARD, 5),
    (split_program, BACKWARD, 5), (digits_program, UPDATE, 12),
])  # fmt: skip
def test_every_dropped_wait_is_reported(make: Callable[[], Program], phase: Phase, step: int) -> None:
    program = make()
    for site in list(sites(program, Wait, phases=(phase,)))[::step]:
        assert refusal(site.put(program)).startswith(f"{phase}: "), str(site)


@pytest.mark.parametrize(("make", "phase", "step"), [
    (digits_program, FORWARD, 5), (digits_program, OVERLAP, 12), (pooled_program, BACKWARD, 5),
    (split_program, BACKWARD, 5), (pooled_program, UPDATE, 16),
])  # fmt: skip
def test_every_dropped_signal_is_a_deadlock(make: Callable[[], Program], phase: Phase, step: int) -> None:
    program = make()
    for site in list(sites(program, Signal, phases=(phase,)))[::step]:
        signal = site.of(program)
        assert isinstance(signal, Signal)
        assert f"for semaphore {signal.semaphore}" in refusal(site.put(program)), str(site)


def held_before(program: Program, site: Site) -> bool:
    """Whether the bank that a load fills, or the slot that is set up, held the same before."""
    dropped = site.of(program)
    earlier = program.phases[site.phase][site.queue][: site.at]
    match dropped:
        case PoolSetup():
            return any(isinstance(other, PoolSetup) and other.slot == dropped.slot for other in earlier)
        case Load(buffer=Buffer.BE_STATE):
            return True  # the step before left it there
        case Load():
            shape = _shape(program, dropped)
            return dropped.buffer in REUSED and any(
                isinstance(other, Load) and shape == _shape(program, other) for other in earlier
            )
    return False


def _shape(program: Program, load: Load) -> tuple[object, ...]:
    form = program.tensors[load.tensor].format
    return load.buffer, load.bank, load.part, load.nt, load.nn, load.h, load.w, load.nc, load.flat, form


@pytest.mark.parametrize(("make", "step"), [(digits_program, 11), (pooled_program, 13), (split_program, 7)])
def test_every_dropped_instruction_is_reported(make: Callable[[], Program], step: int) -> None:
    """But for loads of what a bank still holds in the same shape, which only execution can tell from reuse."""
    program, accepted = make(), 0
    work = [s for s in sites(program, phases=(BACKWARD, UPDATE)) if not isinstance(s.of(program), Wait | Signal)]
    for site in work[::step]:
        if is_valid(site.put(program)):
            assert held_before(program, site), (str(site), site.of(program))
            accepted += 1
    assert accepted < len(work[::step]) / 3


@pytest.mark.parametrize("field", ["nt", "nn", "h", "w", "nc"])
@pytest.mark.parametrize("make", PROGRAMS)
def test_every_smaller_region_is_reported(make: Callable[[], Program], field: str) -> None:
    program = make()
    moves = [
        site
        for site in sites(program, Load, Store, phases=(BACKWARD, UPDATE))
        if not (getattr(site.of(program), "flat") and field in "hw")  # noqa: B009 - of two classes
    ]
    for site in moves[:: 1 + len(moves) // 6]:
        assert refusal(site.changed(program, **{field: getattr(site.of(program), field) - 1})), (str(site), field)


@pytest.mark.parametrize("make", PROGRAMS)
def test_every_shifted_store_is_reported(make: Callable[[], Program]) -> None:
    """But for masks of gradients that no convolution takes."""
    program = make()
    read = {program.tensors[load.tensor].name for site in sites(program) if isinstance(load := site.of(program), Load)}
    stores = list(sites(program, Store, phases=(FORWARD, BACKWARD, UPDATE)))
    for number, site in enumerate(stores[:: 1 + len(stores) // 15]):
        store = site.of(program)
        assert isinstance(store, Store)
        field = ("t0", "n0", "y0", "x0", "c0")[number % 5]
        name = program.tensors[store.tensor].name
        if name in read or f"{name}.before" in read:
            assert refusal(site.changed(program, **{field: getattr(store, field) + 1})), (str(site), field, name)


@pytest.mark.parametrize("make", [digits_program, split_program])
def test_every_shifted_load_of_kept_values_is_reported(make: Callable[[], Program]) -> None:
    """Here all kept values of a neuron come together, and each tells whether another is of other elements."""
    program = make()
    loads = [
        (site, load)
        for site in sites(program, Load, phases=(BACKWARD,))
        if isinstance(load := site.of(program), Load) and load.buffer in KEPT and load.part
    ]
    loads = [(site, load) for site, load in loads if _is_hard(program, load.layer)]
    for number, (site, load) in enumerate(loads[:: 1 + len(loads) // 10]):
        field = ("y0", "x0", "c0", "t0", "n0")[number % 5]
        for value in (getattr(load, field) + 1, 0):
            if value != getattr(load, field):
                assert refusal(site.changed(program, **{field: value})), (str(site), load, field)


def _is_hard(program: Program, layer: int) -> bool:
    return all(
        grad.reset1 is ResetKind.HARD
        for site in sites(program, Grad, phases=(BACKWARD,))
        if isinstance(grad := site.of(program), Grad) and grad.layer == layer
    )


@pytest.mark.parametrize("make", PROGRAMS)
def test_every_shifted_stream_is_reported(make: Callable[[], Program]) -> None:
    """What an adder or the update changes goes back to where it came from."""
    program = make()
    moves = [
        (site, move)
        for site in sites(program, Load, Store, phases=(BACKWARD, UPDATE))
        if isinstance(move := site.of(program), Load | Store) and move.buffer in STREAMS
    ]
    for site, move in moves[:: 1 + len(moves) // 4]:
        for field in ("y0", "x0", "c0", "tensor"):
            for value in {getattr(move, field) + 1, getattr(move, field) - 1} - {-1}:
                assert refusal(site.changed(program, **{field: value})), (str(site), move, field)
