"""The checker stands alone: of what finds bounds it imports nothing."""

from __future__ import annotations

import ast

from tests.test_architecture import ROOT, imported, module_name, on_import

# What does a statement over again may use the paths that are not about bounds, and the count that it repeats.
REPEATS = {"replay": {"integer_network", "integers", "statistics"}}


def test_the_checker_shares_no_bound() -> None:
    faults = []
    files = sorted((ROOT / "compiler/certify_check").glob("*.py"))
    assert len(files) > 5
    for path in files:
        tree = ast.parse(path.read_text())
        for name in imported(tree, module_name(path)):
            parts = name.split(".")
            if parts[:2] == ["compiler", "certify"] and parts[2:3][0] not in REPEATS.get(path.stem, set()):
                faults.append(f"{path.name} imports {name}")
        for name in imported(on_import(tree), module_name(path)):
            if name.startswith("compiler.certify.") or name.startswith("compiler.attack"):
                faults.append(f"{path.name} imports {name} whenever it is imported")
    assert not faults, "\n".join(faults)
