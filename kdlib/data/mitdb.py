"""The MIT-BIH heartbeats of Kachuee, Fazeli and Sarrafzadeh (2018), rebuilt bit for bit from the records.

The paper's text describes something else than the published rows. They are made as follows. Channel 0, in integer ADC
units, gives one row for each beat annotation. The row starts at that annotation's sample and ends a fifth of the way
from the next annotation of any kind to the one after it. Every third sample is kept (360 Hz / 3 = 120 Hz). The whole
segment is scaled to [0, 1], then cropped or padded with zeros to 187 values.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdlib.checks import whole_number
from kdlib.data import DataError, kaggle, physionet

Rows = NDArray[np.float32]  # (N, 187)
Classes = NDArray[np.uint8]  # (N,), indices of CLASSES
Records = NDArray[np.int16]  # (N,), the record each row comes from

CLASSES = ("N", "S", "V", "F", "Q")  # AAMI: normal, supraventricular, ventricular, fusion, unknown or paced
WIDTH = 187  # samples in a row
STEP = 3  # every third of 360 samples per second

# The class of each code of an MIT beat annotation (N L R e j, A a J S, V E, F, / f Q).
BEATS = {1: 0, 2: 0, 3: 0, 34: 0, 11: 0, 8: 1, 4: 1, 7: 1, 9: 1, 5: 2, 10: 2, 6: 3, 12: 4, 38: 4, 13: 4}

# Record number -> number of its rows, in ascending order of the records.
RECORDS = {
    100: 2272,
    101: 1864,
    102: 2186,
    103: 2083,
    104: 2228,
    105: 2571,
    106: 2026,
    107: 2136,
    108: 1762,
    109: 2531,
    111: 2123,
    112: 2538,
    113: 1794,
    114: 1878,
    115: 1952,
    116: 2411,
    117: 1534,
    118: 2277,
    119: 1986,
    121: 1862,
    122: 2475,
    123: 1517,
    124: 1618,
    200: 2600,
    201: 1962,
    202: 2135,
    203: 2979,
    205: 2655,
    207: 1859,
    208: 2954,
    209: 3004,
    210: 2649,
    212: 2747,
    213: 3250,
    214: 2261,
    215: 3362,
    217: 2207,
    219: 2153,
    220: 2047,
    221: 2426,
    222: 2482,
    223: 2604,
    228: 2052,
    230: 2255,
    231: 1570,
    232: 1779,
    233: 3078,
    234: 2752,
}
COUNT = 109_446

ROWS_SHA256 = "91a473f8aa67f8ca0908eb69e72d53afae1e5d21a0c7f32e70015962f2552d97"
CLASSES_SHA256 = "45358e9377532d212c1d4f6cf4189637424cf1b6df7ef2b1437cce50cb43a226"

# De Chazal, O'Dwyer and Reilly 2004, IEEE Trans. Biomed. Eng. 51(7): no record of DS1 is in DS2, and the four paced
# records are left out. One person is in both nevertheless: records 201 and 202 are of the same man.
DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122, 124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210, 212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234)
PACED = (102, 104, 107, 217)
# Our choice, 15.6% of DS1, because the paper has no validation part. Only 101, 203 and 208 have Q beats, and 208 has
# 373 of the 415 F beats. With 101 here and 203 and 208 in training, both parts have all five classes.
DS1_VALIDATION = (101, 114, 124, 223)


class Split(NamedTuple):
    """Row numbers (int64) of the three parts, each in a fixed order."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def heartbeats(folder: Path | str) -> tuple[Rows, Classes, Records]:
    """Return all 109,446 heartbeats as (rows, classes, records), the same bits from every source.

    The folder holds PhysioNet's records (`100.dat`, `100.hea`, `100.atr`, ...) or Kaggle's two files
    (`mitbih_train.csv`, `mitbih_test.csv`). If it holds both, the records are read. Raises DataError if the rows or the
    classes are not the published ones.
    """
    folder = Path(folder)
    if not (folder / "100.hea").exists() and any((folder / name).exists() for name in kaggle.FILES):
        rows, classes = _from_kaggle(folder)
    else:
        parts = [record_heartbeats(folder, record) for record in RECORDS]
        rows = np.concatenate([part[0] for part in parts])
        classes = np.concatenate([part[1] for part in parts])
    _check_published(folder, rows, classes)
    return rows, classes, np.repeat(np.array(list(RECORDS), np.int16), list(RECORDS.values()))


