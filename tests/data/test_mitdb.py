"""The rebuilt heartbeats, the splits and Kaggle's files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from kdlib.data import DataError, kaggle, mitdb

SYMBOLS = {symbol: k for k, symbols in enumerate(["NLRej", "AaJS", "VE", "F", "/fQ"]) for symbol in symbols}
PATH = Path("100.atr")


def rows_by_hand(signal, samples, symbols):
    """Cut beats by the published rule, one at a time, in plain Python."""
    rows, classes = [], []
    for k in range(len(samples) - 1):
        if symbols[k] in SYMBOLS:
            a1 = samples[k + 1]
            a2 = samples[k + 2] if k + 2 < len(samples) else len(signal)
            segment = [float(value) for value in signal[samples[k] : int(a1 + 0.2 * (a2 - a1)) : 3]]
            low, high = min(segment), max(segment)
            row = [(value - low) / (high - low) for value in segment][:187]
            rows.append(row + [0.0] * (187 - len(row)))
            classes.append(SYMBOLS[symbols[k]])
    return np.array(rows, np.float32), classes


def test_beats_are_cut_as_the_rule_says():
    wfdb = pytest.importorskip("wfdb")
    table = wfdb.io.annotation.ann_label_table
    code_of = dict(zip(table["symbol"], table["label_store"], strict=True))
    generator = np.random.default_rng(0)
    signal = generator.integers(-2048, 2048, 60_000).astype(np.int16)
    samples = np.sort(generator.choice(59_000, 200, replace=False))  # gaps both shorter and longer than 187 * 3
    symbols = generator.choice([*SYMBOLS, "+", "~", "|", "x", '"'], 200).tolist()
    codes = np.array([code_of[symbol] for symbol in symbols], np.uint8)
    rows, classes = mitdb.cut_beats(signal, samples, codes, PATH)
    expected = rows_by_hand(signal.tolist(), samples.tolist(), symbols)
    np.testing.assert_array_equal(rows, expected[0])
    assert classes.tolist() == expected[1]
    assert rows.dtype == np.float32
    assert classes.dtype == np.uint8
    assert set(classes.tolist()) == {0, 1, 2, 3, 4}
    assert (rows[:, -1] > 0).any()  # cropped
    assert (rows[:, -1] == 0).any()  # padded


def test_extremes_are_those_of_the_whole_segment_also_where_it_is_cropped():
    signal = np.zeros(3000, np.int16)
    signal[0], signal[1500] = 50, 100  # the maximum is beyond 187 * 3 samples
    rows, _ = mitdb.cut_beats(signal, np.array([0, 2000]), np.array([1, 1], np.uint8), PATH)
    assert rows.shape == (1, 187)
    assert rows.max() == 0.5


def test_no_beats_give_no_rows():
    rows, classes = mitdb.cut_beats(np.zeros(100, np.int16), np.array([5, 9]), np.array([28, 28], np.uint8), PATH)
    assert rows.shape == (0, 187)
    assert classes.shape == (0,)


def test_a_constant_segment_is_refused_by_record_and_sample():
    signal = np.arange(3000, dtype=np.int16)
    signal[1000:2500] = 7
    with pytest.raises(DataError, match=r"100\.dat: expected .*varies.*found a constant.*sample 1000\. Replace"):
        mitdb.cut_beats(signal, np.array([0, 1000, 1500, 1600]), np.array([1, 1, 1, 1], np.uint8), PATH)


@pytest.mark.parametrize("samples", [[10, 10, 10, 20], [10, 4000, 4001]], ids=["empty beat", "beyond the end"])
def test_a_beat_outside_its_record_is_refused(samples):
    codes = np.ones(len(samples), np.uint8)
    with pytest.raises(DataError, match=r"100\.atr: expected a beat that ends between.*found one from sample 10 to"):
        mitdb.cut_beats(np.arange(3000, dtype=np.int16), np.array(samples), codes, PATH)


def test_a_record_with_missing_annotations_is_refused(write_record):
    samples = np.random.default_rng(0).integers(-100, 100, (5000, 2)).astype(np.int16)
    folder = write_record(samples, [(10, 1), (300, 1), (600, 1)])
    with pytest.raises(DataError, match=r"100\.atr: expected 2272 heartbeats, found 2\. Replace"):
        mitdb.record_heartbeats(folder, 100)
    with pytest.raises(DataError, match=r"101\.hea: expected a file, found none"):
        mitdb.record_heartbeats(folder, 101)


def test_record_counts_add_up():
    assert len(mitdb.RECORDS) == 48
    assert sum(mitdb.RECORDS.values()) == mitdb.COUNT
    assert list(mitdb.RECORDS) == sorted(mitdb.RECORDS)
    assert sorted((*mitdb.DS1, *mitdb.DS2, *mitdb.PACED)) == list(mitdb.RECORDS)


def test_row_checksums_tell_all_rows_apart():
    assert len(np.unique(mitdb.checksums())) == mitdb.COUNT


def test_published_split_is_cut_as_scikit_learn_cuts():
    model_selection = pytest.importorskip("sklearn.model_selection")
    order = np.frombuffer(mitdb.fact("published_test_order.i32"), "<i4")
    test, validation = model_selection.train_test_split(order, test_size=0.2, random_state=1337)
    split = mitdb.published_split()
    np.testing.assert_array_equal(split.test, test)
    np.testing.assert_array_equal(split.validation, validation)
    assert [len(part) for part in split] == [87_554, 4_379, 17_513]
    assert sorted(np.concatenate(split).tolist()) == list(range(mitdb.COUNT))
    assert (np.diff(split.train) > 0).all()
    assert all(part.dtype == np.int64 for part in split)


def test_inter_patient_split_refuses_other_records():
    classes, records = np.zeros(3, np.uint8), np.array([100, 101, 999], np.int16)
    with pytest.raises(DataError, match=r"inter_patient_split: expected one MIT-BIH record.*999"):
        mitdb.inter_patient_split(classes, records)
    with pytest.raises(DataError, match="expected one MIT-BIH record"):
        mitdb.inter_patient_split(classes[:2], records)


def test_stratified_split_keeps_the_fractions_of_every_class():
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [9000, 250, 600, 100, 50]))
    split = mitdb.stratified_split(classes, 3, (0.7, 0.1, 0.2))
    assert sorted(np.concatenate(split).tolist()) == list(range(10_000))
    for part, fraction in zip(split, (0.7, 0.1, 0.2), strict=True):
        counts = np.bincount(classes[part])
        np.testing.assert_allclose(counts, fraction * np.bincount(classes), atol=0.51)
    again, other = (mitdb.stratified_split(classes, seed, (0.7, 0.1, 0.2)) for seed in (3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(split, again, strict=True))
    assert not np.array_equal(split.train, other.train)
    with pytest.raises(DataError, match="add up to 1"):
        mitdb.stratified_split(classes, 3, (0.7, 0.1, 0.1))


def lines_of(rows, classes):
    """Return lines like those of Kaggle's files, which write the class as a float, too."""
    return [
        ",".join([*(f"{v:.18e}" for v in row), f"{label:.18e}"]) + "\n"
        for row, label in zip(rows, classes, strict=True)
    ]


