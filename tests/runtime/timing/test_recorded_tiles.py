"""Records of real runs: the counts of the masks that stand in memory afterwards, and a run that is not disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile_training import compile_training
from compiler.losses import Loss
from hwmodel.checker.streams import MEMORY_OF
from hwmodel.config import H2LearnConfig, Skips, Synchronise
from hwmodel.errors import CompileError
from hwmodel.isa import Buffer, GradConvTile, Load, Part, Queue, Transfer
from hwmodel.program import Format, Phase, Program
from hwmodel.timing.masked_tiles import Mask, mask_counts
from hwmodel.timing.tiles import TileCounts
from runtime.engines import Engines
from runtime.host import F32, encode_inputs
from runtime.host_loss import Labels, LossHost
from runtime.machine import Machine
from runtime.memory import Memory
from runtime.session import engines_for
from runtime.timing.recorded_tiles import Recorded, RecordedSession, Recorder, record_step
from runtime.training_session import State, TrainingSession
from tests.hwmodel.training_programs import (
    digits_program,
    made_if_trainable,
    pooled_program,
    split_program,
    training_config,
)
from tests.strategies import RandomNetwork, networks

PROGRAMS = {"digits": digits_program, "pooled": pooled_program, "split": split_program}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One sub-batch forwards and backwards on one machine."""

    program: Program
    memory: Memory  # as the last launch left it
    recorded: Recorded


def run(program: Program, config: H2LearnConfig | None = None, seed: int = 0) -> Run:
    """Spikes or images from a seed; the golden engines."""
    machine, recorder = Machine(program, engines_for(program, use_golden=True)), Recorder(program, config)
    machine.observer = recorder
    x, labels = batch(program, program.batch, seed)
    host = LossHost(program=program, factor=1.0, labels=[labels])
    machine.memory.array(program.input_index)[...] = encode_inputs(program, x, 0)
    machine.memory.changed(program.input_index)
    machine.launch(Phase.FORWARD, host=host)
    machine.launch(Phase.BACKWARD, swapped=True, host=host)
    return Run(program=program, memory=machine.memory, recorded=recorder.recorded)


def golden(program: Program) -> Engines:
    return engines_for(program, use_golden=True)


def recorded(program: Program, x: F32, labels: Labels, state: State | None = None) -> Recorded:
    return record_step(program, x, labels, state=state, engines=golden(program))


def run_if_finite(program: Program, config: H2LearnConfig, seed: int) -> Run:
    """No example of a property where a value leaves FP16."""
    try:
        return run(program, config, seed)
    except CompileError as fault:
        assume("overflows FP16" not in fault.message)
        raise


def batch(program: Program, samples: int, seed: int = 0) -> tuple[F32, Labels]:
    rng, host = np.random.default_rng(seed), program.host
    shape = (program.timesteps, samples) if host.input_has_time else (samples,)
    x = rng.random((*shape, *host.input_shape), np.float32)
    classes = int(np.prod(program.tensors[program.output_index].shape[2:]))
    return (x < 0.5).astype(np.float32) if host.input_has_time else x, rng.integers(0, classes, samples)


def masks_in_memory(run: Run) -> Iterator[tuple[int, GradConvTile, Mask, Mask | None]]:
    """Each gradient tile with its masks, fetched after the run by the loads that came before it in order.

    The mask of the gradients that arrive is loaded once for each tile, that of the outputs once for each block.
    """
    streams = run.program.phases[Phase.BACKWARD]
    loads = [(q, i) for q, stream in streams.items() for i in stream if isinstance(i, Load)]
    sources = iter([(q, i) for q, i in loads if (i.buffer, i.part) == (Buffer.BE_IN, Part.FIRST)])
    wanted = {
        (layer, part): iter([p for p in loads if (p[1].buffer, p[1].layer, p[1].part) == (Buffer.BE_MASK, layer, part)])
        for layer in range(len(run.program.layers))
        for part in (Part.FIRST, Part.SECOND)
    }
    outputs: Mask | None = None
    for position, tile in enumerate(streams[Queue.BE]):
        if not isinstance(tile, GradConvTile):
            continue
        inputs = fetched(run, *next(sources))
        if not tile.accumulate:
            outputs = fetched(run, *next(wanted[tile.layer, Part(tile.mask_part)])) if tile.out_sparsity else None
        yield position, tile, inputs, outputs
    assert next(sources, None) is None


