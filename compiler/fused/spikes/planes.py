"""Kernels that lay spike words out for look-ups in registers: by output pixels, or with pixels in a word's bits."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from compiler.fused.emit import Expr, T, argument, kernel, put, select, tirx
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.words import held

OVERRUN = 16  # elements behind a plane that a vector may read

Table = npt.NDArray[np.int32]


def tap_plane_kernel(*, parallel: bool) -> tirx.PrimFunc:
    """`tap_planes`: Y[n, w, k, i] = W[n, P[k, i], w], 0 where P is -1.

    Arguments, i32: W (images, height * width, words) as in `Geometry`, P (planes, length) a table of `positions`,
    Y (images, words, planes, length or more); what is behind the length keeps its value.
    """
    return kernel("tap_planes", partial(_write_tap_planes, parallel))


def pixel_word_kernel(taps: int, *, parallel: bool) -> tirx.PrimFunc:
    """`pixel_words`: bit b of Y[n, k, j, 32 * w + c] = bit c of W[n, P[k, j * pixels + b], w], 0 where P is -1.

    pixels is `word_pixels` of the taps; bits from there on are 0.

    Arguments, i32: W (images, height * width, words) as in `Geometry`, P (planes, length) a table of `positions`,
    Y (images, planes, length / pixels, 32 * words).
    """
    return kernel("pixel_words", partial(_write_pixel_words, word_pixels(taps), parallel))


def word_pixels(taps: int) -> int:
    """Pixels in a word of 32 bits that is cut into groups of so many taps."""
    return BITS // taps * taps


def plane_rows(geometry: Geometry) -> tuple[int, int]:
    """Planes for the vertical phases of the stride, and lines of each: (SY, Q).

    Line q of plane r is input line q * stride + r - padding; tap ky of output line oy stands in plane ky % stride,
    line oy + ky // stride.
    """
    (taps, _), (step, _) = geometry.kernel, geometry.stride
    return min(step, taps), geometry.out_height + (taps - 1) // step


def pixel_pitch(geometry: Geometry, taps: int) -> int:
    """Positions between the lines of `pixel_words`: no group of taps belongs to two lines."""
    return -(-geometry.out_width // taps) * taps


def tap_plane_shape(geometry: Geometry) -> tuple[int, int, int, int, int]:
    """(images, words, kernel width, SY, Q * output width + OVERRUN)."""
    phases, lines = plane_rows(geometry)
    length = lines * geometry.out_width + OVERRUN
    return geometry.images, geometry.words, geometry.kernel[1], phases, length


def pixel_word_shape(geometry: Geometry, taps: int) -> tuple[int, int, int, int, int]:
    """(images, kernel width, SY, words of pixels, 32 * words); the last word of pixels is a spare one of zeros."""
    phases, lines = plane_rows(geometry)
    words = -(-lines * pixel_pitch(geometry, taps) // word_pixels(taps)) + 1
    return geometry.images, geometry.kernel[1], phases, words, BITS * geometry.words


def positions(geometry: Geometry, pitch: int, length: int) -> Table:
    """Input pixels by kernel column, phase and position of an output pixel: element [kx * SY + r, q * pitch + ox].

    The number iy * width + ix of the input pixel (q * stride + r - padding, ox * stride + kx - padding); -1 beside the
    map, from the output width to the pitch, and behind the last line.

    Shapes: (kernel width * SY, length) i32.
    """
    phases, lines = plane_rows(geometry)
    q, r = np.arange(lines).reshape(-1, 1), np.arange(phases).reshape(-1, 1, 1)
    kx = np.arange(geometry.kernel[1]).reshape(-1, 1, 1, 1)
    iy = q * geometry.stride[0] + r - geometry.padding[0]
    ix = np.arange(geometry.out_width) * geometry.stride[1] + kx - geometry.padding[1]
    inside = (iy >= 0) & (iy < geometry.height) & (ix >= 0) & (ix < geometry.width)
    table = np.full((geometry.kernel[1], phases, lines, pitch), -1, np.int32)
    table[..., : geometry.out_width] = np.where(inside, iy * geometry.width + ix, -1)
    flat = table.reshape(geometry.kernel[1] * phases, lines * pitch)
    return np.pad(flat, ((0, 0), (0, length - lines * pitch)), constant_values=-1)


def _write_tap_planes(parallel: bool) -> None:
    images, pixels, words, planes, length, pitch = (T.int64() for _ in range(6))
    source = argument("source", [images, pixels, words], "int32")
    table = argument("table", [planes, length], "int32")
    result = argument("result", [images, words, planes, pitch], "int32")
    with _each(images * words * planes, parallel) as index:
        image, word = held(index // (planes * words)), held(index // planes % words)
        plane = held(index % planes)
        with T.serial(length) as i:
            pixel = table[plane, i]
            value = source[image, T.max(pixel, T.int32(0)), word]
            put(result, select(pixel >= 0, value, T.int32(0)), image, word, plane, i)


def _write_pixel_words(count: int, parallel: bool) -> None:
    images, pixels, words, planes, length, lanes = (T.int64() for _ in range(6))
    columns = T.int64()
    source = argument("source", [images, pixels, words], "int32")
    table = argument("table", [planes, length], "int32")
    result = argument("result", [images, planes, columns, lanes], "int32")
    channels = T.shift_left(_vector(1), T.ramp(0, 1, BITS))
    with _each(images * planes, parallel) as index:
        image, plane = held(index // planes), held(index % planes)
        with T.serial(columns) as column, T.serial(words) as word:
            transposed = _vector(0)
            for bit in range(count):
                pixel = held(table[plane, column * count + bit], "int32")
                value = held(source[image, T.max(pixel, T.int32(0)), word], "int32")
                fired = (T.broadcast(select(pixel >= 0, value, T.int32(0)), BITS) & channels) != _vector(0)
                transposed = transposed | select(fired, _vector(1 << bit), _vector(0))
            put(result, transposed, image, plane, column, T.ramp(word * BITS, T.int64(1), BITS))


def _each(count: Expr, parallel: bool) -> T.frame.ForFrame:
    return T.parallel(count) if parallel else T.serial(count)


def _vector(value: int) -> Expr:
    return T.broadcast(T.int32(value if value < 2**31 else value - 2**32), BITS)