def record_heartbeats(folder: Path, record: int) -> tuple[Rows, Classes]:
    """Return one record's rows and their classes, in time order; DataError for another number of heartbeats."""
    header = physionet.read_header(folder / f"{record}.hea")
    signal = physionet.read_signals(header)[:, 0]
    path = folder / f"{record}.atr"
    rows, classes = cut_beats(signal, *physionet.read_annotations(path), path)
    if len(rows) != RECORDS[record]:
        raise DataError(f"{path}: expected {RECORDS[record]} heartbeats, found {len(rows)}. {physionet.REMEDY}")
    return rows, classes


def cut_beats(
    signal: NDArray[np.int16], samples: NDArray[np.int64], codes: NDArray[np.uint8], path: Path
) -> tuple[Rows, Classes]:
    """Cut a signal into rows (beats, 187), one for each annotated beat, and return them with their classes.

    The last annotation has no next one and gives no row. `samples` and `codes` are those of all annotations, in time
    order; `path` is named in errors. DataError for a beat with no length or no variation, or beyond the record's end.
    """
    class_of = np.full(64, -1)
    class_of[list(BEATS)] = list(BEATS.values())
    beats = np.flatnonzero(class_of[codes[:-1]] >= 0)
    next_one = np.append(samples, len(signal))  # the annotation after the last one is the record's end
    starts, first, second = samples[beats], next_one[beats + 1], next_one[beats + 2]
    ends = (first + 0.2 * (second - first)).astype(np.int64)
    wrong = (ends <= starts) | (ends > len(signal))
    if wrong.any():
        at = np.flatnonzero(wrong)[0]
        raise DataError(
            f"{path}: expected a beat that ends between its own sample and the record's end ({len(signal)}), "
            f"found one from sample {starts[at]} to {ends[at]}. {physionet.REMEDY}"
        )
    return _scaled_rows(signal, starts, ends, path), class_of[codes[beats]].astype(np.uint8)


