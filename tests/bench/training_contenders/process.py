"""The parent's side of a contender's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import cast

from tests.bench.training_contenders.setting import MissingContenderError, Setting

ROOT = Path(__file__).parents[3]
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
MALLOCS = {"default": {}, "kept": KEEP_FREED_MEMORY}  # additions to the environment, alike for every contender
END_S = 30.0  # longer than a step
Answer = dict[str, object]


class ContenderFailedError(Exception):
    """A contender's process ended before it answered."""


class Process:
    """A fresh process of one contender, warmed up; it waits without spinning between its turns.

    Raises: MissingContenderError, ContenderFailedError.
    """

    def __init__(self, setting: Setting, malloc: str, compile_cache: Path) -> None:
        self.setting = setting
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in close()
        threads = str(setting.threads)
        environment = os.environ | MALLOCS[malloc]
        environment |= {"OMP_NUM_THREADS": threads, "TVM_NUM_THREADS": threads}
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(compile_cache)}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.training_contenders.child", json.dumps(asdict(setting))],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            answer = self._receive()
            if "missing" in answer:
                raise MissingContenderError(str(answer["missing"]))
            self.output_spikes = cast("int | None", answer["output_spikes"])  # see `Training.output_spikes`
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, task: str, count: int) -> Answer:
        """Have `count` steps run. Raises: ContenderFailedError."""
        assert self._child.stdin is not None
        try:
            print(task, count, file=self._child.stdin, flush=True)
        except BrokenPipeError:
            raise self._failure() from None
        return self._receive()

    def close(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with suppress(BrokenPipeError):
            self._child.stdin.close()  # the child ends when it has nothing more to read
        try:
            self._child.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        for pipe in (self._child.stdout, self._errors):
            pipe.close()

    def _receive(self) -> Answer:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._failure()
        answer: Answer = json.loads(line)
        return answer

    def _failure(self) -> ContenderFailedError:
        code = self._child.wait()
        self._errors.seek(0)
        return ContenderFailedError(f"exit status {code}\n{self._errors.read()[-2000:]}")
