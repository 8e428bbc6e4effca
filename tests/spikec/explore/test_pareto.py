"""The front against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spikec.explore.pareto import pareto_front

NUMBER = st.integers(-3, 3).map(float) | st.floats(allow_nan=False)


def by_definition(points: list[tuple[float, float, float]]) -> tuple[int, ...]:
    """Every point against every other."""
    return tuple(
        index
        for index, point in enumerate(points)
        if not any(
            all(theirs <= ours for theirs, ours in zip(other, point, strict=True))
            and any(theirs < ours for theirs, ours in zip(other, point, strict=True))
            for other in points
        )
    )


@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), max_size=40))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float, float]]) -> None:
    assert pareto_front(points) == by_definition(points)


def test_equal_points_stand_side_by_side() -> None:
    assert pareto_front([(1, 2, 3), (0, 5, 5), (1, 2, 3), (1, 2, 4)]) == (0, 1, 2)


def test_no_points() -> None:
    assert pareto_front([]) == ()
