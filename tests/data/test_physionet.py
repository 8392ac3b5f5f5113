"""The readers of headers, format 212 and annotations, against wfdb and against hostile files."""

import struct

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest

from kdlib.data import DataError, physionet

ANNOTATIONS = [(5, 28), (40, 1), (900, 5), (5000, 8), (5000, 14), (9000, 38)]


def samples(frames=10_000, signals=2, seed=0):
    return np.random.default_rng(seed).integers(-2048, 2048, (frames, signals)).astype(np.int16)


@hypothesis.given(arrays.arrays(np.int16, st.integers(1, 40), elements=st.integers(-2048, 2047)))
def test_unpacking_undoes_packing(pack_212, values):
    np.testing.assert_array_equal(physionet.unpack_212(pack_212(values), len(values)), values)


def test_packed_bytes_of_the_format_description(pack_212):
    # First sample: byte 0 and the low nibble of byte 1; second: byte 2 and the high nibble of byte 1.
    np.testing.assert_array_equal(physionet.unpack_212(bytes([0x34, 0xF2, 0xFE]), 2), [0x234, -2])


@pytest.mark.parametrize("signals", [1, 2, 3])
def test_signals_and_annotations_are_what_wfdb_reads(write_record, signals):
    wfdb = pytest.importorskip("wfdb")
    extras = {
        0: struct.pack("<H", 63 << 10 | 3) + b"(N\0\0",  # AUX of odd length, padded
        1: struct.pack("<HHH", 61 << 10 | 2, 62 << 10 | 1, 60 << 10 | 3),  # SUB, CHN, NUM
    }
    values = samples(9_999, signals)
    folder = write_record(values, ANNOTATIONS, extras)
    header = physionet.read_header(folder / "100.hea")
    record = wfdb.rdrecord(str(folder / "100"), physical=False)
    oracle = wfdb.rdann(str(folder / "100"), "atr", return_label_elements=["label_store"])
    ours = physionet.read_annotations(folder / "100.atr")
    np.testing.assert_array_equal(physionet.read_signals(header), record.d_signal)
    np.testing.assert_array_equal(physionet.read_signals(header), values)
    np.testing.assert_array_equal(ours[0], oracle.sample)
    np.testing.assert_array_equal(ours[1], oracle.label_store)
    assert (header.frames, header.frequency) == (record.sig_len, record.fs)
    assert list(zip(*ours, strict=True)) == ANNOTATIONS


def test_a_skip_may_go_back_if_time_does_not(tmp_path, pack_annotations):
    words = struct.pack("<HHHHHHH", 59 << 10, 1, 0, 59 << 10, 0xFFFF, 0xFFF6, 1 << 10 | 4)
    (tmp_path / "100.atr").write_bytes(words + b"\0\0")
    assert physionet.read_annotations(tmp_path / "100.atr")[0].tolist() == [65536 - 10 + 4]


HEADERS = {
    "empty": ("", "100 SIGNALS FREQUENCY SAMPLES"),
    "binary": ("\0\1\2\xff" * 30, "100 SIGNALS FREQUENCY SAMPLES"),
    "web page": ("<html><body>Sign in</body></html>", "100 SIGNALS FREQUENCY SAMPLES"),
    "other record": ("101 1 360 10\n101.dat 212 200 11 1024 0 0 0", "100 SIGNALS FREQUENCY SAMPLES"),
    "no signals": ("100 0 360 10", "number of signals from 1 to 64"),
    "negative length": ("100 1 360 -5\n100.dat 212 200 11 1024 0 0 0", "number of samples from 1 to"),
    "huge length": ("100 1 360 999999999999\n100.dat 212 200 11 1024 0 0 0", "number of samples from 1 to"),
    "segments": ("100/3 1 360 10\n", "100 SIGNALS FREQUENCY SAMPLES"),
    "words": ("100 two 360 10", "number of signals"),
    "missing line": ("100 2 360 10\n100.dat 212 200 11 1024 0 0 0", "2 lines of signals"),
    "cut line": ("100 1 360 10\n100.dat 212 200", "signal lines of 8 fields"),
    "other format": ("100 1 360 10\n100.dat 16 200 11 1024 0 0 0", "format 212"),
    "skewed format": ("100 1 360 10\n100.dat 212:3 200 11 1024 0 0 0", "format 212"),
    "another file": ("100 1 360 10\n../../secret.dat 212 200 11 1024 0 0 0", "signals in 100.dat"),
    "bad checksum": ("100 1 360 10\n100.dat 212 200 11 1024 0 99999 0", "checksum"),
}


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS.keys())
def test_a_nonsense_header_is_refused_by_name(tmp_path, text):
    path = tmp_path / "100.hea"
    path.write_text(text[0], encoding="latin-1")
    with pytest.raises(DataError, match=rf"100\.hea: expected .*{text[1]}.*found .*Replace"):
        physionet.read_header(path)