def fetched(run: Run, queue: Queue, load: Load) -> Mask:
    return run.memory.fetch(load, MEMORY_OF[queue])  # type: ignore[return-value]  # masks are bytes


def check_tiles(run: Run, config: H2LearnConfig) -> int:
    """The number of tiles that were compared."""
    tiles, count = run.recorded.tiles(Phase.BACKWARD), 0
    assert run.recorded.tiles(Phase.FORWARD).mean == {}
    for position, tile, inputs, outputs in masks_in_memory(run):
        assert tiles.counts(tile, position) == mask_counts(inputs, outputs, tile, config)
        count += 1
    assert len(tiles.mean) == count
    return count


def check_kept(run: Run) -> int:
    """By the tensors' names: membranes travel by the mask of the same neuron. The number of transfers."""
    count = 0
    names = [tensor.name for tensor in run.program.tensors]
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        kept = run.recorded.kept(phase)
        run.memory.swapped = phase is Phase.BACKWARD
        for queue, stream in run.program.phases[phase].items():
            for position, transfer in enumerate(stream):
                if not isinstance(transfer, Transfer):
                    continue
                tensor = run.program.tensors[transfer.tensor]
                if tensor.format is not Format.MCOMP:
                    assert (queue, position) not in kept.mean
                    continue
                mask = names.index(tensor.name.replace("membrane", "mask"))
                region = Load(**{name: getattr(transfer, name) for name in FIELDS} | {"tensor": mask})
                ones = fetched(run, queue, region)
                assert kept.density(queue, position, transfer.layer) == np.count_nonzero(ones) / ones.size
                count += 1
        assert phase is Phase.FORWARD or len(kept.mean) <= count
    return count


FIELDS = ("layer", "buffer", "bank", "part", "t0", "nt", "n0", "nn", "y0", "h", "x0", "w", "c0", "nc", "flat")


@pytest.mark.parametrize("name", PROGRAMS)
def test_counts_are_those_of_the_masks_in_memory(name: str) -> None:
    program = PROGRAMS[name]()
    seen = run(program)
    assert check_tiles(seen, program.config)
    assert check_kept(seen)
    densities = [*seen.recorded.kept(Phase.BACKWARD).mean.values(), *seen.recorded.kept(Phase.FORWARD).mean.values()]
    assert any(0 < density < 1 for density in densities)


@given(network=networks(trainable=True, blocks=(2, 3), max_size=8, max_channels=8, max_timesteps=4), data=st.data())
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_counts_of_random_networks(network: RandomNetwork, data: st.DataObject) -> None:
    """Another engine than that of the program may be counted."""
    samples = data.draw(st.integers(1, 3))
    program = made_if_trainable(
        lambda: (
            compile_training(
                network.graph, training_config(), loss=Loss.MSE, batch=samples, show=lambda _: None
            ).program
        )
    )
    engine = replace(
        program.config.backward,
        skips=data.draw(st.sampled_from(Skips)),
        synchronise=data.draw(st.sampled_from(Synchronise)),
        pe_group=data.draw(st.integers(1, 4)),
        run_ahead=data.draw(st.integers(0, 2)),
        shared_columns=data.draw(st.sampled_from([1, 2, 4])),
    )
    config = replace(program.config, backward=engine)
    seen = run_if_finite(program, config, data.draw(st.integers(0, 99)))
    assert check_tiles(seen, config)
    check_kept(seen)


# -- sessions ---------------------------------------------------------------------------------------------------------


