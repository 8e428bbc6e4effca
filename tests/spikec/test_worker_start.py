"""How workers begin: the libraries of NumPy take one thread."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from threadpoolctl import threadpool_info

from spikec.worker_start import begin_pool_worker


def test_a_worker_takes_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=begin_pool_worker) as pool:
        libraries = pool.submit(threadpool_info).result()
    assert libraries
    assert {library["num_threads"] for library in libraries} == {1}
