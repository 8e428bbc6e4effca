"""Where downloads, trained networks and compiled kernels are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "SPIKEC_CACHE"


def cache_folder() -> Path:
    """`$SPIKEC_CACHE`, or the platform's cache folder; it need not exist yet."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("spikec", appauthor=False))
