"""Sinks that are files, and addresses of all."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from helpers import blocking
from live_events import verdict, verdicts

from padim_edge.errors import UsageError
from padim_edge.live.event import Event
from padim_edge.live.sink import RefusedError, Sink, SinkError, StateSink
from padim_edge.live.sinks import SINKS, make_sink


def opened(address):
    sink = make_sink(address)
    sink.open()
    return sink


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(events):
    return [event.record for event in events]


# --- addresses --------------------------------------------------------------------------------


def test_every_example_is_an_address_and_its_sink_is_of_one_protocol():
    for scheme, kind in SINKS.items():
        sink = make_sink(kind.example)
        assert sink.address == kind.example
        assert isinstance(sink, StateSink if sink.is_state else Sink)
        assert sink.wants_pictures == (scheme == "folder")
        sink.close()
        sink.close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "an empty address of a sink; allowed are jsonl:, sqlite:"),
        ("events.jsonl", "no sink is called events.jsonl; allowed are jsonl:"),
        ("kafka://broker/x", "no sink 'kafka'"),
        ("jsonl:", "name a file"),
        ("jsonl:a?rotate=1", "no option 'rotate'; allowed are size, hours, keep"),
        ("jsonl:a?size=many", "size=many: a size is a number with k, M, G"),
        ("jsonl:a?keep=-1", "keep=-1: a whole number from 0"),
        ("sqlite:", "name a file"),
        ("sqlite:a?table=x;drop", "table=x;drop: a name of letters"),
        ("postgresql://h/d?table=a b", "a name of letters"),
        ("postgresql://h/d?user=x", "no option 'user'"),
        ("mqtt:///x", "name a broker"),
        ("mqtt://h/a/+/b", "no topic to write to"),
        ("mqtt://h/?discovery=sparkplug", "discovery=sparkplug: allowed are homeassistant, none"),
        ("mqtt://h/?ca=x", "no option 'ca'"),
        ("mqtts://h/?ca=/no/such/file", "/no/such/file cannot be read"),
        ("mqtts://h/?key=a", "a key without its certificate"),
        ("mqtt://h/?timeout=0", "timeout=0: a number above 0"),
        ("mqtt://u@h/?password_from=env:PADIM_EDGE_NOT_THERE", "no such environment variable"),
        ("mqtt://u@h/?password_from=file:/no/such/file", "it cannot be read"),
        ("mqtt://u@h/?password_from=hunter2", "env:NAME or file:PATH is needed"),
        ("mqtt://u:p@h/?password_from=env:PATH", "a password and password_from"),
        ("https://h/x#batch=-1", "batch=-1"),
        ("https://h/x#secret=s", "no option 'secret'"),
        ("http://h/x#ca=a", "no option 'ca'"),
        ("http:///x", "name a receiver"),
        ("https://u@h/x?password_from=env:PATH", "write #password_from="),
        ("mqtt://me:hun/ter2@h/x", "mqtt://me:***@h/x is no URL"),
        ("folder:", "name a folder"),
        ("folder:a?limit=0", "there is no room"),
        ("modbus://plc", "name a PLC and a coil"),
        ("modbus://plc?coil=65536", "coil=65536: a whole number from 0 to 65535"),
        ("modbus://plc?coil=1&heartbeat=2&counter=2", "need a register each"),
        ("modbus://plc?coil=1&idle=2", "idle=2: allowed are 1, 0, keep"),
        ("opc.tcp://plc", "name a server and a node"),
        ("opc.tcp://plc?node=what", "node=what is no id of a node"),
        ("opc.tcp://plc?node=i=1&cert=a", "cert and key go together, and server"),
        ("prometheus://127.0.0.1:9464", "metrics are asked for"),
    ],
)
def test_an_address_without_sense_is_one_clear_line(address, words):
    with pytest.raises(UsageError) as caught:
        make_sink(address)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "mqtt://me:hunter2@127.0.0.1:1/x",
        "postgresql://me:hunter2@127.0.0.1:1/x",
        "http://me:hunter2@127.0.0.1:1/x?token=hunter2",
        "opc.tcp://me:hunter2@127.0.0.1:1?node=i=85",
    ],
)
def test_no_password_is_shown(address):
    pytest.importorskip("psycopg", reason="pip install 'padim-edge[postgres]'")
    sink = make_sink(address)
    assert "hunter2" not in sink.address

    def use():
        sink.open()
        sink.send([verdict(1)])

    with pytest.raises(SinkError) as caught:
        use()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(vars(sink).get("_engine", sink))
    sink.close()


@pytest.mark.parametrize(
    ("package", "address", "extra"),
    [
        ("sqlalchemy", "sqlite:a", "live"),
        ("psycopg", "postgresql://h/d", "postgres"),
        ("paho", "mqtt://h", "live"),
        ("urllib3", "https://h/", "live"),
        ("pymodbus", "modbus://h?coil=1", "plc"),
        ("asyncua", "opc.tcp://h?node=i=1", "plc"),
    ],
)
def test_a_missing_package_names_its_extra(package, address, extra):
    code = blocking(package) + (
        "from padim_edge.live.sinks import make_sink\n"
        "from padim_edge.errors import MissingDependencyError\n"
        f"try: make_sink({address!r})\n"
        "except MissingDependencyError as error: print(error)\n"
        "make_sink('jsonl:a')\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert package in child.stdout
    assert f"pip install 'padim-edge[{extra}]'" in child.stdout


# --- JSON lines -------------------------------------------------------------------------------


def test_json_lines_are_the_records_appended(tmp_path):
    file = tmp_path / "events.jsonl"
    sink = opened(f"jsonl:{file}")
    odd = Event("x", {"id": "x", "camera": "a\nb\u2028", "time": 1.0})
    sink.send(verdicts(3))
    sink.send(())
    sink.send([odd])
    sink.close()
    again = opened(f"jsonl:{file}")
    again.send([verdict(9)])
    again.close()
    assert lines(file) == records([*verdicts(3), odd, verdict(9)])


def test_what_was_sent_before_a_kill_is_not_there_twice(tmp_path):
    file = tmp_path / "events.jsonl"
    first = opened(f"jsonl:{file}")
    first.send(verdicts(10))
    first.close()
    again = opened(f"jsonl:{file}")
    again.send(verdicts(7, start=5))
    again.send(verdicts(3, start=12))
    assert lines(file) == records(verdicts(15))


@pytest.mark.parametrize("left", range(1, 40, 7))
def test_half_a_line_is_cut_off(tmp_path, left):
    file = tmp_path / "events.jsonl"
    sink = opened(f"jsonl:{file}")
    sink.send(verdicts(2))
    sink.close()
    with file.open("ab") as stream:
        stream.write(verdict(2).to_json().encode()[:left])
    sink = opened(f"jsonl:{file}")
    sink.send([verdict(2)])
    assert lines(file) == records(verdicts(3))


def test_somebody_elses_last_line_without_an_end_is_kept(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text('{"note": "by hand"}')
    opened(f"jsonl:{file}").send([verdict(1)])
    assert lines(file) == [{"note": "by hand"}, verdict(1).record]


def test_a_file_that_is_large_or_old_makes_room_for_a_new_one(tmp_path):
    file = tmp_path / "events.jsonl"
    sink = opened(f"jsonl:{file}?size=5k&keep=3")
    for event in verdicts(200):
        sink.send([event])
    files = [file, *(tmp_path / f"events.jsonl.{age}" for age in (1, 2, 3))]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    kept = [record for path in reversed(files) for record in lines(path)]
    assert kept == records(verdicts(len(kept), start=200 - len(kept)))
    assert all(path.stat().st_size < 5000 + 400 for path in files)
    sink.close()
    old = tmp_path / "old.jsonl"
    sink = opened(f"jsonl:{old}")
    sink.send([verdict(1)])  # at a time of 2025
    sink.close()
    sink = opened(f"jsonl:{old}?hours=24&keep=1")
    sink.send(())
    sink.send([verdict(2)])
    assert lines(old) == [verdict(2).record]
    assert lines(tmp_path / "old.jsonl.1") == [verdict(1).record]


@pytest.mark.parametrize("how", ["renamed", "removed", "emptied"])
def test_a_file_that_somebody_takes_away_is_begun_anew(tmp_path, how):
    file = tmp_path / "events.jsonl"
    sink = opened(f"jsonl:{file}?size=1k")
    sink.send(verdicts(3))
    if how == "renamed":
        file.rename(tmp_path / "events.jsonl-20251128")
        assert lines(tmp_path / "events.jsonl-20251128") == records(verdicts(3))
    elif how == "removed":
        file.unlink()
    else:
        os.truncate(file, 0)
    sink.send(verdicts(2, start=3))
    sink.close()
    assert lines(file) == records(verdicts(2, start=3))


def test_of_no_earlier_file_none_stays(tmp_path):
    file = tmp_path / "events.jsonl"
    sink = opened(f"jsonl:{file}?size=300&keep=0")
    for event in verdicts(10):
        sink.send([event])
    assert list(tmp_path.iterdir()) == [file]


def test_a_second_writer_and_a_place_that_is_none_are_refused(tmp_path):
    file = tmp_path / "events.jsonl"
    sink = opened(f"jsonl:{file}")
    with pytest.raises(UsageError, match="another process writes"):
        opened(f"jsonl:{file}")
    sink.close()
    with pytest.raises(SinkError, match=r"cannot write .*missing"):
        opened(f"jsonl:{tmp_path}/missing/events.jsonl")


def test_a_full_disk_leaves_no_half_line():
    if not Path("/dev/shm").is_dir() or os.geteuid():
        pytest.skip("no small disk: needs root and /dev/shm")
    code = """
