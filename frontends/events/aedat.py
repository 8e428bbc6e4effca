"""Decodes AEDAT files, the recordings of the DVS128 camera: versions 2.0 and 3.1."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from frontends.events.recording import Events, Ints
from hwmodel.errors import CompileError, Loc

SENSOR = 128  # pixels in each direction

_VERSION = b"#!AER-DAT"
_END = b"#!END-HEADER"
_EXTERNAL = 0x8000  # of a version 2 address: no pixel's event
_PACKET = struct.Struct("<hhiiiiii")  # type, source, size, offset and overflow of the time, capacity, number, valid
_POLARITY = 1  # a packet's type
_POLARITY_BYTES = 8


def decode_version_2(content: bytes, loc: Loc) -> Events:
    """Big-endian pairs of a 32-bit address and a 32-bit time in us behind header lines that begin with '#'.

    Address bits: 0 polarity, 0 being ON; 1 to 7 and 8 to 14 the pixel; 15 an external event, which is left out. The
    picture is turned as SpikingJelly turns it: x = 127 - bits 8 to 14, y = 127 - bits 1 to 7.

    Raises: CompileError for what is no such file, is cut off or holds no events.
    Source: jAER's AEDAT 2.0; spikingjelly.datasets.cifar10_dvs.
    """
    body = _body(content, "2", loc)
    if len(body) % 8:
        raise CompileError(f"ends inside an event: {len(body)} bytes of events, 8 each", loc, hint="truncated?")
    words = np.frombuffer(body, dtype=">u4").astype(np.int64).reshape(-1, 2)
    words = words[words[:, 0] & _EXTERNAL == 0]
    address = words[:, 0]
    foreign = address > 0x7FFF
    if foreign.any():
        raise CompileError(f"address {address[foreign][0]:#x} is none of a {SENSOR} x {SENSOR} sensor", loc)
    return Events(
        x=SENSOR - 1 - (address >> 8),
        y=SENSOR - 1 - (address >> 1 & 0x7F),
        is_on=address & 1 == 0,
        time_us=words[:, 1],
    ).checked(SENSOR, loc)


def decode_version_3(content: bytes, loc: Loc) -> Events:
    """The valid polarity events of a file of packets, each with a header of 28 bytes; other packets are left out.

    An event is two little-endian 32-bit words: bit 0 valid, bit 1 ON, bits 2 to 16 y, bits 17 to 31 x; and the time
    in us, above which the packet's overflow counts 2^31.

    Raises: CompileError for what is no such file, is cut off or holds no events.
    Source: iniVation's AEDAT 3.1; libcaer's events/common.h and events/polarity.h.
    """
    body = _body(content, "3", loc)
    words: list[npt.NDArray[np.uint32]] = []
    times: list[Ints] = []
    at = 0
    while at < len(body):
        kind, _, size, _, overflow, capacity, number, _ = _packet(body, at, loc)
        at += _PACKET.size
        if kind == _POLARITY:
            if size != _POLARITY_BYTES:
                raise CompileError(f"a polarity event has {size} bytes, not {_POLARITY_BYTES}", loc)
            pairs = np.frombuffer(body, dtype="<u4", count=2 * number, offset=at).reshape(-1, 2)
            words.append(pairs[:, 0])
            times.append(pairs[:, 1].astype(np.int64) + (overflow << 31))
        at += size * capacity
    data = np.concatenate([*words, np.zeros(0, np.uint32)]).astype(np.int64)
    return (
        Events(
            x=data >> 17,
            y=data >> 2 & 0x7FFF,
            is_on=data & 2 != 0,
            time_us=np.concatenate([*times, np.zeros(0, np.int64)]),
        )
        .at(data & 1 != 0)
        .checked(SENSOR, loc)
    )


def _packet(body: bytes, at: int, loc: Loc) -> tuple[int, ...]:
    """A packet's header, whose events are all there."""
    if len(body) - at < _PACKET.size:
        raise CompileError("ends inside the header of a packet", loc, hint="truncated?")
    header = _PACKET.unpack_from(body, at)
    _, _, size, _, overflow, capacity, number, _ = header
    if size < 1 or overflow < 0 or not 0 <= number <= capacity:
        raise CompileError(
            f"a packet says {number} of {capacity} events of {size} bytes, time overflow {overflow}", loc
        )
    if len(body) - at - _PACKET.size < size * capacity:
        raise CompileError(f"ends inside a packet of {capacity} events", loc, hint="truncated?")
    return header


def _body(content: bytes, version: str, loc: Loc) -> bytes:
    """What comes behind the header lines."""
    if not content.startswith(b"#"):
        raise CompileError("is no AEDAT file: it does not begin with '#'", loc)
    at = 0
    while content[at : at + 1] == b"#":
        end = content.find(b"\n", at) + 1 or len(content)
        line = content[at:end].strip()
        at = end
        stated = line.removeprefix(_VERSION).decode("ascii", "replace") if line.startswith(_VERSION) else version
        if not stated.startswith(version):
            raise CompileError(f"is AEDAT {stated[:8]}, version {version} is read", loc)
        if line == _END:
            break
    return content[at:]
