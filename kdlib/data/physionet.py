"""Readers of PhysioNet's record files: headers, signals in format 212, MIT annotations.

The WFDB manual pages header(5), signal(5) and annot(5) describe the formats. This module reads single-segment records
of format 212; it refuses everything else with a DataError that names the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdlib.data import DataError
from kdlib.data.reading import reading

REMEDY = "Replace it by a fresh copy of PhysioNet's file."
LARGEST_FILE_BYTES = 64 * 2**20

# Codes that are not annotations but change the annotation before or after them, annot(5).
SKIP, NUM, SUB, CHN, AUX = 59, 60, 61, 62, 63


class Signal(NamedTuple):
    """One line of a header: the file of a signal's samples, and their 16-bit sum."""

    file: str
    checksum: int


class Header(NamedTuple):
    """The content of a header: sampling frequency in Hz, number of frames (one sample of each signal), signals."""

    path: Path
    frequency: float
    frames: int
    signals: tuple[Signal, ...]


def read_header(path: Path) -> Header:
    """Read the header (.hea) of a record whose signals are all in one file of format 212; DataError for any other."""
    text = read_bytes(path).decode("latin-1")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    record = lines[0] if lines else []
    if len(record) < 4 or record[0] != path.stem:
        raise _bad(path, f"'{path.stem} SIGNALS FREQUENCY SAMPLES' as its first line", " ".join(record)[:80])
    count = _integer(path, "number of signals", record[1], 1, 64)
    frequency = _integer(path, "sampling frequency", record[2], 1, 100_000)
    frames = _integer(path, "number of samples", record[3], 1, 10**8)
    if len(lines) != 1 + count:
        raise _bad(path, f"{count} lines of signals, as its first line says", len(lines) - 1)
    return Header(path, frequency, frames, tuple(_signal(path, fields) for fields in lines[1:]))


def _signal(path: Path, fields: list[str]) -> Signal:
    if len(fields) < 8:
        raise _bad(path, "signal lines of 8 fields or more", " ".join(fields)[:80])
    if fields[0] != f"{path.stem}.dat":  # a header must not be able to point at another file
        raise _bad(path, f"signals in {path.stem}.dat", fields[0])
    if fields[1] != "212":
        raise _bad(path, "signals in format 212", fields[1])
    return Signal(fields[0], _integer(path, "signal's checksum", fields[6], -32768, 65535))


def read_signals(header: Header) -> NDArray[np.int16]:
    """Return a record's samples in ADC units, (frames, signals); DataError if their number or a checksum is wrong."""
    path = header.path.with_name(header.signals[0].file)
    count = header.frames * len(header.signals)
    packed = read_bytes(path)
    if len(packed) != (3 * count + 1) // 2:
        raise _bad(path, f"{(3 * count + 1) // 2} bytes, as {header.path.name} says", f"{len(packed)} bytes")
    samples = unpack_212(packed, count).reshape(header.frames, len(header.signals))
    for channel, signal in enumerate(header.signals):
        found = int(samples[:, channel].sum(dtype=np.int16))  # int16 wraps around, like the sums of the header
        if (found - signal.checksum) % 65536:
            expected = f"checksum {signal.checksum} of signal {channel}, as {header.path.name} says"
            raise _bad(path, expected, found)
    return samples


def unpack_212(packed: bytes, count: int) -> NDArray[np.int16]:
    """Return `count` samples (count,) from 12-bit two's complement numbers, two in every three bytes."""
    octets = np.frombuffer(packed + bytes(-len(packed) % 3), np.uint8).reshape(-1, 3).astype(np.int16)
    samples = np.empty((len(octets), 2), np.int16)
    # Each sample is shifted up to the top 12 bits, then down again, which copies its sign.
    samples[:, 0] = (octets[:, 1] << 12 | octets[:, 0] << 4) >> 4
    samples[:, 1] = ((octets[:, 1] & 0xF0) << 8 | octets[:, 2] << 4) >> 4
    return samples.reshape(-1)[:count]


def read_annotations(path: Path) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read an annotation file (.atr) and return the sample number and the code of every annotation, in time order.

    Raises DataError for a file that is cut or not in time order.
    """
    octets = read_bytes(path)
    if len(octets) % 2:
        raise _bad(path, "an even number of bytes", f"{len(octets)} bytes")
    words = np.frombuffer(octets, "<u2").tolist()
    samples: list[int] = []
    codes: list[int] = []
    time = place = 0
    while place < len(words) and words[place]:
        code, number = words[place] >> 10, words[place] & 1023
        place += 1
        if code == SKIP:  # a 32-bit interval, the high half first
            if place + 2 > len(words):
                place = len(words)
                break
            interval = words[place] << 16 | words[place + 1]
            time += interval - (1 << 32) * (interval >> 31)
            place += 2
        elif code == AUX:  # `number` bytes of text, padded to whole words
            place += (number + 1) // 2
        elif code not in (NUM, SUB, CHN):
            time += number
            samples.append(time)
            codes.append(code)
    if place >= len(words):
        raise _bad(path, "an end mark (a zero word) as its last word", "none: the file is cut short")
    if any(later < earlier for earlier, later in zip([0, *samples], samples, strict=False)):
        raise _bad(path, "annotations in time order", "one that goes back in time")
    return np.array(samples, np.int64), np.array(codes, np.uint8)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file; DataError if it is missing or above 64 MiB, KDError if it cannot be read."""
    with reading(path):
        if not path.is_file():
            raise DataError(f"{path}: expected a file, found none. {REMEDY}")
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise _bad(path, f"at most {LARGEST_FILE_BYTES} bytes", f"{path.stat().st_size} bytes")
        return path.read_bytes()


def _integer(path: Path, what: str, text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise _bad(path, f"a {what} from {low} to {high}", repr(text[:40]))
    return value


def _bad(path: Path, expected: str, found: Any) -> DataError:
    return DataError(f"{path}: expected {expected}, found {found}. {REMEDY}")
