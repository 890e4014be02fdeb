"""Frames that wait: how many, and who is next."""

from __future__ import annotations

import threading

import pytest
from scripted import wait_for

from padim_edge.errors import UsageError
from padim_edge.live.queues import WAITING, FrameQueue, check_policy


def any_two(_first, _other):
    return True


def test_of_latest_the_newest_waits():
    queue = FrameQueue(1)
    assert queue.put(0, "a", "latest") == []
    assert queue.put(0, "b", "latest") == ["a"]
    assert queue.put(0, "c", "latest") == ["b"]
    assert queue.take(9, any_two) == ["c"]


def test_of_all_the_source_waits():
    queue = FrameQueue(1)
    came = []

    def put():
        for number in range(3 * WAITING):
            assert queue.put(0, number, "all") == []
            came.append(number)

    thread = threading.Thread(target=put)
    thread.start()
    wait_for(lambda: len(came) == WAITING)
    taken = []
    while len(taken) < 3 * WAITING:
        taken += queue.take(1, any_two, 10)
        assert len(came) <= len(taken) + WAITING + 1
    thread.join()
    assert taken == list(range(3 * WAITING))


def test_cameras_take_turns():
    queue = FrameQueue(3)
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.put("abc".index(item[0]), item, "all")
    assert [queue.take(1, any_two)[0] for _ in range(6)] == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_batch_takes_turns_too_and_only_what_fits():
    queue = FrameQueue(3)
    for item in ("a1", "a2", "b1", "c1"):
        queue.put("abc".index(item[0]), item, "all")

    def not_b(first, other):
        return "b" not in (first[0], other[0])

    assert queue.take(4, not_b) == ["a1", "c1", "a2"]
    assert queue.take(4, not_b) == ["b1"]
    assert queue.take(4, not_b, 0) == []


def test_a_closed_queue_is_emptied_an_abandoned_one_is_not():
    queue = FrameQueue(2)
    queue.put(0, "a", "all")
    queue.close()
    assert queue.take(1, any_two) == ["a"]
    assert queue.take(1, any_two) is None
    queue = FrameQueue(2)
    queue.put(1, "a", "all")
    assert queue.abandon() == ["a"]
    assert queue.put(0, "b", "all") == ["b"]
    assert queue.take(1, any_two) is None


def test_who_waits_for_room_goes_on_when_the_queue_is_abandoned():
    queue = FrameQueue(1)
    for number in range(WAITING):
        queue.put(0, number, "all")
    back = []
    thread = threading.Thread(target=lambda: back.extend(queue.put(0, "late", "all")))
    thread.start()
    queue.abandon()
    thread.join(60)
    assert back == ["late"]


def test_there_are_two_policies():
    check_policy(None)
    check_policy("all")
    with pytest.raises(UsageError, match="no policy 'newest'; allowed are latest and all"):
        check_policy("newest")
