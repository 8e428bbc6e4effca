"""Recordings in a user's folder, as samples of spikes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from frontends.datasets import Floats, Samples, Split
from frontends.events import cifar10dvs, dvsgesture, nmnist
from frontends.events.options import EventOptions, split_options
from frontends.events.recording import Events, Recording, Window, spikes
from hwmodel.errors import CompileError, Loc

_OPTIONS = ("timesteps", "bin_us", "size", "per_class")
_LIMIT = 2**31  # values of f32, 8 GiB


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSet:
    """One data set of recordings."""

    sensor: int  # pixels in each direction
    window: Window
    recordings: Callable[[Path, Split], list[Recording]]
    decode: Callable[[bytes, Loc], Events]


EVENT_SETS: Mapping[str, EventSet] = MappingProxyType(
    {
        "nmnist": EventSet(
            sensor=nmnist.SENSOR, window=nmnist.WINDOW, recordings=nmnist.recordings, decode=nmnist.decode
        ),
        "cifar10dvs": EventSet(
            sensor=cifar10dvs.SENSOR,
            window=cifar10dvs.WINDOW,
            recordings=cifar10dvs.recordings,
            decode=cifar10dvs.decode,
        ),
        "dvsgesture": EventSet(
            sensor=dvsgesture.SENSOR,
            window=dvsgesture.WINDOW,
            recordings=dvsgesture.recordings,
            decode=dvsgesture.decode,
        ),
    }
)


def load_recordings(name: str, split: Split) -> Samples:
    """Samples (N, T, 2, size, size) of `nmnist:FOLDER`, `cifar10dvs:FOLDER` or `dvsgesture:FOLDER`.

    The window is that of table 5.6 unless options say otherwise, as in `nmnist:FOLDER,timesteps=10,size=32`;
    `per_class=50` reads the first 50 samples of each class. Files are read one after the other, what stays is the
    result: of all of N-MNIST's training set 8.3 GB, of CIFAR10-DVS 1.3 GB.

    Raises: CompileError for a folder or file that is not as it is handed out.
    """
    kind, _, rest = name.partition(":")
    loc = Loc(f"data {name}")
    chosen = EVENT_SETS[kind]
    folder, options = split_options(rest, _OPTIONS, loc)
    if not folder:
        raise CompileError("names no folder", loc, hint=f"{kind}:FOLDER")
    window = _window(chosen, options, loc)
    every = chosen.recordings(Path(folder), split)
    labels = np.array([one.label for one in every], dtype=np.int64)
    kept = options.kept(labels)
    if len(kept) == 0:
        raise CompileError(f"has no samples for {split}", loc)
    x = _spikes([every[at] for at in kept], chosen, window, loc)
    return Samples(x=x, y=labels[kept], name=name)


def _window(chosen: EventSet, options: EventOptions, loc: Loc) -> Window:
    own = chosen.window
    size = options.size or own.size
    if size > chosen.sensor:
        raise CompileError(f"size is {size}, the sensor has {chosen.sensor} pixels in each direction", loc)
    return Window(timesteps=options.timesteps or own.timesteps, bin_us=options.bin_us or own.bin_us, size=size)


def _spikes(kept: Sequence[Recording], chosen: EventSet, window: Window, loc: Loc) -> Floats:
    shape = (len(kept), window.timesteps, 2, window.size, window.size)
    values = len(kept) * window.timesteps * 2 * window.size**2
    if values > _LIMIT:
        raise CompileError(f"{len(kept)} samples hold {values} values", loc, hint="take fewer, as by ,per_class=500")
    x = np.zeros(shape, dtype=np.float32)
    path, events = None, None
    for at, one in enumerate(kept):
        if events is None or one.path != path:
            path, events = one.path, chosen.decode(_content(one.path), Loc(str(one.path)))
        x[at] = spikes(one.part(events), window, chosen.sensor)
    return x


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CompileError(f"cannot be read: {error}", Loc(str(path))) from error
