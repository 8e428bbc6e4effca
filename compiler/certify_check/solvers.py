"""Whether formulas have a solution, by one of two solvers."""

from __future__ import annotations

import time
from typing import Any

from compiler.certify_check.formulas import Formulas, Literal, Rule
from compiler.ir import CompileError, Loc

LARGEST_PB = 2**31 - 1  # of a coefficient and of the sum of all: Z3 takes them as 32-bit integers, unchecked
LARGEST_CP = 2**61  # of a sum: CP-SAT's are 64-bit integers
SEED = 0

Solution = list[int]  # one value for each variable


class Undecided(Exception):  # noqa: N818  # a limit was reached, nothing is wrong
    """There was no answer within the limit."""


def solution(formulas: Formulas, ends: float) -> tuple[Solution | None, str]:
    """Values that satisfy all rules, or None where there are none, and the solver that says so.

    Z3 has half of the time, as the verdict itself is CP-SAT's; then CP-SAT has what is left. ends: by
    `time.perf_counter`.

    Raises: Undecided if neither has an answer by then; CompileError where neither is installed.
    """
    tried = False
    for name, solver, share in (("Z3", by_z3, 0.5), ("CP-SAT", by_cp_sat, 1.0)):
        try:
            return solver(formulas, share * (ends - time.perf_counter())), name
        except ModuleNotFoundError:
            continue
        except Undecided:
            tried = True
    if not tried:
        raise CompileError(
            "exact verdicts are decided again by Z3 or OR-tools, neither of which is installed",
            Loc("certificate"),
            hint='pip install "spikec[verify]"',
        )
    raise Undecided


_LONGEST_S = 4e6  # that Z3 can be told, in milliseconds of 32 bits


def by_z3(formulas: Formulas, seconds: float) -> Solution | None:
    """Z3's answer. Raises: Undecided; ModuleNotFoundError where it is not installed."""
    import z3

    solver = z3.Solver()
    if seconds < _LONGEST_S:
        solver.set("timeout", max(1, int(seconds * 1000)))
    handles = []
    for number, (lower, upper) in enumerate(formulas.bounds):
        if (lower, upper) == (0, 1):
            handles.append(z3.Bool(f"b{number}"))
        else:
            handles.append(z3.Int(f"i{number}"))
            solver.add(handles[-1] >= lower, handles[-1] <= upper)

    def literal(own: Literal) -> Any:
        return handles[own] if own >= 0 else z3.Not(handles[~own])

    for rule in formulas.rules:
        holds = _inequality(rule, formulas, handles)
        solver.add(z3.Implies(z3.And([literal(own) for own in rule.when]), holds) if rule.when else holds)
    found = solver.check()
    if found == z3.unknown:
        raise Undecided
    if found == z3.unsat:
        return None
    model = solver.model()
    values = [model.eval(handle, model_completion=True) for handle in handles]
    return [value.as_long() if z3.is_int(value) else int(z3.is_true(value)) for value in values]


def _inequality(rule: Rule, formulas: Formulas, handles: list[Any]) -> Any:
    """One rule's sum: of Booleans as a pseudo-Boolean constraint, whose coefficients are positive."""
    import z3

    if not rule.terms:
        return z3.BoolVal(rule.least <= 0)
    is_small = sum(abs(own) for own in rule.terms.values()) + abs(rule.least) <= LARGEST_PB
    if is_small and all(formulas.bounds[name] == (0, 1) for name in rule.terms):
        below = sum(own for own in rule.terms.values() if own < 0)
        pairs = [(handles[name] if own > 0 else z3.Not(handles[name]), abs(own)) for name, own in rule.terms.items()]
        return z3.PbGe(pairs, rule.least - below)
    terms = [
        z3.If(handles[name], own, 0) if formulas.bounds[name] == (0, 1) else own * handles[name]
        for name, own in rule.terms.items()
    ]
    return z3.Sum(terms) >= rule.least


def by_cp_sat(formulas: Formulas, seconds: float) -> Solution | None:
    """CP-SAT's answer, on one worker.

    Raises: Undecided, also of sums that need more than 64 bits; ModuleNotFoundError where it is not installed.
    """
    from ortools.sat.python import cp_model

    peaks = [max(abs(lower), abs(upper)) for lower, upper in formulas.bounds]
    for rule in formulas.rules:
        if sum(abs(own) * peaks[name] for name, own in rule.terms.items()) + abs(rule.least) > LARGEST_CP:
            raise Undecided
    model = cp_model.CpModel()
    handles = [model.new_int_var(lower, upper, "") for lower, upper in formulas.bounds]
    for rule in formulas.rules:
        total = cp_model.LinearExpr.weighted_sum([handles[name] for name in rule.terms], list(rule.terms.values()))
        when = [handles[own] if own >= 0 else ~handles[~own] for own in rule.when]
        model.add(total >= rule.least).only_enforce_if(when)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.0, seconds)
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise Undecided
    return [solver.value(handle) for handle in handles]
