"""The static checker: refuses a program before it runs."""

from hwmodel.checker.execution import check

__all__ = ["check"]
