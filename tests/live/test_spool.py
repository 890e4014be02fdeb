"""The spool: nothing that was acknowledged is lost; what must go is counted and said."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from live_events import verdict, verdicts

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.live.event import Event
from padim_edge.live.spool import Spool, SpoolError

SINK = "jsonl:events.jsonl"
OTHER = "mqtt://broker/line"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "spool.db"


def ids(events):
    return [event.id for event in events]


def test_a_sink_gets_what_was_appended_in_order_and_once(file):
    spool = Spool(file, sinks=[SINK, OTHER])
    sent = verdicts(250, picture=b"\xff\xd8 a picture")
    spool.append(sent[:100])
    spool.append(sent[100:])
    assert spool.pending(SINK, 3) == [Event(event.id, event.record) for event in sent[:3]]
    assert spool.pending(SINK, 1, pictures=True) == sent[:1]
    got = []
    while waiting := spool.pending(SINK):
        got += ids(waiting)
        spool.delivered(SINK, waiting[-1].id)
    assert got == ids(sent)
    assert (spool.backlog(SINK), spool.backlog(OTHER)) == (0, 250)
    spool.delivered(OTHER, sent[9].id)
    assert ids(spool.pending(OTHER, 1)) == [sent[10].id]
    spool.delivered(OTHER, sent[9].id)  # late news changes nothing
    assert spool.backlog(OTHER) == 240


def test_what_waits_is_there_after_a_restart_and_what_all_have_is_gone(file):
    sent = verdicts(20)
    spool = Spool(file, sinks=[SINK, OTHER])
    spool.append(sent, keys=["a", "b"])
    spool.delivered(SINK, sent[14].id)
    spool.delivered(OTHER, sent[4].id)
    spool.close()
    spool.close()
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (15,)
    again = Spool(file, sinks=[SINK, OTHER])
    assert ids(again.pending(SINK)) == ids(sent[15:])
    assert ids(again.pending(OTHER)) == ids(sent[5:])
    assert again.judged("a")
    assert not again.judged("c")
    again.append(verdicts(1, start=20))
    assert again.backlog(SINK) == 6


def test_a_new_sink_gets_what_comes_and_one_that_is_gone_is_told_of(file):
    spool = Spool(file, sinks=[SINK])
    spool.append(verdicts(7))
    spool.close()
    spool = Spool(file, sinks=[OTHER])
    assert spool.pending(OTHER) == []
    said = spool.append([verdict(8)])
    assert [event.record["message"] for event in said] == [
        f"7 events that waited for {SINK} are let go: it is not among the sinks any more"
    ]
    assert spool.pending(OTHER) == [verdict(8), *said]
    assert not spool.append([verdict(9)])


def test_pictures_that_no_sink_wants_take_no_room(file):
    spool = Spool(file, sinks=[SINK], pictures=False)
    spool.append(verdicts(50, picture=os.urandom(10_000)))
    assert spool.bytes < 50 * 1000
    assert spool.pending(SINK, pictures=True) == verdicts(50)


def test_without_sinks_keys_alone_are_kept(file):
    spool = Spool(file)
    spool.append(verdicts(50), keys=["x"])
    assert spool.bytes == 0
    assert spool.judged("x")


def test_beyond_its_bytes_the_oldest_go_and_it_says_how_many_of_whom(file):
    limit = 1 << 20
    spool = Spool(file, max_bytes=limit, sinks=[SINK, OTHER])
    sent = verdicts(250, picture=os.urandom(10_000))
    said = []
    for number, event in enumerate(sent):
        said += spool.append([event])
        assert spool.bytes <= limit
        if number == 30:
            spool.delivered(OTHER, event.id)
    assert file.stat().st_size < 1.2 * limit
    left = [name for name in ids(spool.pending(SINK, 1000)) if name in set(ids(sent))]
    assert left == ids(sent)[-len(left) :]
    for sink, had in ((SINK, 0), (OTHER, 31)):
        lost = spool.dropped(sink)
        assert sum(event.record["dropped"].get(sink, 0) for event in said) == lost
        # Of those that are gone some are what the spool itself said of the first to go.
        waiting = len(sent) + len(said) - had
        assert lost + spool.backlog(sink) == waiting
    assert 3 <= len(said) <= 40  # a tenth of it at once
    assert f"{said[0].record['dropped'][SINK]} for {SINK}" in said[0].record["message"]
    spool.close()
    again = Spool(file, max_bytes=limit, sinks=[SINK, OTHER])
    assert again.dropped(SINK) == spool.dropped(SINK)
    assert ids(again.pending(SINK, 1000))[-1] in {sent[-1].id, said[-1].id}


def test_keys_are_in_with_their_event_and_the_oldest_are_forgotten(file):
    spool = Spool(file, sinks=[SINK], max_keys=10)
    for number in range(25):
        spool.append([verdict(number)], keys=[f"file {number}", f"file {number}"])
    assert [number for number in range(25) if spool.judged(f"file {number}")] == [*range(15, 25)]
    spool.close()
    again = Spool(file, sinks=[SINK], max_keys=3)
    again.append([], keys=["one more"])
    assert [number for number in range(25) if again.judged(f"file {number}")] == [23, 24]
    assert again.judged("one more")


def test_an_event_that_is_no_json_is_the_callers_fault_alone(file):
    spool = Spool(file, sinks=[SINK])
    with pytest.raises(ValueError, match="JSON"):
        spool.append([Event("1-1", {**verdict(1).record, "score": float("nan")})])
    spool.append([verdict(2)])
    assert ids(spool.pending(SINK)) == [verdict(2).id]


def test_threads_share_transactions_and_keep_their_own_order(file):
    spool = Spool(file, sinks=[SINK])
    transactions = []
    spool._connection.set_trace_callback(
        lambda statement: transactions.append(1) if statement == "COMMIT" else None
    )
    each = 60
    ready = threading.Barrier(8)

    def work(camera):
        ready.wait()
        for number in range(each):
            spool.append([verdict(number, camera=f"camera {camera}")])

    threads = [threading.Thread(target=work, args=(camera,)) for camera in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = spool.pending(SINK, 1000)
    for camera in range(8):
        mine = [event.id for event in got if event.record["camera"] == f"camera {camera}"]
        assert mine == [verdict(number, camera=f"camera {camera}").id for number in range(each)]
    assert len(transactions) < 8 * each
    newest, count = spool.newest()
    assert {event.id for event, _ in newest} == {
        verdict(each - 1, camera=f"camera {camera}").id for camera in range(8)
    }
    assert count == 8 * each


def test_a_second_watch_is_refused_until_the_first_ends(file):
    first = Spool(file, sinks=[SINK])
    with pytest.raises(UsageError, match="another watch uses the spool"):
        Spool(file, sinks=[SINK])
    first.append([verdict(1)])
    code = (
        "import sys; from pathlib import Path; from padim_edge.live.spool import Spool;"
        "from padim_edge.errors import UsageError\n"
        "try: Spool(Path(sys.argv[1]))\n"
        "except UsageError as error: print(error)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, check=True
    )
    assert "another watch uses the spool" in child.stdout
    first.close()
    assert ids(Spool(file, sinks=[SINK]).pending(SINK)) == [verdict(1).id]


def test_other_peoples_databases_are_left_alone(tmp_path):
    photos = tmp_path / "photos.db"
    with closing(sqlite3.connect(photos, isolation_level=None)) as database:
        database.execute("CREATE TABLE photos (name TEXT)")
    before = photos.read_bytes()
    with pytest.raises(UsageError, match=r"photos\.db is a database of something else"):
        Spool(photos)
    assert photos.read_bytes() == before
    newer = tmp_path / "newer.db"
    Spool(newer).close()
    with closing(sqlite3.connect(newer, isolation_level=None)) as database:
        database.execute("PRAGMA user_version=2")
    with pytest.raises(UsageError, match="a spool of version 2"):
        Spool(newer)


@pytest.mark.parametrize(("size", "keys"), [(1000, 10), (1 << 20, 0)])
def test_limits_without_sense_are_refused(file, size, keys):
    with pytest.raises(UsageError, match="too small"):
        Spool(file, max_bytes=size, max_keys=keys)


def test_a_sink_named_twice_is_refused(file):
    with pytest.raises(UsageError, match="named twice"):
        Spool(file, sinks=[SINK, SINK])


@pytest.mark.parametrize("place", ["missing/spool.db", "."])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, place):
    with pytest.raises(PadimEdgeError, match="cannot write the spool"):
        Spool(tmp_path / place)


def test_a_file_that_is_damaged_is_set_aside_and_said(file):
    file.write_bytes(b"no database at all" * 1000)
    spool = Spool(file, sinks=[SINK])
    said = spool.append([verdict(1)])
    assert "is damaged" in said[0].record["message"]
    assert ids(spool.pending(SINK)) == [verdict(1).id, said[0].id]
    (aside,) = file.parent.glob("spool.db.damaged-*")
    assert aside.read_bytes().startswith(b"no database at all")


def test_damage_while_it_runs_costs_what_waited_and_nothing_that_comes(file):
    spool = Spool(file, sinks=[SINK])
    spool.append(verdicts(3000))
    spool.delivered(SINK, verdict(9).id)
    spoil(spool, file)
    sent = verdicts(3, start=3000)
    said = []
    with pytest.raises(SpoolError):
        spool.pending(SINK, 5000)
    for event in sent:
        said += spool.append([event])
    assert "is damaged" in said[0].record["message"]
    assert ids(spool.pending(SINK)) == [sent[0].id, said[0].id, sent[1].id, sent[2].id]
    assert spool.dropped(SINK) == 2990


@pytest.mark.parametrize("value", ["'{\"half'", "CAST(x'ff00ff' AS TEXT)"])
def test_an_event_that_is_not_what_was_written_stops_nobody(file, value):
    spool = Spool(file, sinks=[SINK])
    spool.append(verdicts(5))
    spool._connection.execute(f"UPDATE events SET record = {value} WHERE number = 3")
    with pytest.raises(SpoolError):
        spool.pending(SINK)
    said = spool.append([verdict(5)])
    assert "is damaged" in said[0].record["message"]
    assert ids(spool.pending(SINK)) == [verdict(5).id, said[0].id]
    assert spool.dropped(SINK) == 5


def test_a_full_disk_is_an_error_and_leaves_what_was_there(file):
    spool = Spool(file, sinks=[SINK])
    spool.append(verdicts(10))
    pages = spool._connection.execute("PRAGMA page_count").fetchone()[0]
    spool._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(SpoolError, match=r"full.*has room"):
        spool.append(verdicts(1000, start=10), keys=["not judged"])
    ((newest, _),), count = spool.newest()  # a PLC is shown it all the same
    assert (newest.id, count) == (verdict(1009).id, 1010)
    assert ids(spool.pending(SINK, 5000)) == ids(verdicts(10))
    assert not spool.judged("not judged")
    spool.delivered(SINK, verdict(9).id)
    spool._connection.execute("PRAGMA max_page_count=100000")
    spool.append(verdicts(1000, start=10))
    assert spool.backlog(SINK) == 1000
    assert spool.newest()[1] == 1010
    assert ids(spool.pending(SINK, 5000)) == ids(verdicts(1000, start=10))


@contextmanager
def no_room():
    """No file takes another byte: as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def spoil(spool, file):
    """Leave nothing of a spool's file that can be read."""
    spool._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool._connection.execute("PRAGMA cache_size=0")
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(8192)
        stream.write(os.urandom(size - 8192))


