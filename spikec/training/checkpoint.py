"""Checkpoints: a safetensors file of a run's arrays, with the run's identity and history as metadata."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from frontends.descent import State
from hwmodel.errors import CompileError, Loc
from spikec.training.history import History, history_of
from spikec.training.trainer import Trainer

_KEY = "spikec.checkpoint"  # the only key: safetensors writes several in random order
_FORMAT = 1
_SECONDS = 10.0  # of work between checkpoints, unless steps are asked for

Identity = dict[str, str | int | float | bool | None]  # what decides a run's bits


@dataclass(slots=True)
class CheckpointFile:
    """The checkpoints of one run: each is written beside the last and takes its place whole."""

    path: Path
    identity: Identity
    every: int | None = None  # steps; None: by time
    writes: bool = True  # False where another process of the run does
    clock: Callable[[], float] = time.monotonic
    _saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def load(self, trainer: Trainer) -> History | None:
        """Bring the trainer to where the file stands; None without a file.

        Raises: CompileError for a damaged file, or one of another run, naming what differs.
        """
        if not self.path.exists():
            return None
        body, state = _read(self.path)
        self._check_identity(body.get("run"))
        try:
            history = history_of(body["history"])  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as fault:
            raise _damaged(self.path, str(fault)) from fault
        trainer.restore(state)
        return history

    def after_step(self, history: History, trainer: Trainer) -> None:
        """Save if it is time to."""
        due = history.step % self.every == 0 if self.every else self.clock() - self._saved_at >= _SECONDS
        if due:
            self.save(history, trainer)

    def save(self, history: History, trainer: Trainer) -> None:
        """Write the file, if this process is the one that does.

        Raises: CompileError if it cannot be written.
        """
        if not self.writes:
            return
        body = json.dumps({"run": self.identity, "history": history.as_fields()}, sort_keys=True)
        state = {name: np.array(array, order="C") for name, array in sorted(trainer.state().items())}
        envelope = {"format": _FORMAT, "sha256": _seal(body, state), "body": body}
        content = save(state, metadata={_KEY: json.dumps(envelope)})
        # always the same name beside it: what a killed run left there is overwritten by the next
        beside = self.path.with_name(self.path.name + ".part")
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        except OSError as fault:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise CompileError(f"cannot write the checkpoint: {fault.strerror}", Loc(str(self.path))) from fault
        self._saved_at = self.clock()

    def _check_identity(self, found: object) -> None:
        if not isinstance(found, dict):
            raise _damaged(self.path, "it names no run")
        differing = [
            f"{name} is {found.get(name)} there and {self.identity.get(name)} here"
            for name in sorted({*found, *self.identity})
            if found.get(name) != self.identity.get(name)
        ]
        if differing:
            raise CompileError(
                f"is a checkpoint of another run: {'; '.join(differing)}",
                Loc(str(self.path)),
                hint="repeat that run's options, or name another file",
            )


def _read(path: Path) -> tuple[dict[str, object], State]:
    """The body and the arrays, whose hash is right."""
    loc = Loc(str(path))
    if path.is_dir():
        raise CompileError("is a folder, not a checkpoint", loc, hint="name a file inside it")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            state: State = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        if _KEY not in metadata:
            raise CompileError("is no checkpoint of spikec", loc, hint="name another file; this one stays as it is")
        envelope = json.loads(metadata[_KEY])
        form, text = envelope["format"], envelope["body"]
        if form != _FORMAT:
            raise CompileError(f"has format {form!r}, this spikec reads format {_FORMAT}", loc)
        if envelope["sha256"] != _seal(text, state):
            raise _damaged(path, "its hash is wrong")
        body = json.loads(text)
    except OSError as fault:
        raise CompileError(f"cannot be read: {fault.strerror or fault}", loc) from fault
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise _damaged(path, str(fault)) from fault
    assert isinstance(body, dict)
    return body, state


def _seal(text: str, state: Mapping[str, np.ndarray]) -> str:
    """Hash of the text and of all arrays with their names and types."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(state):
        array = state[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> CompileError:
    hint = "it is cut off, damaged or of another kind; name another file"
    return CompileError(f"is not a sound checkpoint: {why}", Loc(str(path)), hint=hint)
