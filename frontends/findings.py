"""What an importer tells people about each part of a network: read, assumed or refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from compiler.ir import Graph


class Ground(StrEnum):
    """What a statement rests on."""

    READ = "read"  # the file or module says so
    ASSUMED = "assumed"  # neither says so; an option can change it
    REFUSED = "refused"  # it has no place in the graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One statement about one part of a network.

    place: the node, module path or file's node that it is about.
    """

    place: str
    ground: Ground
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedFile:
    """A graph, and what was found on the way."""

    graph: Graph
    findings: tuple[Finding, ...]
