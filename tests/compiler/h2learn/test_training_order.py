"""Program order of training: executed one by one it is correct, and no two tensors that are needed share bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.h2learn.synchronise import Action
from compiler.losses import Loss
from hwmodel.config import H2LearnConfig
from hwmodel.isa import AddGradient, HostLoss, HostUpdate, Load, SgdStep, Store
from hwmodel.program import Program, Role, Streams, Tensor
from hwmodel.program_file import save_program
from runtime.machine import Machine
from tests.compiler.h2learn.training_plans import NETWORKS, Stages, configs, stages_of
from tests.hwmodel.training_happens_before import Region, accesses
from tests.hwmodel.training_programs import DESCENTS, GRAPHS, made_if_trainable, training_config
from tests.hwmodel.training_runs import engines_of, trained
from tests.strategies import RandomNetwork

ROOT = Path(__file__).parents[3]


class SequentialMachine(Machine):
    """Executes the actions of each phase in program order, without semaphores."""

    def __init__(self, program: Program, stages: Stages) -> None:
        super().__init__(program, engines_of(program))
        backward = tuple(stages.backward)
        forward = tuple(stages.forward)
        self._lists = iter((forward, (*forward, *backward), backward, tuple(stages.update)))

    def _execute(self, streams: Streams) -> None:
        for action in next(self._lists):
            self._advance(action.queue, (action.instruction,), 0, {})


def compiled(network: RandomNetwork, config: H2LearnConfig, descent: Descent) -> tuple[Program, Stages]:
    stages = made_if_trainable(lambda: stages_of(network.graph, config, 2, descent))
    program = compile_training(
        network.graph, config, loss=Loss.MSE, descent=descent, batch=2, show=lambda _: None
    ).program
    return program, stages


@pytest.mark.parametrize("name", GRAPHS)
def test_program_order_computes_what_the_queues_do(name: str) -> None:
    graph, descent = GRAPHS[name](), DESCENTS[name]
    stages = stages_of(graph, training_config(), 2, descent)
    program = compile_training(
        graph, training_config(), loss=Loss.MSE, descent=descent, batch=2, show=lambda _: None
    ).program
    want = trained(Machine(program, engines_of(program)), program)
    assert trained(SequentialMachine(program, stages), program) == want


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(NETWORKS, st.sampled_from(configs()), st.sampled_from([Descent(momentum=0.5), Descent(master_weights=True)]))
def test_program_order_of_any_network_computes_what_the_queues_do(
    network: RandomNetwork, config: H2LearnConfig, descent: Descent
) -> None:
    program, stages = compiled(network, config, descent)
    want = trained(Machine(program, engines_of(program)), program)
    assert trained(SequentialMachine(program, stages), program) == want


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(NETWORKS, st.sampled_from(configs()), st.booleans())
def test_no_bank_is_filled_again_before_it_was_read(
    network: RandomNetwork, config: H2LearnConfig, master: bool
) -> None:
    program, stages = compiled(network, config, Descent(momentum=0.5, master_weights=master))
    for actions in ((*stages.forward, *stages.backward), tuple(stages.update)):
        _check_banks(program, actions)


def _check_banks(program: Program, actions: Iterable[Action]) -> None:
    """Each load is read by something before the next load of the same part; at the end nothing waits."""
    waiting: dict[tuple[str, int], set[int]] = {}
    for action in actions:
        places = [(place, write) for place, write in accesses(program, action.queue, action.instruction)]
        banks = [(place, write) for place, write in places if not isinstance(place, Region)]
        if isinstance(action.instruction, Load):
            place = (str(action.instruction.buffer), action.instruction.bank)
            parts = waiting.setdefault(place, set())
            assert action.instruction.part not in parts, action
            parts.add(action.instruction.part)
            continue
        for place, write in banks:
            is_read = not write or isinstance(action.instruction, AddGradient | SgdStep)
            if is_read or place[0] in ("be_psum", "be_mask", "psum"):  # Grad and Soma change these in place
                waiting.pop(place, None)
    assert not any(waiting.values()), waiting


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(NETWORKS, st.sampled_from(configs()), st.booleans())
def test_tensors_that_are_needed_share_no_bytes(network: RandomNetwork, config: H2LearnConfig, master: bool) -> None:
    """A memory byte by byte: what is read must be what was written last, by this tensor, over one sub-batch."""
    program, stages = compiled(network, config, Descent(momentum=0.5, master_weights=master))
    assert program.tensors == stages.tensors
    top = max(tensor.address + tensor.size_bytes for tensor in program.tensors)
    samples, far = np.full(top, -1), np.full(top, -1)
    for index, tensor in enumerate(program.tensors):
        is_there = tensor.role in (Role.INPUT, Role.WEIGHT, Role.NEURON, Role.WEIGHT_GRADIENT, Role.MOMENTUM)
        if is_there and not tensor.view_of:
            memory = far if tensor.memory == 2 else samples
            span = slice(tensor.address, tensor.address + tensor.size_bytes)
            assert (memory[span] == -1).all(), tensor
            memory[span] = index
    for action in (*stages.forward, *stages.backward, *stages.update):
        for index, write in _tensors_of(action):
            base = _base(program, index)
            tensor = program.tensors[base]
            memory = far if tensor.memory == 2 else samples
            span = slice(tensor.address, tensor.address + tensor.size_bytes)
            if write:
                memory[span] = base
            assert (memory[span] == base).all(), (action.instruction, tensor)


def _tensors_of(action: Action) -> list[tuple[int, bool]]:
    match action.instruction:
        case Load(tensor=index):
            return [(index, False)]
        case Store(tensor=index):
            return [(index, True)]
        case HostLoss(output=output, gradient=gradient):
            return [(output, False), (gradient, True)]
        case HostUpdate(weight=weight, gradient=gradient):
            return [(gradient, False), (weight, True), (gradient, True)]
    return []


def _base(program: Program, index: int) -> int:
    tensor: Tensor = program.tensors[index]
    return program.index_of(tensor.view_of) if tensor.view_of else index


def test_memory_is_reused() -> None:
    """So that the test above has something to find: tensors of the split program do share bytes."""
    program = compile_training(
        GRAPHS["split"](), training_config(), loss=Loss.MSE, batch=2, show=lambda _: None
    ).program
    owners = [tensor for tensor in program.tensors if not tensor.view_of and tensor.memory != 2]
    assert any(
        left.address < right.address + right.size_bytes and right.address < left.address + left.size_bytes
        for i, left in enumerate(owners)
        for right in owners[:i]
    )


SAVE = """
import hashlib, pathlib, sys
from hwmodel.program_file import save_program
from tests.hwmodel.training_programs import digits_program
path = pathlib.Path(sys.argv[1])
save_program(digits_program(), path)
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    """In this process, and in one whose sets and dicts of texts are in another order."""
    digests = set()
    for number in range(2):
        path = tmp_path / f"{number}.h2l"
        program = compile_training(
            GRAPHS["digits"](), training_config(), loss=Loss.MSE, descent=DESCENTS["digits"], batch=2,
            show=lambda _: None,
        ).program  # fmt: skip
        save_program(program, path)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path / "other.h2l")],
        capture_output=True, text=True, check=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert digests == {done.stdout.strip()}
