"""Calls the command line in this process, so that torch and the compiled kernels are loaded once."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from spikec.cli import main

REFUSAL = re.compile(r"[^\n]+: error: [^\n]+\n(  hint: [^\n]+\n)?")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a call of `spikec` left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Json:
        """Stdout as its one JSON object."""
        (line,) = self.out.splitlines()
        value = json.loads(line)
        assert isinstance(value, dict)
        return value


def spikec(*arguments: str | Path) -> Outcome:
    """Run a command; an exception that is no CompileError reaches the test."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["spikec", *map(str, arguments)]
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", argv), pytest.raises(SystemExit) as done:
        main()
    code = done.value.code
    assert isinstance(code, int)
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


def result(*arguments: str | Path) -> Json:
    """The object that a successful command prints with --json."""
    outcome = spikec(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json


def refusal(*arguments: str | Path) -> str:
    """The message of a refused command; all of stderr, and stdout is empty."""
    outcome = spikec(*arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert REFUSAL.fullmatch(outcome.err), outcome.err
    return outcome.err
