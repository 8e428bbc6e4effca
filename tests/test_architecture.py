"""The one-way arrows between the packages, what `spikec --help` may import, and the size of files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hwmodel", "compiler", "frontends", "runtime", "spikec")
ALLOWED = {
    "hwmodel": set(),
    "compiler": {"hwmodel"},
    "frontends": {"hwmodel", "compiler"},
    "runtime": {"hwmodel", "compiler"},
    "spikec": {"hwmodel", "compiler", "frontends", "runtime"},
}
HEAVY = ("torch", "tvm", "onnx", "ortools", "matplotlib", "sklearn", "spikingjelly")
MAX_LINES = 450


def sources(package: str) -> list[Path]:
    folder = ROOT / package
    if not folder.is_dir():
        pytest.skip(f"{package}/ does not exist")
    return sorted(folder.rglob("*.py"))


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Full names of the modules and names that the imports under a tree ask for, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.rsplit(".", node.level)[0] + "." if node.level else ""
            source = f"{base}{node.module or ''}".strip(".")
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def on_import(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported: no function bodies, no `if TYPE_CHECKING`."""

    class Kept(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                return [self.visit(statement) for statement in node.orelse]
            return self.generic_visit(node)

    kept = Kept().visit(tree)
    assert isinstance(kept, ast.Module)
    return kept


def module_name(path: Path) -> str:
    """The dotted name; of a package, with `.__init__`, so that relative imports resolve alike."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def module_files(name: str) -> list[Path]:
    """Our files that run when the dotted name is imported, packages above it included."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return []
    places = [ROOT.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    candidates = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    return [file for file in candidates if file.is_file()]


def import_closure(roots: list[Path]) -> dict[Path, Path]:
    """Every file of ours that importing the roots runs, with the file that imports it."""
    reached = {root: root for root in roots}
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        for name in imported(on_import(ast.parse(path.read_text())), module_name(path)):
            for file in module_files(name):
                if file not in reached:
                    reached[file] = path
                    waiting.append(file)
    return reached


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_go_one_way(package: str) -> None:
    faults = []
    for path in sources(package):
        for name in imported(ast.parse(path.read_text()), module_name(path)):
            target = name.split(".")[0]
            if target in {*PACKAGES, "tests"} - {package} and target not in ALLOWED[package]:
                faults.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not faults, "\n".join(faults)


def test_help_imports_nothing_heavy() -> None:
    sources("spikec")
    roots = [path for path in (ROOT / "spikec/__init__.py", ROOT / "spikec/cli.py") if path.is_file()]
    faults = []
    for path, importer in import_closure(roots).items():
        for name in imported(on_import(ast.parse(path.read_text())), module_name(path)):
            if name.split(".")[0] in HEAVY:
                via = f" (imported by {importer.relative_to(ROOT)})" if importer != path else ""
                faults.append(f"{path.relative_to(ROOT)}{via} imports {name}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "examples"])
def test_files_are_short(folder: str) -> None:
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in sources(folder)}
    long = {path: count for path, count in lines.items() if count > MAX_LINES}
    assert not long, f"split these: {long}"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import compiler.ir.text", "compiler.ir.text"),
        ("from compiler import ir", "compiler.ir"),
        ("from . import sibling", "runtime.part.sibling"),
        ("from ..other import thing", "runtime.other.thing"),
        ("def f():\n    from frontends import zoo", "frontends.zoo"),
        ("try:\n    import tvm\nexcept ImportError:\n    pass", "tvm"),
    ],
)
def test_imports_are_found(code: str, name: str) -> None:
    assert name in set(imported(ast.parse(code), "runtime.part.module"))


def test_only_what_runs_on_import_counts_for_help() -> None:
    code = "def f():\n    import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\nclass D:\n    import e\n"
    assert set(imported(on_import(ast.parse(code)), "m")) == {"c", "e"}
