"""The types of what is written about a run, in `run.json` and `runs.jsonl`: whoever edits one by hand is told the key.

A value is checked and then used as it was read, so that a record that is written again keeps its bytes: a whole number
does not become 1.0, and keys that a later version adds to the environment are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

import msgspec

from kdlib.files import read_json
from kdlib.shapes import Count, TraceShape, Whole, check

__all__ = ["LineShape", "MetricsShape", "RunShape", "decoded"]

Amount = Count | Annotated[float, msgspec.Meta(ge=0, le=1e18)]  # sums of some thousands must be finite
# Of float32 the largest number is 3.4e38. Tables square measurements and add them up, and that must remain finite.
Measured = Whole | Annotated[float, msgspec.Meta(ge=-1e50, le=1e50)]
Value = Measured | bool | str | list[Any] | dict[str, Any] | None


class DescriptionShape(msgspec.Struct, forbid_unknown_fields=True):
    """A `Description`."""

    recipe: str
    protocol: Whole
    config: dict[str, Any]
    seed: Whole
    data: str
    parents: dict[str, str]


class EnvironmentShape(msgspec.Struct):
    """What made a run. Older runs lack some keys, and later ones may have more."""

    replication: str = ""
    commit: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-z]{0,64}\Z")] = ""  # it is written into bands.toml
    clean: bool | None = None
    source: str = ""
    versions: dict[str, str] = {}
    platform: str = ""
    device: str = ""
    threads: Count = 0
    seconds: Amount = 0
    peak_memory_bytes: Amount = 0
    stored_bytes: Amount = 0


class MetricsShape(msgspec.Struct):
    """The metrics of a snapshot that have a meaning of their own in tables; others may be anything."""

    epochs: Count = 0
    confusion: Annotated[list[list[Annotated[int, msgspec.Meta(ge=0, le=2**40)]]], msgspec.Meta(min_length=1)] = []


class RunShape(msgspec.Struct, kw_only=True):
    """A `run.json`. Its description, environment and trace have shapes of their own (`PARTS`)."""

    description: dict[str, Any]
    metrics: dict[str, dict[str, Value]]
    history: list[dict[str, Measured]]
    environment: dict[str, Any]
    weights_sha256: str
    trace: dict[str, Any] = {}  # empty: not traced
    parents: dict[str, dict[str, str]] = {}


class LineShape(RunShape, forbid_unknown_fields=True):
    """A line of `runs.jsonl`."""

    profile: str
    seed: Whole
    run: str
    arms: dict[str, str]
    data_name: Annotated[str, msgspec.Meta(min_length=1)]


PARTS: Mapping[str, type[msgspec.Struct]] = {
    "description": DescriptionShape,
    "environment": EnvironmentShape,
    "trace": TraceShape,
}
DECODERS = {shape: msgspec.json.Decoder(shape) for shape in (RunShape, LineShape)}


Shape = TypeVar("Shape", bound=RunShape)


def decoded(text: str | bytes, shape: type[Shape]) -> Shape:
    """Return what a JSON text holds: Misshapen names a wrong key, another ValueError says that it is no JSON."""
    try:
        found = cast(Shape, DECODERS[shape].decode(text))
    except msgspec.ValidationError:
        check(read_json(text), shape, "")
        raise
    except RecursionError as error:
        raise ValueError("lists or objects nested too deep") from error
    for name, part in PARTS.items():
        if (value := getattr(found, name)) or name != "trace":
            check(value, part, name)
    return found
