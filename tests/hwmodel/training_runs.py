"""Runs a small training program on the machine, its queues in any order, and hands back all that memory holds."""

from __future__ import annotations

import numpy as np

from hwmodel.errors import CompileError
from hwmodel.isa import Halt, Wait
from hwmodel.program import Format, Phase, Program, Streams
from runtime.engines import Engines, golden
from runtime.host_loss import HostSgd, Labels, LossHost
from runtime.machine import Machine
from runtime.memory import Values

LAUNCHES = ((Phase.FORWARD, False), (Phase.OVERLAP, True), (Phase.BACKWARD, False), (Phase.UPDATE, False))


class ShuffledMachine(Machine):
    """Advances the queues in random order, one instruction at a time, each queue with a speed of its own."""

    def __init__(self, program: Program, seed: int) -> None:
        super().__init__(program, engines_of(program))
        self._rng = np.random.default_rng(seed)

    def _execute(self, streams: Streams) -> None:
        speed = {queue: self._rng.pareto(0.5) + 1e-3 for queue in streams}
        position = dict.fromkeys(streams, 0)
        semaphores: dict[int, int] = {}
        while ready := [queue for queue in streams if _may_go(streams[queue], position[queue], semaphores)]:
            weights = np.array([speed[queue] for queue in ready])
            queue = ready[self._rng.choice(len(ready), p=weights / weights.sum())]
            at = position[queue]
            position[queue] = self._advance(queue, streams[queue][: at + 1], at, semaphores)
        ends = {queue: isinstance(streams[queue][position[queue]], Halt) for queue in streams}
        assert all(ends.values()), "the queues wait for each other"


def _may_go(stream: tuple[object, ...], at: int, semaphores: dict[int, int]) -> bool:
    instruction = stream[at]
    if isinstance(instruction, Wait):
        return semaphores.get(instruction.semaphore, 0) > 0
    return not isinstance(instruction, Halt)


def engines_of(program: Program) -> Engines:
    """The definition, as large as the program needs."""
    config = program.config
    return golden(config.forward.rows, config.backward.rows, config.weight_update.rows)


def trained(machine: Machine, program: Program) -> dict[str, bytes] | str:
    """All that stands in the memories after two sub-batches and an update; or the fault."""
    rng = np.random.default_rng(1)
    classes = program.tensors[program.output_index].shape[4]
    labels: list[Labels] = [rng.integers(0, classes, program.batch) for _ in range(2)]
    host = LossHost(program=program, labels=labels, optimiser=_optimiser(machine, program))
    try:
        for phase, swapped in LAUNCHES:
            machine.memory.swapped = swapped
            if phase in (Phase.FORWARD, Phase.OVERLAP):
                machine.memory.array(program.input_index)[...] = _inputs(program, rng)
                machine.memory.changed(program.input_index)
            machine.launch(phase, swapped=swapped, host=host)
    except CompileError as fault:
        return fault.message
    return {
        f"{tensor.name} in {memory}": machine.memory.array(index, memory).tobytes()
        for index, tensor in enumerate(program.tensors)
        for memory in machine.memory.copies(index)
    }


def _inputs(program: Program, rng: np.random.Generator) -> Values:
    source = program.tensors[program.input_index]
    if source.format is Format.S1:
        return rng.integers(0, 2, source.shape).astype(np.uint8)
    return (rng.integers(0, 17, source.shape) / 16).astype(np.float16)


def _optimiser(machine: Machine, program: Program) -> HostSgd | None:
    training = program.training
    assert training is not None
    if not training.master_weights:
        return None
    optimiser = HostSgd(learning_rate=0.125, momentum=0.5, weight_decay=0.0)
    for parameter in training.parameters:
        values = machine.memory.array(program.index_of(parameter.tensor), 0)[0, 0]
        optimiser.masters[parameter.tensor] = (values[:1, :1] if parameter.is_bias else values).astype(np.float32)
    return optimiser
