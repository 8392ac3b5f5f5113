"""Picture files, fit and unfit, made here; and the stored arrays."""

import io
import os
import shutil
import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from kdlib.data import DataError, picture_files
from kdlib.data.picture_files import Named, Skipped, decoded
from kdlib.errors import KDError

SIDE = 8


def load(folder, names=None, labels=None, mode="L"):
    names = sorted(names or (path.name for path in folder.iterdir() if not path.name.startswith(".")))
    return decoded(folder, [Named(name, (labels or {}).get(name, 0)) for name in names], SIDE, mode)


def stored(folder):
    return sorted(folder.glob(".kdlib-*.safetensors"))


def saved(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


def test_pixels_keep_their_places_channels_and_values(write_files):
    pixels = np.add.outer(np.arange(0, 160, 20), np.arange(0, 40, 5))[..., None] + np.array([0, 20, 50])
    pixels = pixels.astype(np.uint8)
    folder = write_files({"a.jpg": saved(pixels), "b.JPEG": saved(pixels[..., 0])})
    colour = load(folder, ["a.jpg"], mode="RGB")
    assert (colour.images.dtype, colour.images.shape) == (np.uint8, (1, 3, SIDE, SIDE))
    assert np.abs(colour.images[0].astype(int) - pixels.transpose(2, 0, 1)).max() <= 3
    found = load(folder)
    assert found.images.shape == (2, 1, SIDE, SIDE)
    assert np.abs(found.images[0, 0] - pixels @ np.array([0.299, 0.587, 0.114])).max() <= 3
    assert np.abs(found.images[1, 0].astype(int) - pixels[..., 0]).max() <= 3
    assert ([file.name for file in found.files], found.skipped) == (["a.jpg", "b.JPEG"], ())


def test_a_large_picture_is_averaged_and_not_sampled(write_files):
    """Columns of 0 and 200 by turns: each small pixel is about their mean, which no single pixel has."""
    stripes = np.tile(np.array([0, 200], np.uint8), (8 * SIDE, 4 * SIDE))
    assert np.abs(load(write_files({"a.jpg": saved(stripes)})).images.astype(int) - 100).max() <= 8


def of_size(content, width, height):
    """Return a JPEG file whose header says another size."""
    at = content.index(b"\xff\xc0") + 5  # marker, length, bits; then height and width
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def test_each_unfit_file_is_named_with_its_reason(write_files, jpeg):
    whole = jpeg(1, 32)
    bits = whole.index(b"\xff\xc0") + 4
    unfit = {
        "bomb.jpg": (of_size(whole, 65_000, 65_000), "more than 33554432 pixels"),
        "bomblet.jpg": (of_size(whole, 65_000, 600), "more than 33554432 pixels"),
        "cmyk.jpg": (jpeg(2, mode="CMYK"), "mode CMYK, not grey or RGB"),
        "cut by a byte.jpg": (whole[:-3], "not a whole JPEG picture"),
        "cut.jpg": (whole[: len(whole) // 2], "not a whole JPEG picture"),
        "deep.jpg": (whole[:bits] + b"\x0c" + whole[bits + 1 :], "not a whole JPEG picture"),  # 12 bits
        "deep.png": (jpeg(3, mode="I;16", format="PNG"), "misnamed: the ending is not .jpg or .jpeg"),
        "empty.jpg": (b"", "empty"),
        "no picture.jpg": (b"<html>" * 100, "not a whole JPEG picture"),
        "notes.txt": (whole, "misnamed: the ending is not .jpg or .jpeg"),
        "png.jpg": (jpeg(4, format="PNG"), "not a whole JPEG picture"),
        "start.jpg": (whole[:2], "not a whole JPEG picture"),
    }
    good = {"good.jpg": whole, "n\u00e9 \u65e5\u672c x.jpeg": jpeg(7), "space in name.JPG": jpeg(8, mode="L")}
    folder = write_files({**{name: content for name, (content, _) in unfit.items()}, **good})
    found = load(folder)
    assert dict(found.skipped) == {name: reason for name, (_, reason) in unfit.items()}
    assert [file.name for file in found.files] == sorted(good)
    assert load(folder).skipped == found.skipped  # it is stored with the arrays
    with pytest.raises(DataError, match=r"skipped 12 of the files: \w+.*\(.*\); .*; and 8 more\. Replace"):
        picture_files.refuse_damaged(folder, found.skipped)


def test_a_bomb_is_refused_before_it_unpacks(jpeg, monkeypatch):
    bombs = [of_size(jpeg(1), *size) for size in ((65_000, 65_000), (65_000, 600))]
    monkeypatch.setattr(Image.Image, "convert", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    for bomb in bombs:
        with pytest.raises(picture_files.UnfitError, match="more than 33554432 pixels"):
            picture_files.decode(bomb, SIDE, "L")


def test_too_large_a_file_is_not_read(write_files, jpeg, monkeypatch):
    monkeypatch.setattr(picture_files, "MOST_BYTES", 1000)
    folder = write_files({"a.jpg": jpeg(1), "b.jpg": jpeg(1, 64)})
    size = (folder / "b.jpg").stat().st_size
    assert load(folder).skipped == (Skipped("b.jpg", f"{size} bytes, more than 1000"),)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_links_out_of_the_folder_and_special_files_are_skipped(write_files, jpeg, tmp_path):
    folder = write_files({"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    secret = write_files({"secret.jpg": jpeg(3)}, "elsewhere")
    (folder / "out.jpg").symlink_to(secret / "secret.jpg")
    (folder / "up.jpg").symlink_to("../elsewhere/secret.jpg")
    (folder / "broken.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "inner.jpg").symlink_to("b.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")  # to read it would block for ever
    reasons = dict(load(folder).skipped)
    assert reasons.pop("circle.jpg").startswith("not readable")
    assert reasons == {
        "broken.jpg": "not readable (No such file or directory)",
        "folder.jpg": "not a file",
        "inner.jpg": "a copy of b.jpg",
        "out.jpg": "a link out of the folder",
        "pipe.jpg": "not a file",
        "up.jpg": "a link out of the folder",
    }
    (tmp_path / "link").symlink_to(folder)  # the whole set may be elsewhere
    assert [file.name for file in load(tmp_path / "link").files] == ["a.jpg", "b.jpg"]


def test_the_first_of_equal_pictures_is_kept_and_none_with_different_labels(write_files, jpeg):
    same, torn = jpeg(1), jpeg(2)
    files = {
        "a.jpg": jpeg(0),
        "b.jpg": same,
        "c.jpg": same + b"behind the picture",
        "d.jpg": torn,
        "e.jpg": torn,
        "f.jpg": jpeg(3),
    }
    folder = write_files(files)
    found = load(folder, labels={"a.jpg": 1, "e.jpg": 1})
    assert found.files == (Named("a.jpg", 1), Named("b.jpg", 0), Named("f.jpg", 0))
    assert len(found.images) == 3
    assert (found.labels.tolist(), found.labels.dtype) == ([1, 0, 0], np.uint8)
    assert found.skipped == (
        Skipped("c.jpg", "a copy of b.jpg"),
        Skipped("d.jpg", "the same picture has different labels"),
        Skipped("e.jpg", "the same picture has different labels"),
    )
    for row, name in enumerate(("a.jpg", "b.jpg", "f.jpg")):
        np.testing.assert_array_equal(found.images[row], picture_files.decode(files[name], SIDE, "L"))
    picture_files.refuse_damaged(folder, found.skipped[:1])  # a copy is no damage


# --- the stored arrays --------------------


def refuse(*_):
    raise AssertionError("decoded again")


def test_pictures_are_decoded_once_and_again_after_a_change(write_files, jpeg, monkeypatch):
    folder = write_files({"a.jpg": jpeg(1), "b.jpg": jpeg(2), "c.jpg": b""})
    first = load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(picture_files, "decode", refuse)
        again = load(folder)
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)
        again.images[0] = 0  # arrays are writable
        for change in ({"mode": "RGB"}, {"labels": {"a.jpg": 1}}):
            with pytest.raises(AssertionError, match="decoded again"):
                load(folder, **change)
        write_files({"a.jpg": jpeg(3)})
        with pytest.raises(AssertionError, match="decoded again"):
            load(folder)
        shutil.copytree(folder, folder.parent / "copy")
        write_files({"a.jpg": jpeg(1)}, "copy")
        load(folder.parent / "copy")  # the content counts, not the place
    assert not np.array_equal(load(folder).images[0], first.images[0])


def test_a_damaged_store_is_decoded_again(write_files, jpeg):
    folder = write_files({"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    first = load(folder)
    (path,) = stored(folder)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(load(folder).images, first.images)
        assert path.read_bytes() == whole


def test_the_user_cache_is_used_if_the_folder_is_not_writable_and_nothing_if_neither_is(
    write_files, jpeg, tmp_path, monkeypatch
):
    folder = write_files({"a.jpg": jpeg(1)})
    first = load(folder)
    (path,) = stored(folder)
    path.unlink()
    path.mkdir()  # no file can replace a folder, not even root's
    np.testing.assert_array_equal(load(folder).images, first.images)
    assert [each.name for each in stored(tmp_path / "cache")] == [path.name]
    with monkeypatch.context() as patch:
        patch.setattr(picture_files, "decode", refuse)
        np.testing.assert_array_equal(load(folder).images, first.images)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()
    np.testing.assert_array_equal(load(folder).images, first.images)


@pytest.mark.parametrize("change", ["edit", "delete"])
def test_a_file_that_changes_while_it_is_read_is_an_error(write_files, jpeg, monkeypatch, change):
    folder = write_files({"a.jpg": jpeg(1)})

    def between(folder, key, compute):
        (folder / "a.jpg").write_bytes(jpeg(2)) if change == "edit" else (folder / "a.jpg").unlink()
        return compute()

    monkeypatch.setattr(picture_files, "computed_once", between)
    with pytest.raises(DataError, match=r"a\.jpg: expected the bytes of a moment ago"):
        load(folder)


@pytest.mark.parametrize(
    ("module", "name", "value"), [(ImageFile, "LOAD_TRUNCATED_IMAGES", True), (Image, "MAX_IMAGE_PIXELS", 10)]
)
def test_what_is_stored_does_not_depend_on_pillows_settings_in_one_process(
    write_files, jpeg, monkeypatch, module, name, value
):
    whole = jpeg(1, 32)
    folder = write_files({"a.jpg": whole, "b.jpg": jpeg(2, 32)[: len(whole) // 3]})
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        changed = load(folder)
        assert getattr(module, name) == value  # it is the user's again
    assert changed.skipped == (Skipped("b.jpg", "not a whole JPEG picture"),)
    (folder_again,) = {file.parent for file in stored(folder)}
    assert load(folder_again).skipped == changed.skipped


def test_a_decoder_that_lacks_memory_does_not_make_a_picture_unfit(jpeg, monkeypatch):
    content = jpeg(1, 32)  # made before Pillow is short of memory

    def broken(*_):
        raise OSError("broken data stream when reading image file")  # as libjpeg says it

    def short(*_):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    with pytest.raises(picture_files.UnfitError, match="not a whole JPEG picture"):
        picture_files.decode(content, SIDE, "L")
    monkeypatch.setattr("kdlib.data.picture_files.np.empty", short)
    with pytest.raises(KDError, match="expected memory to decode a picture"):
        picture_files.decode(content, SIDE, "L")
