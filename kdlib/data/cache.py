"""The folders where kdlib keeps what it has computed from a user's files, and the user cache folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdlib.errors import KDError, MissingPackage, needs
from kdlib.files import load_tensors, save_tensors

Computed = tuple[Mapping[str, Tensor], Any]  # tensors and notes (any JSON value)


def cache_folder() -> Path:
    """Return the folder of this user's downloaded data sets."""
    needs("data", "platformdirs")
    import platformdirs

    return platformdirs.user_cache_path("kdlib")


def computed_once(folder: Path, key: str, compute: Callable[[], Computed]) -> Computed:
    """Return stored tensors and notes or, the first time, compute and store them.

    The file `.kdlib-KEY.safetensors` is in `folder` or, if that is not writable, in the user cache. So `key` must
    change with everything that the result depends on. A damaged file is computed again. Without a writable folder,
    nothing is stored.
    """
    places = [place / f".kdlib-{key}.safetensors" for place in (folder, *_user_cache())]
    for path in places:
        try:
            return load_tensors(path)
        except KDError:  # there is none, it is damaged, or it may not be read
            continue
    tensors, notes = compute()
    for path in places:
        try:
            save_tensors(path, tensors, notes)
            break
        except KDError:  # not writable, or the disk is full: the next place may do, and what was computed is right
            continue
    return tensors, notes


def _user_cache() -> list[Path]:
    try:
        return [cache_folder()]
    except MissingPackage:  # the user's own folder may do
        return []
