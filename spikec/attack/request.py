"""What a user asks of an attack by words and numbers, and the plan that follows for a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.attack.budget import Budget, Norm
from compiler.attack.methods import Method, Refinement
from compiler.attack.settings import Settings
from compiler.attack.surrogates import AdaptiveSharpness, PotentialDependent, SurrogateRule
from compiler.ir import Graph, Surrogate, SurrogateKind
from compiler.losses import Loss
from hwmodel.errors import CompileError, Loc
from spikec.attack.plan import Plan

if TYPE_CHECKING:
    from compiler.attack.retime import RetimeBudget

SEEDS = 1 << 63  # what the random generators take
OWN_SURROGATE = "own"
RULES = {"potential": PotentialDependent, "adaptive": AdaptiveSharpness}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command's options that make the plan; `eps`, `l0`, `l2`, `linf` are bounds, None for none.

    surrogate: `own`, a kind of surrogate with its default width, or a rule, `potential` or `adaptive`.
    moved, shift, total_shift: limits of the method `retime`.
    """

    method: str
    refine: str
    loss: str
    threshold: float | None
    surrogate: str
    iterations: int
    gamma: float
    step: float | None
    pull: float
    sampling: bool
    flipping: bool
    restarts: int
    draws: int
    eps: float | None
    l0: float | None
    l2: float | None
    linf: float | None
    moved: int | None
    shift: int | None
    total_shift: int | None
    fresh: int
    seed: int

    def settings(self) -> Settings:
        """Raises: CompileError for numbers outside their ranges, and more than one budget."""
        if self.seed >= SEEDS:
            raise CompileError(f"seed is {self.seed}, must be below {SEEDS}", Loc("--seed"))
        return Settings(
            iterations=self.iterations,
            gamma=self.gamma,
            step=self.step,
            epsilon=math.inf if self.eps is None else self.eps,
            pull=self.pull,
            sampling=self.sampling,
            flipping=self.flipping,
            seed=self.seed,
            restarts=self.restarts,
            draws=self.draws,
            budget=self._budget(),
        )

    def plan(self, graph: Graph) -> Plan:
        """Raises: as `settings`."""
        limits = (self.moved, self.shift, self.total_shift)
        return Plan(
            graph=graph,
            method=Method(self.method),
            settings=self.settings(),
            refinement=Refinement(self.refine),
            retiming=None if limits == (None, None, None) else self._retiming(),
            loss=Loss(self.loss),
            threshold=self.threshold,
            surrogate=surrogate_named(self.surrogate),
            fresh=self.fresh,
        )

    def _retiming(self) -> RetimeBudget:
        from compiler.attack.retime import RetimeBudget

        return RetimeBudget(moved=self.moved, shift=self.shift, total=self.total_shift)

    def _budget(self) -> Budget | None:
        bounds = {Norm.L0: self.l0, Norm.L2: self.l2, Norm.LINF: self.linf}
        given = {norm: bound for norm, bound in bounds.items() if bound is not None}
        if len(given) > 1:
            options = ", ".join(f"--{norm}" for norm in given)
            raise CompileError("only one budget can be kept at a time", Loc(options), hint="leave the others out")
        return next((Budget(norm=norm, bound=bound) for norm, bound in given.items()), None)


def surrogate_named(name: str) -> Surrogate | SurrogateRule | None:
    """What takes the place of the neurons' own surrogates; None for nothing."""
    if name == OWN_SURROGATE:
        return None
    rule = RULES.get(name)
    return Surrogate(kind=SurrogateKind(name)) if rule is None else rule()
