"""How a worker process begins, of a pool or of a local Dask cluster, which preloads this module."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from importlib import import_module


def begin_pool_worker() -> None:
    """Take one core, leave Ctrl-C to the parent, and end when it is killed."""
    _begin()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def dask_setup(_worker: object) -> None:
    """What Dask calls in each worker; it ends its workers itself."""
    _begin()


def _begin() -> None:
    import_module("numpy")  # only libraries that are loaded can be limited
    import_module("threadpoolctl").threadpool_limits(1)  # threads for small matrices only wait for each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