def in_order(program: Program, phase: Phase, tiles: dict[int, TileCounts]) -> list[TileCounts]:
    """The counts without their positions, which differ from phase to phase."""
    return [tiles[i] for i, tile in enumerate(program.phases[phase][Queue.BE]) if isinstance(tile, GradConvTile)]


def test_overlap_is_recorded_sub_batch_by_sub_batch() -> None:
    """Three sub-batches together have the records of each alone; a mean lies over the launches of a phase."""
    program = digits_program()
    x, labels = batch(program, 3 * program.batch)
    together = recorded(program, x, labels)
    phases = [launch.phase for launch in together.launches]
    assert phases == [Phase.FORWARD, Phase.OVERLAP, Phase.OVERLAP, Phase.BACKWARD]
    alone = [
        recorded(program, x[i : i + program.batch], labels[i : i + program.batch])
        for i in range(0, len(labels), program.batch)
    ]
    for launch, one in zip(together.launches[1:], alone, strict=True):
        want = in_order(program, Phase.BACKWARD, dict(one.of(Phase.BACKWARD)[0].tiles))
        assert in_order(program, launch.phase, dict(launch.tiles)) == want
    overlap = together.tiles(Phase.OVERLAP)
    assert overlap.launches == tuple(launch.tiles for launch in together.of(Phase.OVERLAP))
    for position, mean in overlap.mean.items():
        first, second = (launch[position] for launch in overlap.launches)
        assert mean.cycles == (first.cycles + second.cycles) / 2
        assert mean.macs == (first.macs + second.macs) / 2
    assert overlap.launches[0] != overlap.launches[1]


def test_steps_add_up() -> None:
    program = digits_program()
    steps = [recorded(program, *batch(program, program.batch, seed)) for seed in (0, 1)]
    both = steps[0] + steps[1]
    assert both.launches == (*steps[0].launches, *steps[1].launches)
    kept = [record.kept(Phase.BACKWARD).mean for record in (*steps, both)]
    assert kept[2] == {place: (kept[0][place] + kept[1][place]) / 2 for place in kept[0]}


@pytest.mark.parametrize("name", PROGRAMS)
def test_recording_changes_nothing(name: str) -> None:
    """Updates with and without a recorder leave the same bits."""
    program = PROGRAMS[name]()
    sessions = [
        TrainingSession(program, golden(program)),
        RecordedSession(program, golden(program), recorder=Recorder(program)),
    ]
    x, labels = batch(program, 2 * program.batch)
    reports = [[session.step(x, labels) for _ in range(2)] for session in sessions]
    assert reports[0] == reports[1]
    plain, observed = (session.state() for session in sessions)
    assert [key for key in plain if plain[key].tobytes() != observed[key].tobytes()] == []


def test_a_state_is_recorded_with_its_weights() -> None:
    """Two steps on, the masks are others; and the session that they come from is left alone."""
    program = digits_program()
    session, (x, labels) = TrainingSession(program, golden(program)), batch(program, program.batch)
    for _ in range(2):
        session.step(x, labels, learning_rate=1.0)
    state = session.state()
    recorder = Recorder(program)
    continued = RecordedSession(program, golden(program), recorder=recorder)
    continued.restore(state)
    continued.gradients(x, labels)
    assert recorded(program, x, labels, state) == recorder.recorded
    assert recorded(program, x, labels) != recorder.recorded


def test_refuses_what_was_not_recorded() -> None:
    program = digits_program()
    seen = recorded(program, *batch(program, program.batch))
    tile = next(i for i in program.phases[Phase.BACKWARD][Queue.BE] if isinstance(i, GradConvTile))
    with pytest.raises(CompileError, match=rf"be\[3\], a gradient tile of layer {tile.layer}, was not recorded"):
        seen.tiles(Phase.OVERLAP).counts(tile, 3)
    with pytest.raises(
        CompileError, match=r"dma0\[2\] of layer 1 was not recorded as a transfer of membrane potentials"
    ):
        seen.kept(Phase.OVERLAP).density(Queue.DMA0, 2, 1)
