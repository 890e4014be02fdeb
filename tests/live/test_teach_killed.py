"""A teacher that is killed at any moment: what it said is done is there, and nothing is half."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lessons import teaching
from PIL import Image

from padim_edge.errors import PadimEdgeError
from padim_edge.fit.saved import SavedMoments
from padim_edge.live.versions import Versions
from padim_edge.model.file import read

CHILD = """
import itertools, json, sys
import numpy as np
sys.path.insert(0, sys.argv[3])
import lessons
from lessons import seen, teaching

lessons._numbers = itertools.count(1000 * int(sys.argv[4]))  # no event of two runs is called alike
rng = np.random.default_rng(int(sys.argv[4]))

def frame():
    return rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)

def say(teacher, slot):
    state = teacher.versions.state
    print(json.dumps([len(state.good), len(state.bad), state.version,
                      max(teacher.versions.versions, default=0)]), flush=True)

with teaching(sys.argv[1], sys.argv[2]) as (teacher, slot):
    say(teacher, slot)
    while True:
        for _ in range(4):
            one = seen(slot, frame())
            teacher(one)
            teacher.take_frame(one.captured)
            say(teacher, slot)
        teacher.fit()
        say(teacher, slot)
        for learn in (teacher.was_good, teacher.was_bad):
            one = seen(slot, frame())
            teacher(one)
            learn(one.event.id)
            say(teacher, slot)
        teacher.undo()
        say(teacher, slot)
        teacher.roll_back("0001")
        say(teacher, slot)
