"""Synthetic events: what an event camera would see of an image that moves as N-MNIST's images move.

These are made from images by a formula. They are no recordings, and not N-MNIST.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from frontends.datasets import Floats, Samples, Split, load
from frontends.events.options import split_options
from hwmodel.errors import CompileError, Loc

TIMESTEPS = 15
THRESHOLD = 0.4  # change of the log intensity that gives an event
DARK = 0.1  # added to intensities, so that black has a logarithm

_SOURCES = ("digits", "mnist5k", "mnist", "fashion")
_MARGIN_SHARE = Fraction(3, 28)  # N-MNIST's 34 pixels for MNIST's 28
_CHUNK = 512  # samples
_LIMIT = 2**31  # values of f32, 8 GiB

Position = tuple[Fraction, Fraction]  # row, column


def load_saccades(name: str, split: Split) -> Samples:
    """Samples (N, 15, 2, H, W) of `synthetic-saccades:SOURCE`, with the labels and the split of the source.

    SOURCE is digits (10 x 10 pixels), mnist5k, mnist, fashion, mnist:FOLDER or fashion:FOLDER (34 x 34). Options are
    as in `synthetic-saccades:mnist,timesteps=10,per_class=100`; all of MNIST's training set takes 8.3 GB.

    Raises: CompileError for another source, or one that is not on this machine.
    """
    loc = Loc(f"data {name}")
    source, options = split_options(name.partition(":")[2], ("timesteps", "per_class"), loc)
    if source.partition(":")[0] not in _SOURCES:
        raise CompileError(f"{source!r} is no source of images", loc, hint=f"known: {', '.join(_SOURCES)}")
    images = load(source, split=split)
    images = images.take(options.kept(images.y))
    timesteps = options.timesteps or TIMESTEPS
    shape = (len(images), timesteps, 2, *(extent + 2 * _margin(extent) for extent in images.x.shape[2:]))
    values = int(np.prod(shape, dtype=np.int64))
    if values > _LIMIT:
        raise CompileError(f"{len(images)} samples hold {values} values", loc, hint="take fewer, as by ,per_class=500")
    x = np.zeros(shape, dtype=np.float32)
    for begin in range(0, len(images), _CHUNK):
        x[begin : begin + _CHUNK] = saccade_events(images.x[begin : begin + _CHUNK, 0], timesteps)
    return Samples(x=x, y=images.y, name=name)


def saccade_events(images: Floats, timesteps: int) -> npt.NDArray[np.bool_]:
    """Events of images that move along a triangle in three straight, equally long lasting runs.

    l[t] = log(0.1 + image moved to the path's place at t);   n = (l[t] - r[t-1]) / 0.4, rounded toward zero
    r[t] = r[t-1] + 0.4 n;   ON where n > 0, OFF where n < 0

    The triangle has its corners below left, above and below right of the middle, as far away as the margin; between
    pixels the image is interpolated linearly. The camera looks once a time step.
    Shapes: (N, H, W) in [0, 1] -> (N, T, 2, H + 2 margin, W + 2 margin), channel 0 OFF, 1 ON.
    Source: Orchard et al. 2015 for the path; Rebecq et al. 2018 (ESIM) for the camera.
    """
    margin = _margin(images.shape[1]), _margin(images.shape[2])
    first, *places = path(timesteps, *margin)
    reference = _log_intensity(images, first, margin)
    events = np.zeros((len(images), timesteps, 2, *reference.shape[1:]), dtype=np.bool_)
    for step, place in enumerate(places):
        crossed = np.trunc((_log_intensity(images, place, margin) - reference) / np.float32(THRESHOLD))
        reference += crossed * np.float32(THRESHOLD)
        events[:, step, 0] = crossed < 0
        events[:, step, 1] = crossed > 0
    return events


def path(timesteps: int, height: int, width: int) -> list[Position]:
    """Where the image is at the beginning and after each time step, in pixels from the middle."""
    corners: Sequence[tuple[int, int]] = ((height, -width), (-height, 0), (height, width), (height, -width))
    places = []
    for step in range(timesteps + 1):
        whole, part = divmod(Fraction(3 * step, timesteps), 1)
        begin, end = corners[whole], corners[min(whole + 1, 3)]
        places.append((begin[0] + part * (end[0] - begin[0]), begin[1] + part * (end[1] - begin[1])))
    return places


def _margin(extent: int) -> int:
    return max(1, round(_MARGIN_SHARE * extent))


def _log_intensity(images: Floats, place: Position, margin: tuple[int, int]) -> Floats:
    count, height, width = images.shape
    seen = np.zeros((count, height + 2 * margin[0], width + 2 * margin[1]), dtype=np.float32)
    (row, down), (column, right) = (divmod(along, 1) for along in place)
    for below, beside, share in (
        (0, 0, (1 - down) * (1 - right)),
        (1, 0, down * (1 - right)),
        (0, 1, (1 - down) * right),
        (1, 1, down * right),
    ):
        if share > 0:
            top, left = margin[0] + row + below, margin[1] + column + beside
            seen[:, top : top + height, left : left + width] += np.float32(share) * images
    return np.log(seen + np.float32(DARK))
