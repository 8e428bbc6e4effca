"""Random instructions and field values for the tests, drawn from the declared layouts."""

from __future__ import annotations

from hypothesis import strategies as st

from hwmodel.isa import OPCODES, FieldLayout, Instruction, layout


def field_range(item: FieldLayout) -> tuple[int, int]:
    """The least and the largest integer that a field holds."""
    if item.signed:
        return -(1 << item.width - 1), (1 << item.width - 1) - 1
    return 0, (1 << item.width) - 1


def field_values(item: FieldLayout) -> st.SearchStrategy[object]:
    """Every value that a field may have; small ones and the limits often."""
    if item.enum is not None:
        return st.sampled_from(list(item.enum))
    if item.is_bool:
        return st.booleans()
    low, high = field_range(item)
    return st.integers(low, high) | st.integers(max(low, -3), min(high, 12)) | st.sampled_from([low, high])


def instructions(kind: type[Instruction]) -> st.SearchStrategy[Instruction]:
    """Instructions of one class with any values in their fields."""
    return st.builds(kind, **{item.name: field_values(item) for item in layout(kind)})


def any_instruction() -> st.SearchStrategy[Instruction]:
    """Instructions of every class."""
    return st.sampled_from(list(OPCODES.values())).flatmap(instructions)
