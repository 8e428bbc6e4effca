"""What is known of the backward pass' masks: nothing, table 3.2, or a file of the user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from hwmodel.errors import CompileError, Loc
from hwmodel.program import Layer
from hwmodel.timing.sampled_tiles import Density

DENSE = "dense"
PUBLISHED = "published:"
PUBLISHED_NETWORKS = ("mnist", "cifar10", "nmnist", "cifar10dvs", "imagenet")
_FIELDS = ("inputs", "outputs")

ByLayer = dict[str, Density]  # by the name of the convolution whose input gradient it is


def default_densities(model: str) -> str:
    """Table 3.2 for its own networks, else dense."""
    name = model.removeprefix("zoo:").partition("@")[0]
    return f"{PUBLISHED}{name}" if model.startswith("zoo:") and name in PUBLISHED_NETWORKS else DENSE


def load_densities(text: str, layers: Sequence[Layer]) -> ByLayer | None:
    """Densities of `dense` (None), `published:NAME` or FILE.toml for a network.

    Raises: CompileError for what is none of these, or does not fit the network.
    """
    if text == DENSE:
        return None
    if text.startswith(PUBLISHED):
        return _published(text.removeprefix(PUBLISHED), layers)
    if text.endswith(".toml"):
        return _from_file(text, layers)
    raise CompileError("is not known", Loc(f"--densities {text}"), hint="dense, published:NAME or FILE.toml")


def by_number(densities: ByLayer, layers: Sequence[Layer]) -> dict[int, Density]:
    """The same by the number of the layer whose gradient it is, the one in front of the convolution.

    Raises: CompileError for a convolution without densities.
    """
    missing = [name for name in _convolutions(layers).values() if name not in densities]
    if missing:
        raise CompileError(f"{', '.join(missing)} has no densities", Loc("densities"))
    return {number: densities[name] for number, name in _convolutions(layers).items()}


def _convolutions(layers: Sequence[Layer]) -> dict[int, str]:
    """Layers whose input gradient skips zeros, by the number of the layer in front; linear layers skip none."""
    return {number: behind.name for number, behind in enumerate(layers[1:]) if behind.kind != "fc"}


def _published(name: str, layers: Sequence[Layer]) -> ByLayer:
    from spikec.reproduce.facts import load_facts
    from spikec.reproduce.networks import Published

    loc = Loc(f"--densities {PUBLISHED}{name}")
    if name not in PUBLISHED_NETWORKS:
        raise CompileError("is not in table 3.2", loc, hint=f"networks: {', '.join(PUBLISHED_NETWORKS)}")
    columns = Published.of(load_facts(), name).densities
    names = _convolutions(layers)
    if len(columns) != len(names):
        raise CompileError(
            f"table 3.2 has {len(columns)} convolutions of {name} behind the first layer, the network has {len(names)}",
            loc,
            hint="dense, or FILE.toml with the network's own",
        )
    return {behind: columns[column] for column, behind in enumerate(names.values())}


def _from_file(path: str, layers: Sequence[Layer]) -> ByLayer:
    loc = Loc(path)
    try:
        table: dict[str, object] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise CompileError(f"cannot read the densities: {reason}", loc) from fault
    names = set(_convolutions(layers).values())
    faults: list[str] = []
    found: ByLayer = {}
    for name, row in _rows(table, "", faults):
        if name not in names:
            faults.append(f"{name} is no convolution behind the first layer")
        elif (density := _density(name, row, faults)) is not None:
            found[name] = density
    faults += [f"{name} is missing" for name in sorted(names - {name for name, _ in _rows(table, "", [])})]
    if faults:
        hint = f"convolutions: {', '.join(sorted(names)) or 'none'}; each with inputs and outputs from 0 to 1"
        raise CompileError("; ".join(faults), loc, hint=hint)
    return found


def _rows(table: Mapping[str, object], prefix: str, faults: list[str]) -> list[tuple[str, Mapping[str, object]]]:
    """Tables without tables inside; a name with dots may stand with or without quotes."""
    found: list[tuple[str, Mapping[str, object]]] = []
    for name, value in table.items():
        if not isinstance(value, Mapping):
            faults.append(f"{prefix}{name} is no table of a layer")
        elif any(isinstance(inner, Mapping) for inner in value.values()):
            found += _rows(value, f"{prefix}{name}.", faults)
        else:
            found.append((prefix + name, value))
    return found


def _density(name: str, row: Mapping[str, object], faults: list[str]) -> Density | None:
    before = len(faults)
    faults += [f"{name}.{key} is not a field" for key in row if key not in _FIELDS]
    values: list[float] = []
    for key in _FIELDS:
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            faults.append(f"{name}.{key} is {'missing' if value is None else f'{value!r}, must be a number'}")
        elif not 0 <= value <= 1:
            faults.append(f"{name}.{key} is {value}, must be from 0 to 1")
        else:
            values.append(float(value))
    return Density(inputs=values[0], outputs=values[1]) if len(faults) == before else None
