"""Freed memory that a process keeps needs no new pages."""

import multiprocessing
import os
import platform
import resource

import numpy as np
import pytest

from kdlib.run.memory import keep_freed_memory

SIZES = {2**23: 8, 2**26: 2}  # bytes of a block: blocks; together, or alone, more than glibc keeps by default


def faults_of_taking_and_freeing(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [np.empty(size, np.uint8) for _ in range(SIZES[size])]
        for block in blocks:
            block[:: os.sysconf("SC_PAGE_SIZE")] = 1
        del block, blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def child(answer, size):
    keep_freed_memory()
    faults_of_taking_and_freeing(size)
    answer.send(faults_of_taking_and_freeing(size))
    answer.close()
    os._exit(0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep freed memory")
def test_a_process_takes_its_freed_memory_again(size):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, size))
    process.start()
    there.close()
    assert here.poll(30)
    assert here.recv() < 2**23 // os.sysconf("SC_PAGE_SIZE")  # some of the pages of one block
    process.join(10)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    keep_freed_memory()