def test_damage_met_on_a_full_disk_is_mended_when_there_is_room(file):
    spool = Spool(file, sinks=[SINK])
    spool.append(verdicts(3000))
    spool.delivered(SINK, verdict(9).id)
    spoil(spool, file)
    with no_room():
        for _ in range(2):
            with pytest.raises(SpoolError, match="cannot write the spool"):
                spool.append([verdict(3000)])
            with pytest.raises(SpoolError, match="cannot write the spool"):
                spool.pending(SINK)
            with pytest.raises(SpoolError, match="cannot write the spool"):
                spool.judged("file")
    said = spool.append([verdict(3001)], keys=["file"])
    assert re.search(r"is damaged \(.*\d s later, .*events that waited", said[0].record["message"])
    assert ids(spool.pending(SINK)) == [verdict(3001).id, said[0].id]
    assert spool.dropped(SINK) == 2990
    assert spool.judged("file")
    assert not spool.append([verdict(3002)])  # said once
    (aside,) = file.parent.glob("spool.db.damaged-*")
    assert aside.stat().st_size > 100_000
    spool.close()
    assert Spool(file, sinks=[SINK]).dropped(SINK) == 2990


def test_damage_again_and_again_does_not_fill_the_disk(file):
    for number in range(4):
        file.write_bytes(b"no database %d" % number * 1000)
        Spool(file, sinks=[SINK]).close()
    asides = sorted(file.parent.glob("spool.db.damaged-*"))
    assert [path.read_bytes()[:13] for path in asides] == [b"no database 2", b"no database 3"]


