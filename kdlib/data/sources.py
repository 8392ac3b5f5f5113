"""The data sets: their files, the files that their publishers offer, and the functions that read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from kdlib.data import cifar10, kaggle, mitdb, mnist


class File(NamedTuple):
    """A file of a data set or of its publisher.

    SHA-256 or size is None if it differs between copies; then the content is checked instead.
    """

    name: str
    sha256: str | None
    size: int | None


class Packed(NamedTuple):
    """A published file that holds some of the set's files: a .tar.gz archive, or one file with .gz.

    Its SHA-256 and size are known.
    """

    file: File
    holds: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """The facts about one data set."""

    title: str
    licence: str
    citation: str
    url: str
    bytes: int  # to download
    files: Callable[[], tuple[File, ...]]
    check: Callable[[Path], Any]  # reads the whole set; raises DataError
    packed: tuple[Packed, ...] = ()  # the downloads, if they are not the files themselves
    instead: tuple[tuple[str, ...], ...] = ()  # each entry: files that a user may have instead


def _mitdb_files() -> tuple[File, ...]:
    pinned = []
    for line in mitdb.fact("physionet_sha256.txt").decode().splitlines():
        name, digest = line.split(" sha256:")
        pinned.append(File(name, digest, 1_950_000 if name.endswith(".dat") else None))
    # Comments in headers differ between copies; what a header says about the signals is checked on reading.
    return *pinned, *(File(f"{record}.hea", None, None) for record in mitdb.RECORDS)


def _mnist_files() -> tuple[File, ...]:
    return tuple(
        File(f"{mnist.FOLDER}/{name}", digest, 4 + 4 * len(shape) + prod(shape))
        for name, (shape, digest) in mnist.FILES.items()
    )


def _cifar10_files() -> tuple[File, ...]:
    # Copies of the set differ in their order, so the pictures are checked and not the files.
    return tuple(File(name, None, cifar10.FILE_BYTES) for name in CIFAR10_FILES)


MNIST_GZIPPED = (
    File("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
    File("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
    File("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
    File("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
)
MNIST_INSTEAD = (
    tuple(f"{mnist.FOLDER}/{name}.gz" for name in mnist.FILES),
    tuple(mnist.FILES),
    tuple(f"{name}.gz" for name in mnist.FILES),
)
CIFAR10_ARCHIVE = File(
    "cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 170_052_171
)
CIFAR10_FILES = tuple(f"{cifar10.FOLDER}/{name}" for name in (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES))

SOURCES = {
    "mitdb": Source(
        title="MIT-BIH Arrhythmia Database 1.0.0",
        licence="Open Data Commons Attribution License 1.0 (ODC-By 1.0)",
        citation="Moody and Mark 2001, IEEE Eng. Med. Biol. 20(3):45-50, doi:10.13026/C2F305; "
        "Goldberger et al. 2000, Circulation 101(23):e215-e220 (PhysioNet)",
        url="https://physionet.org/files/mitdb/1.0.0",
        bytes=93_850_000,
        files=_mitdb_files,
        check=mitdb.heartbeats,
        instead=(kaggle.FILES,),
    ),
    "mnist": Source(
        title="MNIST handwritten digits",
        licence="Creative Commons Attribution-ShareAlike 3.0 (CC BY-SA 3.0)",
        citation="LeCun, Bottou, Bengio and Haffner 1998, Proc. IEEE 86(11):2278-2324; set by LeCun, Cortes and Burges",
        url="https://ossci-datasets.s3.amazonaws.com/mnist",
        bytes=11_594_722,
        files=_mnist_files,
        check=mnist.digits,
        packed=tuple(Packed(file, (f"{mnist.FOLDER}/{file.name.removesuffix('.gz')}",)) for file in MNIST_GZIPPED),
        instead=MNIST_INSTEAD,
    ),
    "cifar10": Source(
        title="CIFAR-10, binary version",
        licence="none stated by its author; made for research, to be cited",
        citation="Krizhevsky 2009, Learning multiple layers of features from tiny images, "
        "technical report, Univ. of Toronto",
        url="https://www.cs.toronto.edu/~kriz",
        bytes=170_052_171,
        files=_cifar10_files,
        check=cifar10.pictures,
        packed=(Packed(CIFAR10_ARCHIVE, CIFAR10_FILES),),
        instead=((*cifar10.TRAIN_FILES, *cifar10.TEST_FILES),),
    ),
}
