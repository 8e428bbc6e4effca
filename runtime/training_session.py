"""Trains a network on simulated accelerators: batches in, weights and metrics out, exact to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import cast

import numpy as np
import numpy.typing as npt

from hwmodel.errors import CompileError, Loc
from hwmodel.program import Phase, Program, Trained
from runtime.engines import F16, Engines
from runtime.host import F32, check_inputs, encode_inputs
from runtime.host_loss import BatchTally, HostSgd, Labels, LossHost
from runtime.machine import Machine
from runtime.memory import Values
from runtime.session import engines_for
from runtime.sparsity import MaskCounts, Sparsity

State = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One training step: mean loss and correct predictions before the update, and what the update did."""

    loss: float
    correct: int
    samples: int
    changed: Mapping[str, int]  # weights that moved, by layer
    lost: Mapping[str, int]  # steps that are not 0 and that FP16 rounds away


@dataclass(slots=True)
class TrainingSession:
    """A training program on its machines; the fast engines unless others are given.

    A batch is cut into sub-batches in order, and these are dealt to the machines in equal runs. Each machine sums the
    gradients of its sub-batches in order in Mem 2; the host adds machine 1, 2, ... to machine 0, one FP16 addition
    each, and writes the sum back to all before the update.
    Raises: CompileError for inputs that do not fit, and where a value leaves FP16, with layer and steps.
    Source: section 3.2.4, figure 3.9.
    """

    program: Program
    engines: Engines | None = None
    steps: int = 0
    presented: int = 0  # samples so far: each draws its own code
    _machines: list[Machine] = field(init=False)
    _optimiser: HostSgd | None = field(init=False, default=None)
    _masks: MaskCounts = field(init=False)

    def __post_init__(self) -> None:
        training = self.program.training
        if training is None:
            raise CompileError("is an inference program", Loc(self.program.name), hint="compile with --mode train")
        engines = self.engines or engines_for(self.program)
        self._machines = [Machine(self.program, engines) for _ in range(training.machines)]
        self._masks = MaskCounts(self.program)
        if training.master_weights:
            self._optimiser = HostSgd(
                learning_rate=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
            )
            self._optimiser.masters = {t.tensor: self._canonical(t).astype(np.float32) for t in training.parameters}

    def step(self, x: F32, labels: Labels, *, learning_rate: float | None = None) -> StepReport:
        """One update from one batch of any size; one that fails leaves everything as it was.

        Shapes: x (N, ...) or (T, N, ...) as the program's input says, labels (N,).
        """
        check_inputs(self.program, x)
        self._check_labels(x, labels)
        before = self.state()
        try:
            tally = self._gradients(x, labels)
            self._gather()
            self._update(self._places(len(labels)) // self.program.batch, learning_rate)
        except CompileError as fault:
            self._restore(before)
            raise CompileError(f"{fault.message}, in training step {self.steps}", fault.loc, hint=fault.hint) from fault
        self.steps += 1
        self.presented += len(labels)
        return self._report(tally)

    def gradients(self, x: F32, labels: Labels) -> tuple[BatchTally, dict[str, F32]]:
        """Loss and parameter gradients of the mean loss of a batch, by their names in the graph; nothing is updated.

        Shapes: as `step`; each gradient as its parameter.
        """
        training = self.program.training
        assert training is not None
        check_inputs(self.program, x)
        self._check_labels(x, labels)
        try:
            tally = self._gradients(x, labels)
            self._gather()
            scale = np.float32(training.loss_scale * self._places(len(labels)))
            found = {}
            for trained in self._trained:
                values = self._machines[0].memory.array(self.program.index_of(trained.gradient))[0, 0]
                found[trained.parameter] = self._graph_order(trained, values.astype(np.float32)) / scale
        finally:
            self._clear_gradients()
        return tally, found

    def sparsity(self) -> tuple[Sparsity, ...]:
        """Zeros in the backward pass of all batches so far, updated or not, by layer, as in table 3.2."""
        return self._masks.table()

    def last_masks(self) -> dict[str, tuple[Values, Values | None]]:
        """Masks of the sub-batch that went backward last on machine 0, by layer, in the order of `LayerMasks`.

        None for outputs that are all wanted. Shapes: each (T, samples of a sub-batch, H, W, C).
        """
        assert self.program.training is not None
        memory, index = self._machines[0].memory, self.program.index_of
        return {
            layer.layer: (
                memory.array(index(layer.inputs)),
                memory.array(index(layer.outputs)) if layer.outputs else None,
            )
            for layer in self.program.training.masks
        }

    def weights(self) -> dict[str, F32]:
        """The parameters by their names in the graph; the master weights where the host keeps them."""
        return {t.parameter: self._graph_order(t, self._values(t)) for t in self._trained}

    def load_weights(self, weights: Mapping[str, F32]) -> None:
        """Set parameters of the graph; rounded to FP16 on the machines.

        Raises: CompileError for a missing or unknown name, a wrong shape, or a value that leaves FP16.
        """
        loc = Loc(self.program.name)
        names = {t.parameter for t in self._trained}
        if names != set(weights):
            raise CompileError(f"parameters {sorted(names ^ set(weights))} do not match the program", loc)
        for trained in self._trained:
            values = weights[trained.parameter]
            if values.shape != trained.shape:
                raise CompileError(f"{trained.parameter} is {values.shape}, the program has {trained.shape}", loc)
            with np.errstate(over="ignore"):
                rounded = values.astype(np.float16)
            if not np.isfinite(rounded).all():
                raise CompileError(f"{trained.parameter} holds a value that FP16 does not", loc)
        for trained in self._trained:
            canonical = self._memory_order(trained, weights[trained.parameter])
            self._write(trained, canonical.astype(np.float16))
            if self._optimiser is not None:
                self._optimiser.masters[trained.tensor] = canonical

    def state(self) -> State:
        """All that a later step depends on; `restore` brings it back bit for bit."""
        state: State = {"steps": np.array(self.steps), "presented": np.array(self.presented)}
        memory = self._machines[0].memory
        for trained in self._trained:
            state[f"weight.{trained.parameter}"] = self._canonical(trained).copy()
            if trained.momentum:
                state[f"momentum.{trained.parameter}"] = memory.array(self.program.index_of(trained.momentum)).copy()
            if self._optimiser is not None:
                state[f"master.{trained.parameter}"] = self._optimiser.masters[trained.tensor]
                if trained.tensor in self._optimiser.buffers:
                    state[f"buffer.{trained.parameter}"] = self._optimiser.buffers[trained.tensor]
        return state | {f"masks.{name}": counts for name, counts in self._masks.state().items()}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from a state of the same program.

        Raises: CompileError for a state of another program.
        """
        try:
            self._restore(state)
        except ValueError as fault:
            raise CompileError(
                f"the state does not fit the program: {fault}", Loc(self.program.name), hint="it is of another network"
            ) from fault

    # -- one step -----------------------------------------------------------------------------------------------------

    def _gradients(self, x: F32, labels: Labels) -> BatchTally:
        """Forward and backward over all sub-batches; their gradients stand in Mem 2 of their machines."""
        batch, tally = self.program.batch, BatchTally()
        groups = -(-len(labels) // batch)
        factor = groups * batch / len(labels)
        share = -(-groups // len(self._machines))
        for number, machine in enumerate(self._machines):
            own = range(number * share, min((number + 1) * share, groups))
            parts = [labels[i * batch : (i + 1) * batch] for i in own]
            host = LossHost(program=self.program, factor=factor, labels=list(parts), tally=tally)
            self._pipeline(machine, host, x, own, parts)
        return tally

    def _pipeline(self, machine: Machine, host: LossHost, x: F32, own: range, parts: list[Labels]) -> None:
        """Figure 3.9: the forward pass of a sub-batch beside the backward pass of the one before it."""
        for turn, number in enumerate(own):
            swapped = turn % 2 == 1
            self._feed(machine, x, number, swapped=swapped)
            machine.launch(Phase.OVERLAP if turn else Phase.FORWARD, swapped=swapped, host=host)
            if turn:
                self._masks.count(machine.memory, len(parts[turn - 1]))
        if own:
            machine.launch(Phase.BACKWARD, swapped=len(own) % 2 == 1, host=host)
            self._masks.count(machine.memory, len(parts[-1]))

    def _feed(self, machine: Machine, x: F32, number: int, *, swapped: bool) -> None:
        batch, source = self.program.batch, self.program.input_index
        part = slice(number * batch, (number + 1) * batch)
        samples = x[:, part] if self.program.host.input_has_time else x[part]
        machine.memory.swapped = swapped
        machine.memory.array(source)[...] = encode_inputs(self.program, samples, self.presented + number * batch)
        machine.memory.changed(source)

    def _gather(self) -> None:
        """One sum of all machines' gradients, in all of them."""
        if len(self._machines) == 1:
            return
        for trained in self._trained:
            index = self.program.index_of(trained.gradient)
            total = self._machines[0].memory.array(index).copy()
            with np.errstate(over="ignore"):
                for machine in self._machines[1:]:
                    total = total + machine.memory.array(index)
            if not np.isfinite(total).all():
                name = self.program.layers[trained.layer].name
                raise CompileError(
                    f"{name}: the gathered weight gradient overflows FP16",
                    Loc(self.program.name),
                    hint="lower the loss scale",
                )
            for machine in self._machines:
                machine.memory.array(index)[...] = total
                machine.memory.changed(index)

    def _update(self, groups: int, learning_rate: float | None) -> None:
        """The update on every machine; the host writes rate and batch group into its instructions first."""
        training = self.program.training
        assert training is not None
        if self._optimiser is not None:
            self._optimiser.scale = training.loss_scale * groups * self.program.batch
            self._optimiser.learning_rate = training.learning_rate if learning_rate is None else learning_rate
            self._update_by_host()
            return
        for machine in self._machines:
            machine.training.learning_rate = learning_rate
            machine.training.batch_group = groups
            machine.launch(Phase.UPDATE)

    def _update_by_host(self) -> None:
        """One step of the host's optimiser; the other machines get its weights."""
        first, *others = self._machines
        first.launch(Phase.UPDATE, host=LossHost(program=self.program, optimiser=self._optimiser))
        for trained in self._trained:
            values = self._canonical(trained)
            for machine in others:
                self._write_to(machine, trained, values)
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        for trained in self._trained:
            index = self.program.index_of(trained.gradient)
            for machine in self._machines:
                machine.memory.array(index)[...] = 0
                machine.memory.changed(index)

    def _report(self, tally: BatchTally) -> StepReport:
        updates = self._machines[0].training.updates
        names = [layer.name for layer in self.program.layers]
        if self._optimiser is not None:
            layer_of = {t.tensor: names[t.layer] for t in self._trained}
            changed, lost = (_summed(layer_of, counts) for counts in (self._optimiser.moved, self._optimiser.lost))
        else:
            changed, lost = (
                {names[layer]: count for layer, count in counts.items()} for counts in (updates.moved, updates.lost)
            )
        return StepReport(
            loss=tally.loss / tally.samples,
            correct=tally.correct,
            samples=tally.samples,
            changed=changed,
            lost=lost,
        )

    def _places(self, samples: int) -> int:
        return -(-samples // self.program.batch) * self.program.batch

    def _check_labels(self, x: F32, labels: Labels) -> None:
        samples = x.shape[1 if self.program.host.input_has_time else 0]
        if labels.shape != (samples,) or labels.dtype.kind not in "iu":
            raise CompileError(
                f"labels are {labels.dtype} {labels.shape}, must be one class index for each of {samples} samples",
                Loc(self.program.name),
            )
        classes = prod(self.program.tensors[self.program.output_index].shape[2:])
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise CompileError(
                f"labels from {labels.min()} to {labels.max()}, the network has {classes} classes",
                Loc(self.program.name),
            )

    # -- parameters ---------------------------------------------------------------------------------------------------

    @property
    def _trained(self) -> tuple[Trained, ...]:
        assert self.program.training is not None
        return self.program.training.parameters

    def _values(self, trained: Trained) -> F32:
        if self._optimiser is not None:
            return self._optimiser.masters[trained.tensor]
        return self._canonical(trained).astype(np.float32)

    def _canonical(self, trained: Trained) -> F16:
        """The parameter as it stands in memory, (y, x, c)."""
        return self._slot(self._machines[0], trained, 0)

    def _slot(self, machine: Machine, trained: Trained, memory: int) -> F16:
        array = cast(F16, machine.memory.array(self.program.index_of(trained.tensor), memory)[0, 0])
        return array[:1, :1] if trained.is_bias else array

    def _write(self, trained: Trained, values: F16) -> None:
        for machine in self._machines:
            self._write_to(machine, trained, values)

    def _write_to(self, machine: Machine, trained: Trained, values: F16) -> None:
        index = self.program.index_of(trained.tensor)
        for memory in machine.memory.copies(index):
            self._slot(machine, trained, memory)[...] = values
            machine.memory.changed(index, memory)

    def _graph_order(self, trained: Trained, values: F32) -> F32:
        """(y, x, c) to the graph's (outputs, inputs, kernel), features in channel, row, column order."""
        positions = trained.positions if values.shape[0] == 1 else values.shape[0]
        maps = values.reshape(positions, -1, values.shape[2])
        return np.array(maps.transpose(2, 1, 0).reshape(trained.shape), order="C")

    def _memory_order(self, trained: Trained, values: F32) -> F32:
        """The inverse of `_graph_order`."""
        slot = self._canonical(trained)
        if trained.is_bias:
            return np.array(values.reshape(slot.shape), np.float32)
        outputs = trained.shape[0]
        positions = trained.positions if slot.shape[0] == 1 else slot.shape[0]
        maps = values.reshape(outputs, -1, positions).transpose(2, 1, 0)
        return np.array(maps.reshape(slot.shape), np.float32, order="C")

    def _check_state(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Refuse a state with other names or arrays than this program's, before anything is written."""
        wanted = {name: array for name, array in self.state().items() if not name.startswith("buffer.")}
        if self._optimiser is not None and self._optimiser.momentum:
            masters = {name: a for name, a in wanted.items() if name.startswith("master.")}
            buffers = {f"buffer.{name.removeprefix('master.')}": array for name, array in masters.items()}
            if buffers.keys() & state.keys():  # none before the first step
                wanted |= buffers
        if wanted.keys() != state.keys():
            raise ValueError(f"{sorted(wanted.keys() ^ state.keys())} are not in both")
        for name, array in wanted.items():
            found = state[name]
            if (found.shape, found.dtype) != (array.shape, array.dtype):
                raise ValueError(f"{name} is {found.dtype} {found.shape}, not {array.dtype} {array.shape}")

    def _restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self._check_state(state)
        for trained in self._trained:
            self._write(trained, cast(F16, state[f"weight.{trained.parameter}"]))
            if trained.momentum:
                index = self.program.index_of(trained.momentum)
                for machine in self._machines:
                    machine.memory.array(index)[...] = state[f"momentum.{trained.parameter}"]
                    machine.memory.changed(index)
            if self._optimiser is not None:
                self._optimiser.masters[trained.tensor] = cast(F32, state[f"master.{trained.parameter}"].copy())
                self._optimiser.buffers.pop(trained.tensor, None)
                if f"buffer.{trained.parameter}" in state:
                    self._optimiser.buffers[trained.tensor] = cast(F32, state[f"buffer.{trained.parameter}"].copy())
        self._clear_gradients()
        self.steps, self.presented = int(state["steps"]), int(state["presented"])
        self._masks.restore({name.removeprefix("masks."): a for name, a in state.items() if name.startswith("masks.")})


def _summed(layer_of: Mapping[str, str], counts: Mapping[str, int]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for tensor, count in counts.items():
        sums[layer_of[tensor]] = sums.get(layer_of[tensor], 0) + count
    return sums
