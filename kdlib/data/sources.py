"""The data sets: their files, the files that their publishers offer, and the functions that read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from kdlib.data import cats_dogs, chest_xray, cifar10, kaggle, mitdb, mnist, vgg16

# The limit for a file of unknown size, and for all files of an archive together that do not belong to the set.
UNKNOWN_FILE_BYTES = 2**20
MOST_MEMBERS = 20  # of an archive, including folders


class File(NamedTuple):
    """A file of a data set or of its publisher, or a folder of files: its name ends with `/`.

    SHA-256 or size is None if it differs between copies or is not known; then the content is checked instead. A copy
    may have the file under one of the `others`, which are names too; with another last part, the bytes are others.
    """

    name: str
    sha256: str | None
    size: int | None
    others: tuple[str, ...] = ()


class Packed(NamedTuple):
    """A published file that holds some of the set's files: a .tar.gz archive, or one file with .gz.

    Its SHA-256 and size are known.
    """

    file: File
    holds: tuple[str, ...]
    into: str = ""  # the folder below the set's to unpack it into
    most_members: int = MOST_MEMBERS
    most_other_bytes: int = UNKNOWN_FILE_BYTES  # of the folders that it holds, and of what does not belong to the set


@dataclass(frozen=True)
class Source:
    """The facts about one data set, or about one file of published weights."""

    title: str
    licence: str
    citation: str
    url: str
    bytes: int  # to download
    files: Callable[[], tuple[File, ...]]
    check: Callable[[Path], Any]  # reads the whole set; raises DataError
    packed: tuple[Packed, ...] = ()  # the downloads, if they are not the files themselves
    instead: tuple[tuple[str, ...], ...] = ()  # each entry: files that a user may have instead
    most_file_bytes: int = UNKNOWN_FILE_BYTES  # of a file of unknown size
    by_hand: str = ""  # how a user gets the set, if kdlib does not download it


def _mitdb_files() -> tuple[File, ...]:
    pinned = []
    for line in mitdb.fact("physionet_sha256.txt").decode().splitlines():
        name, digest = line.split(" sha256:")
        pinned.append(File(name, digest, 1_950_000 if name.endswith(".dat") else None))
    # Comments in headers differ between copies; what a header says about the signals is checked on reading.
    return *pinned, *(File(f"{record}.hea", None, None) for record in mitdb.RECORDS)


def _mnist_files() -> tuple[File, ...]:
    return tuple(
        File(mnist.places(name)[0], digest, 4 + 4 * len(shape) + prod(shape), mnist.places(name)[1:])
        for name, (shape, digest) in mnist.FILES.items()
    )


def _cifar10_files() -> tuple[File, ...]:
    # Copies of the set differ in their order, so the pictures are checked and not the files.
    places = map(cifar10.places, (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES))
    return tuple(File(first, None, cifar10.FILE_BYTES, tuple(others)) for first, *others in places)


MNIST_GZIPPED = (
    File("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
    File("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
    File("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
    File("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
)
CIFAR10_ARCHIVE = File(
    "cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 170_052_171
)
OXFORD_IMAGES = f"{cats_dogs.OXFORD}/images/"
OXFORD_LISTS = tuple(f"{cats_dogs.OXFORD}/{name}" for name in cats_dogs.OXFORD_LISTS)
# SHA-256 and sizes as published by TensorFlow Datasets (oxford_iiit_pet/checksums.tsv).
OXFORD_ARCHIVES = (
    Packed(
        File("images.tar.gz", "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d", 791_918_971),
        (OXFORD_IMAGES,),
        into=cats_dogs.OXFORD,
        most_members=8_000,
        most_other_bytes=2**30,
    ),
    Packed(
        File("annotations.tar.gz", "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91", 19_173_078),
        OXFORD_LISTS,
        into=cats_dogs.OXFORD,
        most_members=30_000,
        most_other_bytes=2**28,
    ),
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
    ),
    "oxford_pets": Source(
        title="Oxford-IIIT Pet: cats and dogs of 37 breeds",
        licence="Creative Commons Attribution-ShareAlike 4.0 (CC BY-SA 4.0)",
        citation="Parkhi, Vedaldi, Zisserman and Jawahar 2012, Cats and dogs, CVPR",
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/data",
        bytes=811_092_049,
        files=lambda: tuple(
            File(name, None, None, (name.removeprefix(f"{cats_dogs.OXFORD}/"),))
            for name in (OXFORD_IMAGES, *OXFORD_LISTS)
        ),
        check=cats_dogs.oxford_pets,
        packed=OXFORD_ARCHIVES,
    ),
    "vgg16": Source(
        title="VGG16's convolutions, trained on ImageNet (torchvision's VGG16_Weights.IMAGENET1K_FEATURES)",
        licence="Creative Commons Attribution 4.0 (CC BY 4.0)",
        citation="Simonyan and Zisserman 2015, Very deep convolutional networks, ICLR, arXiv:1409.1556",
        url="https://download.pytorch.org/models",
        bytes=553_440_000,  # to the nearest 10 kB
        files=lambda: (File(vgg16.TORCHVISION, None, None),),
        check=vgg16.features,
        instead=((vgg16.KERAS,),),
        most_file_bytes=560_000_000,
    ),
    "chest_xray": Source(
        title="Chest x-rays of children, normal or with pneumonia",
        licence="Creative Commons Attribution 4.0 (CC BY 4.0)",
        citation="Kermany et al. 2018, Cell 172(5):1122-1131; Kermany, Zhang and Goldbaum 2018, Mendeley Data V2, "
        "doi:10.17632/rscbjbr9sj.2",
        url="https://data.mendeley.com/datasets/rscbjbr9sj/2",
        bytes=0,
        files=lambda: tuple(File(f"{name}/", None, None) for name in chest_xray.FOLDERS),
        check=chest_xray.check,
        by_hand="Download ChestXRay2017.zip from https://data.mendeley.com/datasets/rscbjbr9sj/2, unpack it with "
        "`unzip ChestXRay2017.zip -d DIR`, and pass --data DIR (or set KDLIB_DATA=DIR). kdlib does not download it, "
        "because it knows no SHA-256 of this archive.",
    ),
    "cats_dogs": Source(
        title="Cats and dogs, a part of Asirra",
        licence="none stated; for research",
        citation="Elson, Douceur, Howell and Saul 2007, Asirra, ACM CCS",
        url="https://www.kaggle.com/c/dogs-vs-cats",
        bytes=0,
        files=lambda: tuple(File(f"{name}/", None, None) for name in cats_dogs.FOLDERS),
        check=cats_dogs.check,
        by_hand="Put pictures into DIR/cats_dogs/training/cat, training/dog, test/cat and test/dog, and pass --data "
        "DIR (or set KDLIB_DATA=DIR). kdlib cannot download it: the source asks for a login. Oxford-IIIT Pet can be "
        "used instead: `kd data fetch oxford_pets`.",
    ),
}
