"""The dissertation's network notation as data: the first step from a printed table row to a torch module."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hwmodel.errors import CompileError, Loc

_NUMBER = r"([1-9][0-9]*)"
_ENCODING = r"(\(Encoding\))?"
_CONV = re.compile(rf"{_NUMBER}C{_NUMBER}(?:S{_NUMBER})?{_ENCODING}")
_CONV_OF_TABLE_6_1 = re.compile(rf"C{_NUMBER}K{_NUMBER}(?:S{_NUMBER})?{_ENCODING}")
_LINEAR = re.compile(rf"(?:{_NUMBER}FC|FC{_NUMBER}){_ENCODING}")
_POOL = re.compile(rf"AP{_NUMBER}")
_INPUT_WORDS = ("X", "Input")
_DIGITS = 6  # a longer number is a slip, and int() refuses absurd ones with an error of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """Convolution with a square kernel and "same" padding, `64C3S2` in print."""

    channels: int
    kernel: int
    stride: int = 1
    encoding: bool = False  # takes the real-valued image at every time step

    def __str__(self) -> str:
        stride = f"S{self.stride}" if self.stride != 1 else ""
        return f"{self.channels}C{self.kernel}{stride}{_mark(self.encoding)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Average pooling whose stride is its kernel, `AP2` in print."""

    kernel: int

    def __str__(self) -> str:
        return f"AP{self.kernel}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Fully connected layer, `512FC` in print."""

    features: int
    encoding: bool = False

    def __str__(self) -> str:
        return f"{self.features}FC{_mark(self.encoding)}"


Layer = Conv | Pool | Dense


@dataclass(frozen=True, slots=True)
class Notation:
    """A chain of layers; `str` gives the canonical text, which parses back to an equal value."""

    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        return "-".join(str(layer) for layer in self.layers)


def parse(text: str) -> Notation:
    """Read `64C3S2(Encoding)-128C3-AP2-512FC-10FC`; `C64K3S2`, `FC512` and a leading `X-` or `Input-` too.

    Raises: CompileError with the column of the first fault.
    Source: tables 3.4, 5.5 and 6.1.
    """
    layers: list[Layer] = []
    column = 1
    words = text.split("-")
    for index, word in enumerate(words):
        if not (index == 0 and len(words) > 1 and word in _INPUT_WORDS):
            layer = _layer(word, text, column)
            _check_order(layer, layers, text, column)
            layers.append(layer)
        column += len(word) + 1
    return Notation(tuple(layers))


def _layer(word: str, text: str, column: int) -> Layer:
    if any(len(digits) > _DIGITS for digits in re.findall("[0-9]+", word)):
        raise _fault(f"{word[:40]!r} holds a number of more than {_DIGITS} digits", text, column)
    if match := _CONV.fullmatch(word) or _CONV_OF_TABLE_6_1.fullmatch(word):
        channels, kernel, stride, encoding = match.groups()
        return Conv(channels=int(channels), kernel=int(kernel), stride=int(stride or 1), encoding=encoding is not None)
    if match := _LINEAR.fullmatch(word):
        before, after, encoding = match.groups()
        return Dense(features=int(before or after), encoding=encoding is not None)
    if match := _POOL.fullmatch(word):
        return Pool(kernel=int(match[1]))
    raise _fault(f"{word!r} is no layer" if word else "a layer is missing", text, column)


def _check_order(layer: Layer, before: list[Layer], text: str, column: int) -> None:
    if before and isinstance(before[-1], Dense) and not isinstance(layer, Dense):
        raise _fault(f"{layer} stands behind a fully connected layer", text, column)
    if before and not isinstance(layer, Pool) and layer.encoding:
        raise _fault(f"{layer}: only the first layer can be the encoding layer", text, column)


def _fault(message: str, text: str, column: int) -> CompileError:
    shown = text if len(text) <= 200 else text[:200] + "..."
    return CompileError(
        f"column {column}: {message}",
        Loc(f"network {shown!r}"),
        hint="layers are 64C3 or 64C3S2 (channels, kernel, stride), AP2, 512FC, joined by -; "
        "the first may end in (Encoding)",
    )


def _mark(encoding: bool) -> str:
    return "(Encoding)" if encoding else ""
