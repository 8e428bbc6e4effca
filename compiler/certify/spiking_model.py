"""A network unrolled over time as a constraint model, with variables only where bounds leave a spike undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.certify.affine_forms import Form, Variables, constants, units, widened
from compiler.certify.input_sets import Box, InputSet
from compiler.certify.integer_matrices import Ints
from compiler.certify.integer_network import (
    LARGEST,
    Affine,
    Given,
    IntegerNetwork,
    Maximum,
    Neurons,
    Reduce,
    Repeat,
    Step,
)
from compiler.certify.set_constraints import Bits, constrain
from compiler.ir import Reading, Reset

if TYPE_CHECKING:
    from ortools.sat.python import cp_model
    from scipy.sparse import csr_array

EXACT_F64 = 2**53
AT_ONCE = 2**22  # coefficients whose support is taken together: 32 MiB

MembraneBounds = Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


@dataclass(slots=True)
class SpikingModel:
    """Every value of a network as linear forms over Boolean spikes and integer potentials.

    A neuron step whose potential's bounds lie on one side of the threshold is stable: its spike is a number and its
    potential a form. An unstable one has a Boolean s and an integer m: s = 1 forces m >= threshold, s = 0 forces
    m < threshold; what decays into the next step is one more integer, equal to m or to its value after reset.

    network: of the graph. inputs: the set. given: bounds of membrane potentials, in addition to the model's own.
    stable, unstable: neuron steps of each kind, counted while the model is built.
    """

    network: IntegerNetwork
    inputs: InputSet
    given: MembraneBounds
    model: cp_model.CpModel
    variables: Variables = field(init=False)
    bits: Bits = field(init=False)
    scores: Form = field(init=False)
    stable: int = 0
    unstable: int = 0

    def __post_init__(self) -> None:
        self.variables = Variables(self.model)
        values: dict[str, list[Form]] = {}
        for name, step in self.network.steps.items():
            values[name] = self._value(name, step, values)
        (self.scores,) = values[self.network.graph.output]

    def _value(self, name: str, step: Step, values: Mapping[str, Sequence[Form]]) -> list[Form]:
        match step:
            case Given():
                return self._input()
            case Repeat():
                return [values[step.source][0]] * step.timesteps
            case Affine():
                return [_affine(step, t, values) for t in range(len(step.shifts))]
            case Maximum():
                return [self._maximum(step, x) for x in values[step.source]]
            case Reduce():
                scaled = [x.times(gain) for x, gain in zip(values[step.source], step.gains, strict=True)]
                return [self._reduced(step.kind, scaled)]
            case Neurons():
                return self._neurons(name, step, values[step.source])
            case _:
                raise AssertionError(f"no rule to model {type(step).__name__}")

    def _input(self) -> list[Form]:
        """A Boolean for every free bit, kept to the set."""
        clean = self.inputs.clean.astype(np.int64).reshape(-1)
        free = np.flatnonzero(self.inputs.lower.reshape(-1) < self.inputs.upper.reshape(-1))
        indices = [self.variables.boolean() for _ in free]
        handles = (self.variables.handles[index] for index in indices)
        self.bits = Bits(model=self.model, at=dict(zip(free.tolist(), handles, strict=True)))
        constrain(self.inputs, self.bits)
        every = units(clean, free, indices)
        steps = len(self.network.scales[self.network.graph.input.name])
        return [every.at(part) for part in np.arange(len(clean)).reshape(steps, -1)]

    def _neurons(self, name: str, step: Neurons, x: Sequence[Form]) -> list[Form]:
        v = constants(step.initial)
        s = constants(np.zeros_like(step.initial))
        membranes, spikes = [], []
        for t, current in enumerate(x):
            m = v.times(step.decay[t]) + current.times(step.gain[t]).plus(step.bias[t])
            if step.delayed:
                m = m + s.times(-step.threshold[t])
            membranes.append(m)
            if step.fires:
                is_last = t + 1 == len(x)
                s, v = self._fired(name, step, t, m, np.zeros_like(step.initial) if is_last else step.decay[t + 1])
                spikes.append(s)
            else:
                v = m
        return spikes if step.fires else membranes

    def _fired(self, name: str, step: Neurons, t: int, m: Form, next_decay: Ints) -> tuple[Form, Form]:
        """Spikes, and the potentials after reset, at one step."""
        fires_from = step.fires_from[t]
        lower, upper = self._membrane_bounds(name, step, t, m)
        is_on, is_off = lower >= fires_from, upper < fires_from
        rows = np.flatnonzero(~is_on & ~is_off)
        self.unstable += len(rows)
        self.stable += len(is_on) - len(rows)
        spike_of: list[int] = []
        after_of: list[int] = []
        for row in rows.tolist():
            low, high, fires = int(lower[row]), int(upper[row]), int(fires_from[row])
            potential = self.variables.integer(low, high)
            spike = self.variables.boolean()
            m_handle, s_handle = self.variables.handles[potential], self.variables.handles[spike]
            self.model.add(m_handle == self.variables.expression(m, row))
            self.model.add(m_handle >= fires).only_enforce_if(s_handle)
            self.model.add(m_handle < fires).only_enforce_if(~s_handle)
            spike_of.append(spike)
            after_of.append(self._after(step, t, row, potential, spike, carries=bool(next_decay[row])))
        s = units(is_on.astype(np.int64), rows, spike_of)
        return s, _merged(rows, after_of, self._stable_after(step, t, m, is_on))

    def _after(self, step: Neurons, t: int, row: int, potential: int, spike: int, *, carries: bool) -> int:
        """The variable of an unstable neuron's potential after reset."""
        if not carries or step.reset is Reset.NONE or step.delayed:
            return potential
        variables, fires = self.variables, int(step.fires_from[t, row])
        low, high = variables.lower[potential], variables.upper[potential]
        m, s = variables.handles[potential], variables.handles[spike]
        if step.reset is Reset.HARD:
            value = int(step.reset_value[t, row])
            after = variables.integer(min(low, value), max(fires - 1, value))
            self.model.add(variables.handles[after] == value).only_enforce_if(s)
            self.model.add(variables.handles[after] == m).only_enforce_if(~s)
            return after
        threshold = int(step.threshold[t, row])
        after = variables.integer(min(low, fires - threshold), max(fires - 1, high - threshold))
        self.model.add(variables.handles[after] == m - threshold * s)
        return after

    def _stable_after(self, step: Neurons, t: int, m: Form, is_on: npt.NDArray[np.bool_]) -> Form:
        """Potentials after reset as if every neuron were stable."""
        on = is_on.astype(np.int64)
        if step.reset is Reset.HARD:
            return m.times(1 - on).plus(on * step.reset_value[t])
        if step.reset is Reset.SOFT and not step.delayed:
            return m.plus(-on * step.threshold[t])
        return m

    def _membrane_bounds(self, name: str, step: Neurons, t: int, m: Form) -> tuple[Ints, Ints]:
        """From the variables' ranges, the set's support and what was given, whichever is tightest."""
        lower, upper = self.form_bounds(m, step.fires_from[t])
        if name in self.given:
            scale = step.scales[t]
            least, most = (np.asarray(part[t], np.float64).reshape(-1) * float(scale) for part in self.given[name])
            # A product with a power of two is exact; any other is off by less than this.
            slack = 0.0 if scale & (scale - 1) == 0 else 1.0 + 2.0**-50 * np.maximum(np.abs(least), np.abs(most))
            limit = float(LARGEST)
            lower = np.maximum(lower, np.ceil(np.clip(least - slack, -limit, limit)).astype(np.int64))
            upper = np.minimum(upper, np.floor(np.clip(most + slack, -limit, limit)).astype(np.int64))
        if (lower > upper).any():
            node = self.network.graph.node(name)
            raise self.network.graph.site(node).fail("no potential is inside the bounds that were given")
        return lower, upper

    def form_bounds(self, form: Form, cut: Ints | None = None) -> tuple[Ints, Ints]:
        """Bounds of forms; those that do not tell the side of `cut` are tightened by the set's support."""
        lower, upper = self.variables.bounds(form)
        count = len(self.bits.at)
        rows = np.arange(len(lower)) if cut is None else np.flatnonzero((lower < cut) & (upper >= cut))
        if isinstance(self.inputs, Box) or not count or not len(rows):
            return lower, upper
        at_once = max(1, AT_ONCE // self.inputs.clean.size)
        for some in (rows[i : i + at_once] for i in range(0, len(rows), at_once)):
            least, most = self._supported(form.at(some))
            lower[some], upper[some] = np.maximum(lower[some], least), np.minimum(upper[some], most)
        return lower, upper

    def _supported(self, form: Form) -> tuple[Ints, Ints]:
        """Bounds from the minimum of the input part over the set, and the other variables' ranges."""
        import torch

        count = len(self.bits.at)
        rows = widened(form.rows, max(count, len(self.variables.handles)))
        lower, upper = self.variables.bounds(Form(_only(rows, count, inputs=False), form.constant))
        on_inputs = rows[:, :count].toarray().astype(np.float64)
        flat = np.zeros((len(lower), int(np.prod(self.inputs.shape))))
        flat[:, list(self.bits.at)] = on_inputs
        a = torch.from_numpy(flat.reshape(-1, *self.inputs.shape))
        least, most = self.inputs.support(a).numpy(), -self.inputs.support(-a).numpy()
        # Sums of integers below 2**53 are exact in f64.
        is_exact = np.abs(on_inputs).sum(1) < EXACT_F64 / 2
        own_least, own_most = self.variables.bounds(Form(_only(rows, count, inputs=True), np.zeros_like(lower)))
        least = np.where(is_exact, np.rint(least), own_least).astype(np.int64)
        most = np.where(is_exact, np.rint(most), own_most).astype(np.int64)
        return lower + least, upper + most

    def _maximum(self, step: Maximum, x: Form) -> Form:
        members = step.members
        windows = [members.indices[a:b] for a, b in zip(members.indptr[:-1], members.indptr[1:], strict=True)]
        return self._largest(x, windows)

    def _reduced(self, kind: Reading, values: Sequence[Form]) -> Form:
        match kind:
            case Reading.RATE:
                total = values[0]
                for value in values[1:]:
                    total = total + value
                return total
            case Reading.LAST:
                return values[-1]
            case Reading.MAX:
                size = len(values[0].constant)
                return self._largest(_stacked(values), [np.arange(i, size * len(values), size) for i in range(size)])

    def _largest(self, x: Form, windows: Sequence[Ints]) -> Form:
        """The maximum of the forms of each window; those that can never be it are left out."""
        lower, upper = self.form_bounds(x)
        chosen: list[int] = []
        rows, made = [], []
        for at, window in enumerate(windows):
            floor = int(lower[window].max())
            first = max(window.tolist(), key=lambda row: (upper[row], lower[row]))
            rivals = [int(row) for row in window if row != first and upper[row] > floor]
            if lower[first] == floor and not rivals:
                chosen.append(first)
                continue
            ceiling = int(upper[window].max())
            variable = self.variables.integer(floor, ceiling)
            candidates = [int(row) for row in window if upper[row] >= floor]
            self.model.add_max_equality(
                self.variables.handles[variable], [self.variables.expression(x, row) for row in candidates]
            )
            chosen.append(first)
            rows.append(at)
            made.append(variable)
        return _merged(np.array(rows, np.int64), made, x.at(np.array(chosen, np.int64)))


def _affine(step: Affine, t: int, values: Mapping[str, Sequence[Form]]) -> Form:
    terms = []
    for operand in step.operands:
        x = values[operand.source][t]
        terms.append((x if operand.weight is None else x.through(operand.weight)).times(operand.gains[t]))
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total if step.bias is None else total.plus(step.bias * step.shifts[t])


def _merged(rows: Ints, variables: list[int], form: Form) -> Form:
    """The form, with variables instead at the rows."""
    keep = np.ones(len(form.constant), np.int64)
    keep[rows] = 0
    return form.times(keep) + units(np.zeros_like(keep), rows, variables)


def _only(rows: csr_array, count: int, *, inputs: bool) -> csr_array:
    """The rows' part on the first `count` variables, or on the others."""
    kept = rows.copy()
    kept.data = np.where((kept.indices < count) == inputs, kept.data, 0)
    return kept


def _stacked(forms: Sequence[Form]) -> Form:
    from scipy import sparse

    width = max(form.rows.shape[1] for form in forms)
    rows = sparse.vstack([widened(form.rows, width) for form in forms], format="csr")
    return Form(rows, np.concatenate([form.constant for form in forms]))
