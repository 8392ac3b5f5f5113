"""Random streams: functions of (seed, name, epoch), and no two are the same."""

import hashlib
import random

import numpy as np
import pytest
import torch

from kdlib.seeds import OTHERS, derive_seed, generator, seeded


def test_is_the_first_63_bits_of_the_sha256_of_the_triple():
    bits = "".join(f"{byte:08b}" for byte in hashlib.sha256(b"3/order/7").digest())
    assert derive_seed(3, "order", 7) == int(bits[:63], 2)


def test_every_part_of_the_triple_moves_the_stream():
    triples = [(seed, name, epoch) for seed in range(12) for name in ("a", "b", "a/1", "1/a") for epoch in range(12)]
    assert len({derive_seed(*triple) for triple in triples}) == len(triples)
    draws = {tuple(torch.rand(2, generator=generator(*triple)).tolist()) for triple in triples}
    assert len(draws) == len(triples)


def test_a_stream_does_not_depend_on_what_was_drawn_before():
    first = torch.rand(5, generator=generator(1, "weights"))
    torch.manual_seed(99)
    torch.rand(100)
    torch.rand(3, generator=generator(1, "order"))
    assert torch.equal(torch.rand(5, generator=generator(1, "weights")), first)


def test_a_stream_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.rand(3, generator=generator(1, "weights"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("before", range(3))
def test_states_of_numpy_and_python_as_numbers_are_whole(before):
    """Each keeps the second of two normal numbers, which is none after an even number of draws."""

    def draws(count):
        return [(np.random.randn(), np.random.rand(), random.gauss(0, 1), random.random()) for _ in range(count)]

    with seeded(before):
        draws(before)
        states = [each.get_state() for each in OTHERS]
        expected = draws(700)
        for each, state in zip(OTHERS, states, strict=True):
            each.set_state(state)
        assert draws(700) == expected
