"""The Pareto front: designs that no other design beats in everything."""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel.estimate import Estimate

Objectives = tuple[float, ...]  # each the better the less


def objectives(found: Estimate) -> Objectives:
    """Throughput up, energy per sample and area down."""
    return -found.samples_per_second, found.energy_j_per_sample, found.area_mm2


def pareto_front(points: Sequence[Objectives]) -> tuple[int, ...]:
    """Indexes of the points that are not dominated, in their order; of equal points all.

    A point dominates another that it equals or betters in every objective and betters in one. In lexicographic order
    only earlier points can dominate, and one of the front so far does if any does.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda at: points[at]):
        if not any(dominates(points[other], points[index]) for other in front):
            front.append(index)
    return tuple(sorted(front))


def dominates(first: Objectives, second: Objectives) -> bool:
    """Whether the first is nowhere worse and somewhere better."""
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))