@pytest.mark.parametrize("change", [-1, -15_000, 3], ids=["a byte short", "half", "longer"])
def test_a_record_of_another_length_than_its_header_says_is_refused(write_record, change):
    folder = write_record(samples(), ANNOTATIONS)
    packed = (folder / "100.dat").read_bytes()
    (folder / "100.dat").write_bytes(packed[:change] if change < 0 else packed + bytes(change))
    with pytest.raises(DataError, match=rf"100\.dat: expected 30000 bytes.*100\.hea says, found {30000 + change}"):
        physionet.read_signals(physionet.read_header(folder / "100.hea"))


@pytest.mark.parametrize("place", [0, 2], ids=["first signal", "second signal"])
def test_a_changed_sample_breaks_the_checksum(write_record, place):
    folder = write_record(samples(), ANNOTATIONS)
    packed = bytearray((folder / "100.dat").read_bytes())
    packed[3000 + place] ^= 4
    (folder / "100.dat").write_bytes(packed)
    with pytest.raises(DataError, match=rf"100\.dat: expected checksum .*signal {place // 2}.*found"):
        physionet.read_signals(physionet.read_header(folder / "100.hea"))


BROKEN = {
    "empty": (b"", "end mark"),
    "no end mark": (struct.pack("<H", 1 << 10 | 5), "end mark"),
    "odd": (b"\x05\x04\0", "even number"),
    "cut in a skip": (struct.pack("<HH", 59 << 10, 0), "end mark"),
    "text longer than the file": (struct.pack("<HH", 63 << 10 | 900, 0x4141), "end mark"),
    "back in time": (
        struct.pack("<HHHHHH", 4 << 10 | 9, 59 << 10, 0xFFFF, 0xFFF0, 4 << 10 | 1, 0),
        "time order",
    ),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_broken_annotations_are_refused_by_name(tmp_path, content):
    (tmp_path / "100.atr").write_bytes(content[0])
    with pytest.raises(DataError, match=rf"100\.atr: expected .*{content[1]}.*found .*Replace"):
        physionet.read_annotations(tmp_path / "100.atr")


def test_a_missing_and_an_oversized_file_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"100\.atr: expected a file, found none"):
        physionet.read_annotations(tmp_path / "100.atr")
    monkeypatch.setattr(physionet, "LARGEST_FILE_BYTES", 10)
    (tmp_path / "100.atr").write_bytes(bytes(12))
    with pytest.raises(DataError, match="expected at most 10 bytes, found 12 bytes"):
        physionet.read_annotations(tmp_path / "100.atr")


@pytest.mark.real_data
@pytest.mark.parametrize("record", [100, 114, 207, 232])
def test_real_records_are_what_wfdb_reads(real_folder, record):
    wfdb = pytest.importorskip("wfdb")
    ours = physionet.read_signals(physionet.read_header(real_folder / f"{record}.hea"))
    oracle = wfdb.rdrecord(str(real_folder / str(record)), physical=False)
    np.testing.assert_array_equal(ours, oracle.d_signal)
    times, codes = physionet.read_annotations(real_folder / f"{record}.atr")
    annotations = wfdb.rdann(str(real_folder / str(record)), "atr", return_label_elements=["label_store"])
    np.testing.assert_array_equal(times, annotations.sample)
    np.testing.assert_array_equal(codes, annotations.label_store)