def test_damage_is_mended_though_an_older_damaged_file_cannot_be_removed(file):
    (file.parent / "spool.db.damaged-1").mkdir()  # unlink says that it may not
    for number in range(3):
        file.write_bytes(b"no database %d" % number * 1000)
        spool = Spool(file, sinks=[SINK])
        assert "is damaged" in spool.append([verdict(number)])[0].record["message"]
        spool.close()


def unplug(file):
    """Make every handle of a file useless, as those of a disk that was gone for a moment."""
    nothing = os.open("/dev/null", os.O_RDONLY)
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(link.readlink()).startswith(str(file)):
                os.dup2(nothing, int(link.name))
    os.close(nothing)


def test_a_disk_that_was_gone_for_a_moment_costs_nothing(file):
    spool = Spool(file, sinks=[SINK])
    spool.append(verdicts(5), keys=["a"])
    spool.delivered(SINK, verdict(1).id)
    unplug(file)
    assert spool.append([verdict(5)]) == []
    unplug(file)
    with pytest.raises(SpoolError, match="cannot write the spool"):
        spool.delivered(SINK, verdict(2).id)
    assert ids(spool.pending(SINK)) == ids(verdicts(4, start=2))
    assert spool.judged("a")
    assert spool.dropped(SINK) == 0