def _scaled_rows(signal: NDArray[np.int16], starts: NDArray[np.int64], ends: NDArray[np.int64], path: Path) -> Rows:
    lengths = -((starts - ends) // STEP)
    offsets = np.cumsum(lengths) - lengths
    # All segments, one after the other. The extremes are those of the whole segment, also if the row is cropped.
    segments = signal[np.repeat(starts - STEP * offsets, lengths) + STEP * np.arange(lengths.sum())]
    low = np.minimum.reduceat(segments, offsets) if len(offsets) else segments
    span = np.maximum.reduceat(segments, offsets) - low.astype(np.int64) if len(offsets) else segments
    if (span == 0).any():
        at = starts[np.flatnonzero(span == 0)[0]]
        raise DataError(
            f"{path.with_suffix('.dat')}: expected a signal that varies within a beat, found a constant one "
            f"(maximum = minimum, no scale) in the beat at sample {at}. {physionet.REMEDY}"
        )
    columns = np.arange(WIDTH)
    values = signal[np.minimum(starts[:, None] + STEP * columns, len(signal) - 1)]
    scaled: Rows = ((values - low[:, None]) / span[:, None]).astype(np.float32)
    scaled[columns >= lengths[:, None]] = 0
    return scaled


def published_split() -> Split:
    """Return Kaggle's split, with its test file divided into 80% test and 20% validation.

    The ECG source (CVxTz 2020) divides the test file in this way.
    """
    in_test_file = published_test_mask()
    order = np.frombuffer(fact("published_test_order.i32"), "<i4").astype(np.int64)
    # As scikit-learn's train_test_split(order, test_size=0.2, random_state=1337).
    shuffled = order[np.random.RandomState(1337).permutation(len(order))]
    validation = int(np.ceil(0.2 * len(order)))
    return Split(np.flatnonzero(~in_test_file), shuffled[:validation], shuffled[validation:])


def inter_patient_split(classes: Classes, records: Records) -> Split:
    """Return De Chazal's split by whole records: DS1 is train and validation, DS2 is test; paced records are left out.

    Records 101, 114, 124 and 223 of DS1 are the validation part. All three parts have all five classes. DataError for
    records that are not one MIT-BIH number per row.
    """
    if len(classes) != len(records) or not set(np.unique(records).tolist()) <= set(RECORDS):
        raise DataError(
            f"inter_patient_split: expected one MIT-BIH record number per row, found {len(records)} numbers "
            f"{sorted(set(records.tolist()))[:5]}... for {len(classes)} rows. Pass what heartbeats() returned."
        )
    train = tuple(record for record in DS1 if record not in DS1_VALIDATION)
    return Split(*(np.flatnonzero(np.isin(records, part)) for part in (train, DS1_VALIDATION, DS2)))


def stratified_split(classes: Classes, seed: int, fractions: tuple[float, float, float] = (0.80, 0.04, 0.16)) -> Split:
    """Split every class at random into the given fractions; the default is those of the published split.

    The row numbers of each part are ascending. DataError for fractions that do not add up to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not np.isclose(sum(fractions), 1):
        raise DataError(f"stratified_split: expected three fractions >= 0 that add up to 1, found {fractions}.")
    if np.ndim(classes) != 1:
        raise DataError(f"stratified_split: expected classes (N,), found shape {np.shape(classes)}.")
    seed = whole_number("seed", seed, least=0)
    generator = np.random.default_rng(seed)
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for label in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == label))
        bounds = np.rint(np.cumsum(fractions[:2]) * len(rows)).astype(np.int64)
        for part, some in zip(parts, np.split(rows, bounds), strict=True):
            part.append(some)
    return Split(*(np.sort(np.concatenate(part)) for part in parts))


def published_test_mask() -> NDArray[np.bool_]:
    """Return which of the 109,446 rows are in Kaggle's test file, bool (109,446,)."""
    packed = np.frombuffer(fact("published_test_mask.bin"), np.uint8)
    return np.unpackbits(packed, count=COUNT).astype(bool)


@cache
def fact(name: str) -> bytes:
    """Return the bytes of a file of facts about this data set, which is part of the package."""
    return resources.files("kdlib.data").joinpath("facts", "mitdb", name).read_bytes()


def checksums() -> NDArray[np.uint32]:
    """Return the `kaggle.checksum` of each row, uint32 (109,446,)."""
    return np.frombuffer(fact("row_checksums.u32"), "<u4").astype(np.uint32)


def _from_kaggle(folder: Path) -> tuple[Rows, Classes]:
    """Read Kaggle's two files, check each line, and put the rows into the order of the records."""
    rows, classes = np.empty((COUNT, WIDTH), np.float32), np.empty(COUNT, np.uint8)
    in_test_file = published_test_mask()
    for name, of_this_file in zip(kaggle.FILES, (~in_test_file, in_test_file), strict=True):
        numbers = np.flatnonzero(of_this_file)
        row_of = dict(zip(checksums()[numbers].tolist(), numbers.tolist(), strict=True))
        for number, values, label in kaggle.checked_lines(folder / name, row_of):
            rows[number], classes[number] = values, label
    return rows, classes


def _check_published(folder: Path, rows: Rows, classes: Classes) -> None:
    for what, array, expected in (("rows", rows, ROWS_SHA256), ("classes", classes, CLASSES_SHA256)):
        found = hashlib.sha256(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).hexdigest()
        if found != expected:
            raise DataError(
                f"{folder}: expected the published heartbeats, SHA-256 of the {what} {expected}, "
                f"found {found}; {_first_difference(rows, classes)}. Replace the files by fresh copies."
            )


def _first_difference(rows: Rows, classes: Classes) -> str:
    for number, checksum in enumerate(checksums().tolist()):
        if kaggle.checksum(rows[number], int(classes[number])) != checksum:
            record = np.repeat(list(RECORDS), list(RECORDS.values()))[number]
            return f"the first different row is {number}, of record {record}"
    return "no row has another checksum"