"""


def run_and_kill(folder: Path, embedding: Path, seed: int, after: int, wait: float) -> list[int]:
    """Kill a teacher some time after it has said so many things; returns the last of them."""
    support = Path(__file__).parents[1] / "support"
    arguments = [folder, embedding, support, seed]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        lines = [child.stdout.readline() for _ in range(after)]
        time.sleep(wait)
    finally:
        child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().splitlines(keepends=True)
    assert child.wait() == -signal.SIGKILL
    said = [line for line in lines + rest if line.endswith("\n")]
    last: list[int] = json.loads(said[-1])
    return last


def check(folder: Path, embedding: Path, last: list[int]) -> None:
    """Everything that the journal names is whole, and nothing else is there."""
    with teaching(folder, embedding) as (teacher, slot):
        versions = teacher.versions
        state = versions.state
        now = [len(state.good), len(state.bad), state.version]
        # What was said last, or what was done next and not said any more.
        assert max(versions.versions, default=0) in (last[3], last[3] + 1)
        if now != last[:3]:
            before = versions.before
            was = [len(before.good), len(before.bad), before.version]
            newest = json.loads((folder / "journal.jsonl").read_text().splitlines()[-1])
            assert last[:3] == was or newest["do"] == "undo"
        model = read(embedding, "embedding")
        named = set()
        for number in versions.versions:
            assert read(versions.model(number), "padim").checksum
            SavedMoments.load(versions.moments(number), model, teacher.settings)
            named |= {versions.model(number), versions.moments(number)}
        photos = {*state.good, *state.bad}.union(*(v.photos for v in versions.versions.values()))
        for number in photos:
            for path in (versions.photo(number), versions.frame(number)):
                assert np.asarray(Image.open(path)).shape == (64, 64, 3)
        there = set((folder / "versions").iterdir())
        assert there == named
        if state.version:
            assert slot.path == versions.model(state.version)
        for line in (folder / "journal.jsonl").read_text().splitlines():
            json.loads(line)


def campaign(folder: Path, embedding: Path, kills: int, seed: int) -> None:
    choice = random.Random(seed)
    for number in range(kills):
        last = run_and_kill(
            folder, embedding, seed + number, choice.randint(1, 9), choice.uniform(0, 0.4)
        )
        check(folder, embedding, last)


def test_killed_at_some_moments(embedding_file, tmp_path):
    campaign(tmp_path / "state", embedding_file, 2, 11)


@pytest.mark.fuzz
def test_killed_at_many_moments(embedding_file, tmp_path):
    campaign(tmp_path / "state", embedding_file, 40, 100)


def versions_in(folder: Path, **options: int) -> Versions:
    return Versions(folder, {"embedding": "x"}, **options)


def put(versions: Versions, count: int) -> None:
    for _ in range(count):
        files = [lambda stream: stream.write(b"photo")]
        versions.add_photo(versions.new_photo(True, 1.0, "", "", files))


def test_every_torn_end_of_the_journal_is_cut_off(tmp_path):
    folder = tmp_path / "state"
    versions = versions_in(folder)
    put(versions, 3)
    versions.undo()
    versions.close()
    journal = folder / "journal.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    start = sum(map(len, lines[:2]))
    for length in range(start, len(whole), 7):
        # Photos of lines that are cut off are removed, and are not needed by those before.
        for number in (1, 2, 3):
            (folder / "photos" / f"{number:06}.png").write_bytes(b"photo")
        journal.write_bytes(whole[:length])
        again = versions_in(folder)
        done = whole[:length].count(b"\n")
        expected = {2: (1,), 3: (1, 2), 4: (1, 2, 3)}[done]
        assert again.state.good == expected
        assert len(list((folder / "photos").iterdir())) == len(expected)
        put(again, 1)
        again.close()
        assert journal.read_bytes().count(b"\n") == done + 1


def test_half_a_line_that_could_not_be_cut_off_is_before_the_next_one(tmp_path):
    """A disk that fails in the middle of a line, and again when it is to be taken back."""
    versions = versions_in(tmp_path)
    put(versions, 1)
    stream = versions._stream

    class Failing:
        def __init__(self):
            self.cuts = 0

        def __getattr__(self, name):
            return getattr(stream, name)

        def write(self, data):
            stream.write(data[: len(data) // 2])
            raise OSError(5, "Input/output error")

        def truncate(self, length):
            self.cuts += 1
            if self.cuts > 1:  # what comes before a line has worked
                raise OSError(5, "Input/output error")
            return stream.truncate(length)

    versions._stream = Failing()
    with pytest.raises(PadimEdgeError, match="Input/output error"):
        versions.leave_out(1)
    versions._stream = stream
    put(versions, 1)
    versions.close()
    again = versions_in(tmp_path)
    assert again.state.good == (1, 2)
    again.close()


def test_a_damaged_journal_is_named_with_its_line(tmp_path):
    versions = versions_in(tmp_path)
    put(versions, 2)
    versions.close()
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    for wrong in ("{", "[]", '{"do": "dance"}', '{"do": "roll back", "version": 9}'):
        journal.write_text("\n".join([lines[0], wrong, lines[2]]) + "\n")
        with pytest.raises(PadimEdgeError, match="damaged in line 2"):
            versions_in(tmp_path)
    journal.write_text('{"do": "begin", "format": 9, "of": {}}\n')
    with pytest.raises(PadimEdgeError, match="by a later padim-edge"):
        versions_in(tmp_path)


def test_a_journal_of_the_format_before_is_read_and_goes_on_as_one_of_now(tmp_path):
    versions = versions_in(tmp_path)
    put(versions, 2)
    versions.close()
    journal = tmp_path / "journal.jsonl"
    now = journal.read_bytes()
    assert b'"format": 2' in now
    journal.write_bytes(now.replace(b'"format": 2', b'"format": 1', 1) + b'{"do": "left o')
    versions = versions_in(tmp_path)
    assert versions.state.good == (1, 2)
    assert journal.read_bytes() == now
    versions.leave_out(1)
    versions.close()
    assert journal.read_bytes().startswith(now)
    again = versions_in(tmp_path)
    assert again.state.good == (2,)
    again.close()


@pytest.mark.parametrize("left", [None, b"", b'{"do": "beg'])
def test_a_lost_journal_takes_no_photo_with_it(left, tmp_path):
    versions = versions_in(tmp_path)
    put(versions, 2)
    versions.close()
    journal = tmp_path / "journal.jsonl"
    journal.unlink()
    if left is not None:
        journal.write_bytes(left)
    for _ in range(2):
        with pytest.raises(PadimEdgeError, match=r"journal\.jsonl says nothing.*bring it back"):
            versions_in(tmp_path)
    assert len(list((tmp_path / "photos").iterdir())) == 2


def test_what_is_missing_is_named(tmp_path):
    versions = versions_in(tmp_path)
    put(versions, 1)
    versions.close()
    (tmp_path / "photos" / "000001.png").unlink()
    with pytest.raises(PadimEdgeError, match=r"000001\.png is missing"):
        versions_in(tmp_path)


def test_a_photo_for_which_there_is_no_room_leaves_nothing(tmp_path):
    versions = versions_in(tmp_path, max_bytes=12)
    put(versions, 2)
    with pytest.raises(PadimEdgeError, match="are used up"):
        put(versions, 1)
    assert versions.state.good == (1, 2)
    assert versions.bytes == 10
    assert len(list((tmp_path / "photos").iterdir())) == 2
    versions.close()