def test_another_disk_in_its_place_is_said(file):
    spool = Spool(file, sinks=[SINK])
    spool.append(verdicts(5), keys=["a"])
    unplug(file)
    for path in file.parent.iterdir():
        path.unlink()
    said = spool.append([verdict(5)])
    assert (
        "is not there any more (disk I/O error), and a new one begins" in said[0].record["message"]
    )
    assert ids(spool.pending(SINK)) == [verdict(5).id, said[0].id]
    assert spool.dropped(SINK) == 5
    assert not spool.judged("a")


def test_whoever_waits_wakes_at_news(file):
    spool = Spool(file, sinks=[SINK])
    seen = spool.appended
    waiter = threading.Thread(target=spool.wait, args=(seen, 60))
    waiter.start()
    spool.append([verdict(1)])
    waiter.join(30)
    assert not waiter.is_alive()
    spool.wait(seen, 60)  # news that came before is not waited for


# --- kill -9 ----------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from live_events import verdict
from padim_edge.live.spool import Spool
spool = Spool(Path(sys.argv[1]), sinks=["a", "b"])
number = int(sys.argv[2])
while True:
    events = [verdict(n) for n in range(number, number + 1 + number % 4)]
    spool.append(events, keys=[event.id for event in events])
    number += len(events)
    print("kept", number, flush=True)
    if number % 3 == 0:
        waiting = spool.pending("a", 5)
        for event in waiting:
            print("sent", event.id, flush=True)
        spool.delivered("a", waiting[-1].id)
        print("delivered", waiting[-1].id, flush=True)
"""


def campaign(file: Path, kills: int, seed: int) -> None:
    """Kill a writer again and again; what it said it kept is kept, what it said is sent is sent."""
    dice = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    kept = 0
    sent: list[str] = []
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, file, str(kept)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(dice.randrange(1, 60))]
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines(keepends=True)
        assert child.wait() == -signal.SIGKILL
        lines += [line for line in rest if line.endswith("\n")]
        words = [line.split() for line in lines]
        acknowledged = max((int(word[1]) for word in words if word[0] == "kept"), default=kept)
        sent += [word[1] for word in words if word[0] == "sent"]
        delivered = [word[1] for word in words if word[0] == "delivered"]
        spool = Spool(file, sinks=["a", "b"])
        everything = ids(spool.pending("b", 10_000_000))
        # All that was acknowledged, in order, once; at most one batch of 4 that was about to be.
        assert len(everything) >= acknowledged
        assert len(everything) <= acknowledged + 4
        assert everything == [verdict(number).id for number in range(len(everything))]
        assert all(map(spool.judged, everything))
        assert not spool.judged(verdict(len(everything)).id)
        waiting = ids(spool.pending("a", 10_000_000))
        assert everything[len(everything) - len(waiting) :] == waiting
        if delivered:
            assert delivered[-1] not in waiting
        # Those that had been sent and will be again: of one batch.
        assert len(set(sent) & set(waiting)) <= 5
        assert set(everything) - set(waiting) <= set(sent)
        spool.close()
        kept = len(everything)
    assert kept > kills


def test_no_kill_loses_what_was_acknowledged(file):
    campaign(file, kills=10, seed=0)


@pytest.mark.fuzz
def test_two_hundred_kills_lose_nothing(file):
    campaign(file, kills=200, seed=1)


def test_records_are_what_they_were(file):
    spool = Spool(file, sinks=[SINK])
    record = {**verdict(1).record, "path": "a\n\x1b[31m\u2028ü\U0001f600", "score": 1e-300}
    spool.append([Event("1-1", record)])
    assert spool.pending(SINK)[0].record == record
    assert json.loads(spool.pending(SINK)[0].to_json()) == record