@pytest.fixture
def small_file(tmp_path):
    """A file of six random rows, and the map of their checksums to the row numbers 0, 10, ... 50."""
    generator = np.random.default_rng(0)
    rows, classes = generator.random((6, 187), np.float32), [0, 1, 2, 3, 4, 0]
    row_of = {kaggle.checksum(row, label): 10 * k for k, (row, label) in enumerate(zip(rows, classes, strict=True))}
    path = tmp_path / "mitbih_test.csv"
    path.write_text("".join(lines_of(rows, classes)))
    return path, rows, classes, row_of


def test_csv_lines_are_placed_bit_for_bit_in_any_order(small_file):
    path, rows, classes, row_of = small_file
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    found = list(kaggle.checked_lines(path, row_of))
    assert [number for number, _, _ in found] == [50, 40, 30, 20, 10, 0]
    assert [label for _, _, label in found] == classes[::-1]
    np.testing.assert_array_equal([values for _, values, _ in found], rows[::-1])


def altered(lines, row, field, text):
    fields = lines[row].rstrip("\n").split(",")
    fields[field] = text
    return [*lines[:row], ",".join(fields) + "\n", *lines[row + 1 :]]


EDITS = {
    "value": (lambda lines: altered(lines, 3, 17, "0.5"), 4, "published rows"),
    "last bit": (
        lambda lines: altered(lines, 1, 5, repr(float(np.nextafter(np.float32(lines[1].split(",")[5]), 2)))),
        2,
        "published rows",
    ),
    "class": (lambda lines: altered(lines, 2, 187, "4.0"), 3, "published rows"),
    "class out of range": (lambda lines: altered(lines, 2, 187, "7"), 3, "class from 0 to 4"),
    "word": (lambda lines: altered(lines, 0, 9, "abc"), 1, "numbers only"),
    "nan": (lambda lines: altered(lines, 0, 9, "nan"), 1, "published rows"),
    "lines cut off": (lambda lines: lines[:4], 5, "6 lines, found the end of the file after 4"),
    "cut in a line": (lambda lines: [*lines[:3], lines[3][:500]], 4, "188 values"),
    "cut in a value": (lambda lines: [*lines[:5], lines[5][:-25]], 6, "188 values|numbers only"),
    "row left out": (lambda lines: lines[:2] + lines[3:], 6, "6 lines, found the end of the file after 5"),
    "row twice": (lambda lines: [*lines[:4], lines[1], *lines[4:]], 5, "once, found the row of line 2 again"),
    "header": (lambda lines: ["a,b,c\n", *lines], 1, "188 values"),
    "blank line": (lambda lines: [*lines[:2], "\n", *lines[2:]], 3, "188 values"),
    "one endless line": (lambda lines: ["0," * 100_000], 1, "188 values"),
    "empty": (lambda lines: [], 1, "6 lines"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_altered_csv_is_named_with_its_first_bad_line(small_file, edit):
    path, _, _, row_of = small_file
    change, line, expected = edit
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(DataError, match=rf"mitbih_test\.csv, line {line}: expected .*({expected}).*Replace"):
        list(kaggle.checked_lines(path, row_of))


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """A set of 40 random rows of two records in place of the published one, 8 of them in Kaggle's test file."""
    generator = np.random.default_rng(1)
    rows, classes = generator.random((40, 187), np.float32), generator.integers(0, 5, 40).astype(np.uint8)
    in_test_file = np.arange(40) % 5 == 2
    facts = {
        "published_test_mask.bin": np.packbits(in_test_file).tobytes(),
        "row_checksums.u32": np.array(list(map(kaggle.checksum, rows, classes)), "<u4").tobytes(),
    }
    monkeypatch.setattr(mitdb, "fact", facts.__getitem__)
    monkeypatch.setattr(mitdb, "RECORDS", {100: 15, 101: 25})
    monkeypatch.setattr(mitdb, "COUNT", 40)
    monkeypatch.setattr(mitdb, "ROWS_SHA256", sha256(rows))
    monkeypatch.setattr(mitdb, "CLASSES_SHA256", sha256(classes))
    for name, of_this_file in zip(kaggle.FILES, (~in_test_file, in_test_file), strict=True):
        numbers = generator.permutation(np.flatnonzero(of_this_file))
        (tmp_path / name).write_text("".join(lines_of(rows[numbers], classes[numbers])))
    return rows, classes, np.repeat(np.array([100, 101], np.int16), [15, 25])


def test_heartbeats_from_kaggle_files_are_in_the_rebuilt_order(small_world, tmp_path):
    found = mitdb.heartbeats(tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(small_world, found, strict=True))
    assert [array.dtype for array in found] == [np.float32, np.uint8, np.int16]


def test_a_test_row_in_the_training_file_is_refused(small_world, tmp_path):
    train, test = (tmp_path / name for name in kaggle.FILES)
    train.write_text(test.read_text() + train.read_text())
    with pytest.raises(DataError, match=r"mitbih_train\.csv, line 1: expected one of this file's published rows"):
        mitdb.heartbeats(tmp_path)


def test_rows_that_pass_every_line_but_not_the_sum_are_refused(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(mitdb, "ROWS_SHA256", "0" * 64)
    with pytest.raises(DataError, match=rf"SHA-256 of the rows 0{{64}}, found {sha256(small_world[0])}"):
        mitdb.heartbeats(tmp_path)


def test_one_csv_without_the_other_is_refused(small_file):
    with pytest.raises(DataError, match=r"mitbih_train\.csv: expected both mitbih_train\.csv and mitbih_test\.csv"):
        mitdb.heartbeats(small_file[0].parent)


@pytest.mark.real_data
def test_real_heartbeats_are_the_published_ones(real):
    rows, classes, records = real
    assert (rows.shape, rows.dtype) == ((109_446, 187), np.float32)
    assert (classes.dtype, records.dtype) == (np.uint8, np.int16)
    # From the source, not from this code.
    rows_sum = "91a473f8aa67f8ca0908eb69e72d53afae1e5d21a0c7f32e70015962f2552d97"
    classes_sum = "45358e9377532d212c1d4f6cf4189637424cf1b6df7ef2b1437cce50cb43a226"
    assert hashlib.sha256(rows.tobytes()).hexdigest() == rows_sum
    assert hashlib.sha256(classes.tobytes()).hexdigest() == classes_sum
    assert dict(zip(*np.unique(records, return_counts=True), strict=True)) == mitdb.RECORDS
    low = rows.max(1) < 1  # the shortcut DATA.md warns of
    assert np.bincount(classes[low], minlength=5).tolist() == [33, 179, 13, 0, 0]
    assert all(kaggle.checksum(rows[k], classes[k]) == mitdb.checksums()[k] for k in range(0, mitdb.COUNT, 17))


@pytest.mark.real_data
def test_one_real_record_is_what_the_rule_gives_with_wfdb(real, real_folder):
    wfdb = pytest.importorskip("wfdb")
    signal = wfdb.rdrecord(str(real_folder / "208"), physical=False).d_signal[:, 0]
    annotations = wfdb.rdann(str(real_folder / "208"), "atr", return_label_elements=["label_store"])
    table = wfdb.io.annotation.ann_label_table
    symbol_of = dict(zip(table["label_store"], table["symbol"], strict=True))
    symbols = [symbol_of[code] for code in annotations.label_store]
    rows, classes = rows_by_hand(signal.tolist(), annotations.sample.tolist(), symbols)
    mine = real[2] == 208
    np.testing.assert_array_equal(real[0][mine], rows)
    assert real[1][mine].tolist() == classes


@pytest.mark.real_data
def test_real_class_counts_of_the_splits(real):
    _, classes, records = real
    counts = [np.bincount(classes[part], minlength=5).tolist() for part in mitdb.published_split()]
    assert counts[0] == [72_471, 2_223, 5_788, 641, 6_431]
    assert counts[1] == [3_649, 109, 278, 31, 312]
    assert counts[2] == [14_469, 447, 1_170, 131, 1_296]
    split = mitdb.inter_patient_split(classes, records)
    assert not set(records[np.concatenate(split[:2])]) & set(records[split.test])
    assert not set(records[split.train]) & set(records[split.validation])
    assert all(np.bincount(classes[part], minlength=5).min() > 0 for part in split)
    assert sum(map(len, split)) == mitdb.COUNT - sum(mitdb.RECORDS[record] for record in mitdb.PACED)
    train, published_test = (set(records[part]) for part in (mitdb.published_split()[0], mitdb.published_split()[2]))
    assert train == published_test == set(mitdb.RECORDS)  # the leak between patients DATA.md warns of


@pytest.mark.real_data
def test_real_records_that_are_not_the_published_ones_are_refused(real, real_folder, tmp_path):
    for path in real_folder.glob("*.*"):
        if path.suffix in (".dat", ".hea", ".atr"):
            (tmp_path / path.name).symlink_to(path)
    octets = bytearray((real_folder / "103.atr").read_bytes())
    at = next(k for k in range(400, len(octets), 2) if octets[k + 1] >> 2 == 1)
    octets[at + 1] = octets[at + 1] & 3 | 5 << 2  # one N beat becomes a V beat
    (tmp_path / "103.atr").unlink()
    (tmp_path / "103.atr").write_bytes(octets)
    with pytest.raises(DataError, match=r"SHA-256 of the classes .*first different row is \d+, of record 103"):
        mitdb.heartbeats(tmp_path)


@pytest.mark.real_data
def test_lines_in_kaggles_notation_are_the_real_rows(real, tmp_path):
    rows, classes, _ = real
    numbers = np.frombuffer(mitdb.fact("published_test_order.i32"), "<i4")[:300]
    (tmp_path / "mitbih_test.csv").write_text("".join(lines_of(rows[numbers], classes[numbers])))
    row_of = dict(zip(mitdb.checksums()[numbers].tolist(), numbers.tolist(), strict=True))
    found = list(kaggle.checked_lines(tmp_path / "mitbih_test.csv", row_of))
    assert [number for number, _, _ in found] == numbers.tolist()
    np.testing.assert_array_equal([values for _, values, _ in found], rows[numbers])
