"""Vectors of linear forms over the variables of a constraint model, in exact integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from compiler.certify.integer_matrices import Ints, scaled_rows, selected
from compiler.certify.integer_network import LARGEST

if TYPE_CHECKING:
    from ortools.sat.python import cp_model
    from scipy.sparse import csr_array


@dataclass(slots=True)
class Variables:
    """The variables of a model with the bounds of their values; a form's column is a variable's index."""

    model: cp_model.CpModel
    handles: list[cp_model.IntVar] = field(default_factory=list)
    lower: list[int] = field(default_factory=list)
    upper: list[int] = field(default_factory=list)

    def boolean(self) -> int:
        """A new variable of 0 and 1."""
        return self._add(self.model.new_bool_var(""), 0, 1)

    def integer(self, lower: int, upper: int) -> int:
        """A new integer variable."""
        return self._add(self.model.new_int_var(lower, upper, ""), lower, upper)

    def _add(self, handle: cp_model.IntVar, lower: int, upper: int) -> int:
        self.handles.append(handle)
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.handles) - 1

    def expression(self, form: Form, row: int) -> cp_model.LinearExprT:
        """One form as the solver takes it."""
        from ortools.sat.python import cp_model

        start, end = form.rows.indptr[row : row + 2]
        handles = [self.handles[i] for i in form.rows.indices[start:end]]
        constant = int(form.constant[row])
        return cp_model.LinearExpr.weighted_sum(handles, form.rows.data[start:end].tolist()) + constant

    def bounds(self, form: Form) -> tuple[Ints, Ints]:
        """Bounds of every form over the variables' ranges, each taken by itself."""
        lower, upper = np.array(self.lower, np.int64), np.array(self.upper, np.int64)
        rows = widened(form.rows, len(lower))
        rising, falling = rows.copy(), rows.copy()
        rising.data, falling.data = np.maximum(rows.data, 0), np.minimum(rows.data, 0)
        least = form.constant + rising @ lower + falling @ upper
        most = form.constant + rising @ upper + falling @ lower
        assert max(np.abs(least).max(initial=0), np.abs(most).max(initial=0)) <= LARGEST, "magnitudes are checked ahead"
        return least, most


@dataclass(frozen=True, slots=True)
class Form:
    """constant + rows @ variables. Shapes: rows (F, variables there were), constant (F,)."""

    rows: csr_array
    constant: Ints

    def __add__(self, other: Form) -> Form:
        width = max(self.rows.shape[1], other.rows.shape[1])
        return Form(widened(self.rows, width) + widened(other.rows, width), self.constant + other.constant)

    def times(self, factors: Ints | int) -> Form:
        """Every row times its factor, or all times one."""
        spread = np.broadcast_to(np.asarray(factors, np.int64), self.constant.shape)
        return Form(scaled_rows(self.rows, spread), self.constant * spread)

    def through(self, matrix: csr_array) -> Form:
        """matrix @ form."""
        return Form(matrix @ self.rows, matrix @ self.constant)

    def plus(self, constant: Ints) -> Form:
        """The form with a constant added."""
        return Form(self.rows, self.constant + constant)

    def at(self, rows: Ints) -> Form:
        """Some of the rows."""
        return Form(self.rows[rows], self.constant[rows])


def constants(values: Ints) -> Form:
    """Forms that are numbers."""
    return units(values, np.zeros(0, np.int64), [])


def units(values: Ints, rows: Ints, variables: list[int]) -> Form:
    """Numbers, with variables instead at the rows."""
    fixed = np.array(values, np.int64)
    fixed[rows] = 0
    width = max(variables, default=-1) + 1
    return Form(selected(rows, np.array(variables, np.int64), (len(fixed), width)), fixed)


def widened(rows: csr_array, width: int) -> csr_array:
    """The same rows over more variables."""
    from scipy.sparse import csr_array

    return csr_array((rows.data, rows.indices, rows.indptr), shape=(rows.shape[0], width))
