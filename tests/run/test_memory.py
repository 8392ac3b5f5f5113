"""Freed memory that a process keeps needs no new pages."""

import multiprocessing
import os
import platform
import resource

import numpy as np
import pytest

from kdlib.run.memory import keep_freed_memory

BYTES, BLOCKS = 2**23, 8  # together more than glibc keeps by default


def faults_of_taking_and_freeing():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [np.empty(BYTES, np.uint8) for _ in range(BLOCKS)]
        for block in blocks:
            block[:: os.sysconf("SC_PAGE_SIZE")] = 1
        del block, blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def child(answer):
    keep_freed_memory()
    faults_of_taking_and_freeing()
    answer.send(faults_of_taking_and_freeing())
    answer.close()
    os._exit(0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep freed memory")
def test_a_process_takes_its_freed_memory_again():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there,))
    process.start()
    there.close()
    assert here.poll(30)
    assert here.recv() < BYTES // os.sysconf("SC_PAGE_SIZE")  # the pages of one block
    process.join(10)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    keep_freed_memory()
