"""Robust training as the command line asks for it, and what a report says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from compiler.ir import Graph
from frontends.datasets import Samples
from frontends.robust.certified import certified
from frontends.robust.settings import RobustSettings, parse_threat
from hwmodel.errors import CompileError, Loc

CERTIFIED_SAMPLES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustRequest:
    """The command's words for it; None leaves a number to the settings' own."""

    threat: str
    timesteps: int | None = None
    warmup: float | None = None
    weight: float | None = None
    kappa: float | None = None
    samples: int | None = None  # of the test set, that are certified afterwards

    def settings(self) -> RobustSettings:
        """The settings that the words name.

        Raises: CompileError naming the option.
        """
        given = {name: getattr(self, name) for name in ("timesteps", "warmup", "weight", "kappa")}
        numbers = {name: value for name, value in given.items() if value is not None}
        settings = RobustSettings(threat=parse_threat(self.threat), **numbers)
        settings.verify()
        if self.samples is not None and self.samples < 1:
            raise CompileError(f"is {self.samples}, must be at least 1", Loc("--robust-samples"))
        return settings


def robust_request(threat: str, **numbers: float | None) -> RobustRequest | None:
    """What is asked for; None for ordinary training.

    Raises: CompileError for numbers of robust training without `--robust`.
    """
    given = [name for name, value in numbers.items() if value is not None]
    if threat:
        return RobustRequest(threat=threat, **numbers)  # type: ignore[arg-type]  # integers are where they belong
    if given:
        hint = "give --robust linf:eps=0.05, l0:k=4 or box:share=0.02"
        raise CompileError("is for robust training", Loc(f"--robust-{given[0]}"), hint=hint)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustFacts:
    """What a report says of robust training besides what it reached on clean samples.

    certified_accuracy: share of the first test samples for which S-IBP proves the right class on the whole set, for
    f32 arithmetic and, of Bernoulli codes, the draws that the graph's seed gives them.
    """

    robust: str
    robust_timesteps: int
    robust_warmup: float
    robust_weight: float
    robust_kappa: float
    certified_accuracy: float
    certified_samples: int


def robust_facts(request: RobustRequest, graph: Graph, test: Samples) -> RobustFacts:
    """Of a trained network."""
    settings = request.settings()
    some = test.take(slice(request.samples or CERTIFIED_SAMPLES))
    return RobustFacts(
        robust=request.threat,
        robust_timesteps=settings.timesteps or graph.timesteps,
        robust_warmup=settings.warmup,
        robust_weight=settings.weight,
        robust_kappa=settings.kappa,
        certified_accuracy=float(certified(graph, some, settings.threat).mean()),
        certified_samples=len(some),
    )


def robust_identity(request: RobustRequest) -> dict[str, str]:
    """What decides the bits of a robust run."""
    settings = request.settings()
    return {f"robust {own.name}": str(getattr(settings, own.name)) for own in fields(settings)}


def robust_rows(facts: RobustFacts) -> Iterator[tuple[str, str]]:
    """Lines of a table."""
    yield f"certified by S-IBP, first {facts.certified_samples} test samples", f"{facts.certified_accuracy:.4f}"
    yield "robust against, time steps", f"{facts.robust}, {facts.robust_timesteps}"
    numbers = f"{facts.robust_warmup:g}, {facts.robust_weight:g}, {facts.robust_kappa:g}"
    yield "warm-up, weight, kappa", numbers
