"""The form of every set of labelled pictures: a training and a test part, as published bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Pictures(NamedTuple):
    """Images uint8 (N, C, H, W), labels uint8 (N,)."""

    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes
