"""A certificate: one statement about one network and one set of inputs, with what shows it, sealed by a hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from compiler.certify_check.content import KEY, Content, canonical, graph_digest, sealed
from compiler.ir import CompileError, Graph, Loc

FORMAT = "spikec certificate 1"


class Claim(StrEnum):
    """What a certificate holds.

    bounds          claimed bounds from which the label follows as the only highest score on every input
    solved          nothing but that an exact solver found no counterexample: it is to be solved again
    counterexample  an input of the set on which the label is not the only highest score
    statistics      how many fresh codes were certified, with the seeds that give them
    """

    BOUNDS = "bounds"
    SOLVED = "solved"
    COUNTEREXAMPLE = "counterexample"
    STATISTICS = "statistics"


@dataclass(frozen=True, slots=True)
class Certificate:
    """The content as JSON has it: a record within another file, or, as text, a file of its own."""

    content: Content

    @property
    def claim(self) -> str:
        """Of which kind it says to be."""
        return str(self.content.get("claim"))

    @property
    def label(self) -> object:
        """The class that it is about."""
        return self.content.get("label")

    @property
    def inputs(self) -> object:
        """The data of the input set that it is about."""
        return self.content.get("inputs")

    @property
    def sha256(self) -> str:
        """The seal, which names it."""
        return str(self.content.get(KEY))

    def text(self) -> str:
        """One line; equal certificates have equal texts."""
        return canonical(self.content) + "\n"

    @classmethod
    def read(cls, text: str, place: str = "certificate") -> Certificate:
        """The certificate of such a text.

        Raises: CompileError if it is not what `text` writes, to the byte.
        """
        try:
            content = json.loads(text)
            is_ours = isinstance(content, dict) and canonical(content) + "\n" == text
        except (ValueError, RecursionError) as fault:
            raise CompileError(f"is no certificate: {fault}", Loc(place), hint="it is damaged, or cut off") from fault
        if not is_ours:
            raise CompileError("is no certificate as spikec writes them", Loc(place), hint="it is damaged or edited")
        return cls(content)

    @classmethod
    def seal(
        cls,
        claim: Claim,
        graph: Graph,
        inputs: Content,
        label: int,
        arithmetic: str,
        proof: Mapping[str, object],
    ) -> Certificate:
        """A certificate of these parts."""
        content = {
            "format": FORMAT,
            "claim": str(claim),
            "graph": graph_digest(graph),
            "arithmetic": str(arithmetic),
            "label": label,
            "inputs": inputs,
            "proof": proof,
        }
        return cls(sealed(content))
