"""Unpack files that may be hostile: only plain files inside the folder, limited in size, everything or nothing."""

from __future__ import annotations

import gzip
import secrets
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import IO

from kdlib.data import DataError
from kdlib.files import replace

CHUNK_BYTES = 2**20
REMEDY = "Delete the archive and fetch it again from its source."


class _Bounded:
    """A reader with a limit of bytes, whatever the archive's headers or its compression say."""

    def __init__(self, file: IO[bytes], most_bytes: int) -> None:
        self.file, self.left = file, most_bytes

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise DataError("more bytes than allowed")
        return content


def unpack(archive: Path, folder: Path, most_bytes: int, most_members: int) -> None:
    """Unpack a .tar or .tar.gz archive into `folder`, which must not exist and appears only if there was no error.

    Raises DataError for a member that is a link or a device or would be outside the folder, for more than
    `most_members` members or `most_bytes` unpacked bytes, and for a damaged archive.
    """
    if folder.exists():
        raise DataError(f"{folder}: expected no folder of this name, found one. Delete it, then unpack again.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    staging.mkdir()  # the umask says who else may read it
    try:
        _extract(archive, staging, most_bytes, most_members)
        replace(staging, folder)
    # ValueError: a member's name holds a NUL or cannot be encoded.
    except (DataError, tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        expected = f"an archive of at most {most_members} plain files and {most_bytes} bytes"
        raise DataError(f"{archive}: expected {expected}, found {error}. {REMEDY}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def gunzip(packed: Path, target: Path, most_bytes: int) -> None:
    """Unpack one .gz file to `target`, and make its folder; the file appears only if there was no error.

    Raises DataError for more than `most_bytes` unpacked bytes and for a damaged file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.part")
    try:
        with gzip.open(packed) as file, temporary.open("wb") as out:
            bounded = _Bounded(file, most_bytes)  # type: ignore[arg-type]
            while chunk := bounded.read(CHUNK_BYTES):
                out.write(chunk)
        replace(temporary, target)
    except (DataError, zlib.error, EOFError, OSError) as error:
        raise DataError(
            f"{packed}: expected a gzipped file of at most {most_bytes} bytes, found {error}. {REMEDY}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _extract(archive: Path, staging: Path, most_bytes: int, most_members: int) -> None:
    with archive.open("rb") as start:
        opener = gzip.open if start.read(2) == b"\x1f\x8b" else open
    # 10 KiB of headers and padding for each member, in addition to its content.
    with opener(archive, "rb") as file:
        bounded = _Bounded(file, most_bytes + 10_240 * (most_members + 1))  # type: ignore[arg-type]
        with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]
            for count, member in enumerate(tar, 1):
                if count > most_members:
                    raise DataError(f"more than {most_members} members")
                if not (member.isfile() or member.isdir()):
                    raise DataError(f"the member {member.name!r}, a link or a special file")
                most_bytes -= member.size
                if most_bytes < 0:
                    raise DataError("more bytes than allowed")
                tar.extract(member, staging, filter="data")
