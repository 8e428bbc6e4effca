"""What an attack is: all that its outcomes rest on but the cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from compiler.attack.fresh import Fresh, over_fresh_draws
from compiler.attack.methods import Method, Refinement, attack_with
from compiler.attack.settings import Case, Settings, Status
from compiler.attack.surrogates import SurrogateRule
from compiler.attack.victim import Victim
from compiler.ir import CompileError, Encoding, Graph, Loc, Surrogate
from compiler.losses import Loss
from spikec.commands.talk import Json

if TYPE_CHECKING:
    from compiler.attack.retime import RetimeBudget

FRESH_DRAWS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A network, a method and its numbers; plain data that travels to other processes.

    loss, threshold, surrogate: as of `Victim`. retiming: what the method `retime` may move.
    fresh: Bernoulli codes that each success is judged by afterwards.

    Raises: CompileError without a code to judge by.
    """

    graph: Graph
    method: Method
    settings: Settings
    refinement: Refinement = Refinement.NONE
    retiming: RetimeBudget | None = None
    loss: Loss = Loss.CROSS_ENTROPY
    threshold: float | None = None
    surrogate: Surrogate | SurrogateRule | None = None
    fresh: int = FRESH_DRAWS

    def __post_init__(self) -> None:
        if self.fresh < 1:
            raise CompileError(f"fresh is {self.fresh}, must be at least 1", Loc("attack"))

    def victim(self) -> Victim:
        """The network under attack. Raises: CompileError as `Victim`."""
        return Victim(self.graph, loss=self.loss, threshold=self.threshold, surrogate=self.surrogate)

    def finished(self, victim: Victim, cases: Iterable[Case]) -> Iterator[Fresh]:
        """Each case's outcome, in no fixed order, and how many fresh draws of the code its example fools.

        A network that draws nothing has the one verdict; an example that does not succeed is drawn no further.

        Raises: CompileError as `attack_with`.
        """
        outcomes = attack_with(self.method, victim, cases, self.settings, self.refinement, retiming=self.retiming)
        for outcome in outcomes:
            fools = outcome.status is Status.SUCCESS
            if victim.encoding is not Encoding.BERNOULLI:
                yield Fresh(outcome=outcome, successes=int(fools), draws=1)
            elif not fools:
                yield Fresh(outcome=outcome, successes=0, draws=self.fresh)
            else:
                yield from over_fresh_draws(victim, [outcome], draws=self.fresh, seed=self.settings.seed)

    def check(self) -> None:
        """Raises: CompileError for what is refused whatever the cases are."""
        list(self.finished(self.victim(), ()))

    def described(self) -> dict[str, Json]:
        """Everything but the network, as a results file tells it."""
        return {
            "method": str(self.method),
            "refinement": str(self.refinement),
            "retiming": asdict(self.retiming) if self.retiming is not None else None,
            "loss": str(self.loss),
            "threshold": self.threshold,
            "surrogate": repr(self.surrogate) if self.surrogate is not None else None,
            "fresh": self.fresh,
            "settings": _settings_described(self.settings),
        }


def _settings_described(settings: Settings) -> dict[str, Json]:
    """The numbers by name; no bound is null, as JSON has no infinity."""
    return {**asdict(settings), "epsilon": settings.epsilon if math.isfinite(settings.epsilon) else None}


def network_digest(graph: Graph) -> str:
    """SHA-256 of a network's text and parameters, wherever it was loaded from."""
    return graph.with_nodes(tuple(replace(node, loc=Loc("")) for node in graph.nodes)).digest()
