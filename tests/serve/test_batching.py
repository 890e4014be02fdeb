"""Batches: full, or due; in order; without those who left. No time is slept: gates decide."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import Future

import pytest

from padim_edge.errors import UsageError
from padim_edge.serve.batching import Batcher

FOREVER = 3600.0
SOON = 30.0


class Gate:
    """An engine that says what it was given, and waits until it may go on."""

    def __init__(self):
        self.batches = []
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.release()
        assert self.open.acquire(timeout=SOON)
        return [item * 10 for item in items]

    def wait(self):
        assert self.entered.acquire(timeout=SOON)


@pytest.fixture
def gate():
    return Gate()


def test_an_end_does_not_wait_for_ever_for_an_engine_that_hangs(gate):
    batcher = Batcher(gate, 4, 0.0)
    future = batcher.submit([1])
    gate.wait()
    assert not batcher.close(0.01)
    gate.open.release()
    assert batcher.close(SOON)
    assert future.result() == [10]


def test_what_comes_while_a_batch_runs_goes_together(gate):
    batcher = Batcher(gate, 4, 0.0)
    first = batcher.submit([1])
    gate.wait()
    rest = [batcher.submit([number]) for number in range(2, 8)]
    for _ in range(3):
        gate.open.release()
    assert [future.result(SOON) for future in (first, *rest)] == [[n * 10] for n in range(1, 8)]
    assert gate.batches == [[1], [2, 3, 4, 5], [6, 7]]
    batcher.close()


def test_a_full_batch_does_not_wait_for_its_delay(gate):
    sizes = []
    batcher = Batcher(gate, 3, FOREVER, sizes.append)
    futures = [batcher.submit([1, 2]), batcher.submit([3])]
    gate.open.release()
    assert [future.result(SOON) for future in futures] == [[10, 20], [30]]
    assert sizes == [3]
    batcher.close()


def test_a_batch_that_is_not_full_waits_no_longer_than_its_delay(gate):
    batcher = Batcher(gate, 3, 0.01)
    gate.open.release()
    assert batcher.submit([1]).result(SOON) == [10]
    batcher.close()


def test_what_does_not_fit_any_more_is_not_torn_apart(gate):
    batcher = Batcher(gate, 3, 0.0)
    first = batcher.submit([1])
    gate.wait()
    rest = [batcher.submit([2, 3]), batcher.submit([4, 5])]
    for _ in range(3):
        gate.open.release()
    assert [future.result(SOON) for future in rest] == [[20, 30], [40, 50]]
    assert gate.batches == [[1], [2, 3], [4, 5]]
    assert first.result() == [10]
    batcher.close()


def test_who_leaves_before_his_batch_is_run_is_not_in_it(gate):
    batcher = Batcher(gate, 4, 0.0)
    first = batcher.submit([1])
    gate.wait()
    gone, stays = batcher.submit([2]), batcher.submit([3])
    assert gone.cancel()
    assert not first.cancel()
    gate.open.release(2)
    assert stays.result(SOON) == [30]
    assert gate.batches == [[1], [3]]
    batcher.close()


def test_what_nobody_waits_for_is_let_go_while_a_batch_runs_and_counts_no_more(gate):
    class Item:
        def __mul__(self, _):
            return self

    batcher = Batcher(gate, 2, FOREVER)
    first = batcher.submit([1, 2])
    gate.wait()
    item = Item()
    held = weakref.ref(item)
    gone = batcher.submit([item])
    del item
    assert gone.cancel()
    assert held() is None
    gate.open.release(2)
    assert first.result(SOON) == [10, 20]
    # One that left does not fill the next batch.
    rest = [batcher.submit([3]), batcher.submit([4])]
    assert [future.result(SOON) for future in rest] == [[30], [40]]
    assert gate.batches == [[1, 2], [3, 4]]
    batcher.close()


def test_an_error_is_told_to_those_who_were_in_the_batch_and_to_no_others():
    def run(items):
        if 2 in items:
            raise ValueError("two")
        return items

    batcher = Batcher(run, 1, 0.0)
    futures = [batcher.submit([number]) for number in (1, 2, 3)]
    assert futures[0].result(SOON) == [1]
    with pytest.raises(ValueError, match="two"):
        futures[1].result(SOON)
    assert futures[2].result(SOON) == [3]
    batcher.close()


def test_the_end_runs_what_waits_and_takes_no_more(gate):
    batcher = Batcher(gate, 8, FOREVER)
    future: Future = batcher.submit([1])
    gate.open.release()
    batcher.close()
    batcher.close()
    assert future.result(0) == [10]
    with pytest.raises(UsageError, match="closed"):
        batcher.submit([2])


@pytest.mark.parametrize("items", [[], [1, 2, 3]])
def test_no_batch_is_empty_or_too_large(gate, items):
    batcher = Batcher(gate, 2, 0.0)
    with pytest.raises(UsageError, match="1 to 2 are taken"):
        batcher.submit(items)
    batcher.close()
