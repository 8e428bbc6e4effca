"""Neurons that a network writes out in operators, found in its trace."""

from frontends.torch_import.recurrence.fold import fold_recurrences

__all__ = ["fold_recurrences"]
