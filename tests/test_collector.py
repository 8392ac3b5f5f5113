"""Python's collector is paused for tables, and afterwards is as it was."""

from __future__ import annotations

import gc

import pytest

from kdlib.collector import without_collector


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_also_after_an_error(enabled):
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="wrong"):
            fail_without_collector()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


@without_collector()
def fail_without_collector():
    assert not gc.isenabled()
    raise ValueError("wrong")