import resource, signal, sys
from live_events import verdicts
from padim_edge.live.sink import SinkError
from padim_edge.live.sinks import make_sink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sink = make_sink(f"jsonl:{sys.argv[1]}")
sink.open()
sink.send(verdicts(2))
try: sink.send(verdicts(10, start=2))
except SinkError as error: print(error)
"""
    support = str(Path(__file__).parents[1] / "support")
    file = Path(f"/dev/shm/padim-edge-test-{os.getpid()}.jsonl")
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, file],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": support},
        )
        assert "cannot write" in child.stdout
        assert lines(file) == records(verdicts(2))
    finally:
        file.unlink(missing_ok=True)


KILLED = """
import sys
from live_events import verdicts
from padim_edge.live.sinks import make_sink
sink = make_sink(sys.argv[1])
sink.open()
number = int(sys.argv[2])
while True:
    sink.send(verdicts(5, start=number))
    number += 5
    print(number, flush=True)
"""


@pytest.mark.parametrize("scheme", ["jsonl", "sqlite"])
def test_a_kill_at_any_moment_loses_nothing_that_was_delivered(tmp_path, scheme):
    file = tmp_path / "events"
    support = str(Path(__file__).parents[1] / "support")
    reached = 0
    for kill in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, f"{scheme}:{file}", str(reached)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": support},
        )
        assert child.stdout is not None
        for _ in range(5 + kill):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        said = [line for line in child.stdout.read().splitlines(keepends=True) if line[-1] == "\n"]
        child.wait()
        reached = max(reached + 5 * (5 + kill), int(said[-1]) if said else 0)
    last = opened(f"{scheme}:{file}")
    last.send(verdicts(20, start=reached))
    last.close()
    if scheme == "jsonl":
        got = [record["id"] for record in lines(file)]
    else:
        with closing(sqlite3.connect(file)) as database:
            got = [row[0] for row in database.execute("SELECT id FROM events ORDER BY time")]
    wanted = [event.id for event in verdicts(reached + 20)]
    assert got == wanted


# --- SQLite -----------------------------------------------------------------------------------


def test_sqlite_has_each_event_once_in_columns_that_others_can_ask(tmp_path):
    file = tmp_path / "events.db"
    sink = opened(f"sqlite:{file}")
    said = Event(
        "s", {"id": "s", "time": 1764291600.5, "camera": "", "kind": "watch", "latency_ms": {}}
    )
    sink.send(verdicts(5))
    sink.send([*verdicts(5, start=2), said])
    sink.send(())
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute(
            "SELECT id, time, camera, kind, score, threshold, is_anomalous, latency_ms, record "
            "FROM events ORDER BY time, id"
        ).fetchall()
        assert database.execute("SELECT count(*) FROM events WHERE is_anomalous").fetchone() == (2,)
    assert [row[0] for row in rows if row[3] == "verdict"] == [event.id for event in verdicts(7)]
    third = verdict(2).record
    assert rows[2][2:8] == ("left", "verdict", 5.25, 5.0, 1, 12.5)
    assert json.loads(rows[2][8]) == third
    assert datetime.fromisoformat(rows[2][1] + "+00:00").timestamp() == third["time"]
    (row,) = (row for row in rows if row[3] == "watch")
    assert row[4:8] == (None,) * 4
    assert json.loads(row[8]) == said.record
    odd = verdict(9, score=["no number"])
    with pytest.raises(RefusedError, match="float") as caught:
        sink.send([verdict(8), odd])
    assert caught.value.delivered == 1
    sink.close()
    with pytest.raises(SinkError, match="not connected"):
        sink.send([verdict(1)])


def test_a_table_of_somebody_else_is_not_written_to(tmp_path):
    file = tmp_path / "events.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("CREATE TABLE events (id TEXT, what TEXT)")
    with pytest.raises(UsageError, match=r"the table events has no camera.*\?table=NAME"):
        opened(f"sqlite:{file}")
    opened(f"sqlite:{file}?table=padim_events").send([verdict(1)])
    file.write_bytes(b"no database" * 100)
    with pytest.raises(SinkError, match="file is not a database"):
        opened(f"sqlite:{file}")


# --- a folder of pictures ---------------------------------------------------------------------


def picture(number, size=1000):
    return b"\xff\xd8" + bytes([number % 256]) * size


def test_pictures_of_anomalous_frames_are_files_and_the_oldest_go(tmp_path):
    folder = tmp_path / "new" / "anomalies"
    sink = opened(f"folder:{folder}?limit=10k")
    (folder / "mine.jpg").write_bytes(b"x" * 20_000)
    events = [verdict(number, picture=picture(number)) for number in range(25)]
    for event in events:
        sink.send([event, verdict(100)])
    names = sorted(path.name for path in folder.iterdir() if path.name != "mine.jpg")
    assert len(names) == 9
    assert names[-1] == "20251128T010000.750Z_left_1764291600-left-00000024.jpg"
    found = [(folder / name).read_bytes() for name in names]
    assert found == [picture(number) for number in range(16, 25)]
    assert (folder / "mine.jpg").exists()
    written = (folder / names[-1]).stat().st_mtime_ns
    again = opened(f"folder:{folder}?limit=5k")
    again.send([events[-1], verdict(25, picture=picture(25))])
    left = sorted(path.name for path in folder.iterdir() if path.name != "mine.jpg")
    assert len(left) == 4
    assert (folder / names[-1]).stat().st_mtime_ns == written  # sent again, not written again


def test_pictures_that_somebody_removed_take_no_room(tmp_path):
    sink = opened(f"folder:{tmp_path}/a?limit=10k")
    for number in range(9):
        sink.send([verdict(number, picture=picture(number))])
    first, *others = sorted((tmp_path / "a").iterdir())
    for path in others:
        path.unlink()
    for number in range(9, 17):
        sink.send([verdict(number, picture=picture(number))])
    left = sorted((tmp_path / "a").iterdir())
    assert left[0] == first
    assert len(left) == 9
    sink.send([verdict(17, picture=picture(17))])
    assert sorted((tmp_path / "a").iterdir())[:8] == left[1:]


def test_a_name_from_outside_leads_nowhere_else(tmp_path):
    folder = tmp_path / "anomalies"
    sink = opened(f"folder:{folder}")
    record = {**verdict(1).record, "id": "../../x\0", "camera": "../" * 50}
    sink.send([Event(record["id"], record, picture(1))])
    (file,) = folder.iterdir()
    assert file.read_bytes() == picture(1)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_picture_beyond_the_limit_is_refused_alone(tmp_path):
    sink = opened(f"folder:{tmp_path}/a?limit=2k")
    with pytest.raises(RefusedError) as caught:
        sink.send([verdict(1, picture=picture(1)), verdict(2, picture=picture(2, 3000))])
    assert caught.value.delivered == 1
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_folder_that_cannot_be_is_tried_again(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot use"):
        opened(f"folder:{tmp_path}/file/anomalies")
