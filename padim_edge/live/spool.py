"""Events on disk until every sink has them: what stands in here survives whatever kills the watch.

A file of SQLite in WAL mode. `Spool.append` returns when its events are synced to the disk
(``synchronous=FULL``); events of several threads that arrive during one sync share the next.
Where a sink has got to is written without a sync: a power cut may take that back, and the sink is
sent some events again, which is what their ids are for.
"""

from __future__ import annotations

import glob
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from padim_edge.errors import PadimEdgeError, UsageError, first_line
from padim_edge.live.event import Event

_APPLICATION = 0x50614469
"""SQLite's application_id of a spool: a file of something else is never touched."""

_VERSION = 1

_TABLES = f"""
CREATE TABLE events (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, record TEXT NOT NULL, picture BLOB,
    bytes INTEGER NOT NULL);
CREATE INDEX events_id ON events (id);
CREATE TABLE sinks (
    address TEXT PRIMARY KEY, reached INTEGER NOT NULL, dropped INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE keys (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE);
PRAGMA application_id={_APPLICATION};
PRAGMA user_version={_VERSION};
"""

_LEAST_BYTES = 1 << 20

_BESIDE = ("-wal", "-journal")
"""What SQLite calls files that belong to one."""

_ROW_BYTES = 128
"""What a row takes beside its text, index included; a picture fills pages of 4096."""


_DAMAGED = 2
"""Files that were set aside as damaged and are kept, the newest: a card that forgets bits does so
again and again, and must not fill its disk with what nobody can read."""


class SpoolError(PadimEdgeError):
    """The spool cannot be written now (a full disk); what was to go in is not in it."""


@dataclass
class _Batch:
    """Events of one call, waiting for a sync.

    Attributes:
        events: what came.
        rows: id, record, picture, bytes of each; none if there are no sinks.
        digests: of the keys.
        done: whether they are on disk, or have failed.
        error: why they are not.
        notices: what the spool itself had to say.
    """

    events: Sequence[Event]
    rows: list[tuple[str, str, bytes | None, int]]
    digests: list[bytes]
    done: bool = False
    error: SpoolError | None = None
    notices: list[Event] = field(default_factory=list)


@dataclass
class _Reached:
    """Where a sink is: the number of its last event, and how many it never got."""

    number: int
    dropped: int = 0


@dataclass
class _Mending:
    """A file that cannot be used any more, until it, or a new one in its place, is open.

    Attributes:
        why: it cannot.
        is_damaged: whether it is to make room for a new one; else it is opened again (a disk that
            was gone for a while).
        reached: where sinks were.
        since: when that was found, in seconds of `time.monotonic`.
        aside: what a damaged one is called now; None as long as it could not be renamed.
        is_new: whether what is there now was made by us.
        in_vain: why the last try failed; "" before there was one.
    """

    why: str
    is_damaged: bool
    reached: dict[str, _Reached]
    since: float = field(default_factory=time.monotonic)
    aside: Path | None = None
    is_new: bool = False
    in_vain: str = ""


class Spool:
    """Events that sinks have not got yet, and what was judged already. Safe from any thread.

    What it has to say itself (events dropped, a damaged file) it appends to the next events.

    Attributes:
        path: the file.

    Args:
        path: made if it is not there.
        max_bytes: of events that wait; the oldest are dropped, counted, and an event says so.
        sinks: their addresses, as in `padim_edge.live.sink.Sink`. One that is new here gets what
            comes from now on; what waits for one that is not named any more is let go.
        max_keys: how many keys are remembered; a file of a hot folder has two.
        pictures: whether a sink wants those of events, which take most of the room.

    Raises:
        UsageError: another watch uses it, it is no spool, or of a newer version; a limit is too
            small; a sink is there twice.
        PadimEdgeError: it cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = 256 << 20,
        sinks: Sequence[str] = (),
        max_keys: int = 2_000_000,
        pictures: bool = True,
    ) -> None:
        if max_bytes < _LEAST_BYTES or max_keys < 1:
            raise UsageError(
                f"a spool of {max_bytes} bytes and {max_keys} keys is too small: at least "
                f"{_LEAST_BYTES} bytes and 1 key"
            )
        twice = sorted({address for address in sinks if list(sinks).count(address) > 1})
        if twice:
            raise UsageError(f"the sink {twice[0]} is named twice: name it once")
        self.path = path
        self._unsaid: list[str] = []
        self._max_bytes = max_bytes
        self._max_keys = max_keys
        self._pictures = pictures
        self._lock = threading.Lock()  # of the connection and all that follows
        self._queue = threading.Lock()  # of `_waiting` alone
        self._waiting: list[_Batch] = []
        self._news = threading.Condition()
        self._appended = 0
        self._newest: dict[str, tuple[Event, float]] = {}
        self._verdicts = 0
        self._last = 0
        self._reached: dict[str, _Reached] = {}
        self._mending: _Mending | None = None
        self._connection: sqlite3.Connection | None = None
        try:
            self._begin(sinks)
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise self._cannot(error) from error
            unknown = {address: _Reached(self._last) for address in sinks}
            self._spoilt(error, unknown | self._reached)
            self._mend()

    # --- opening ------------------------------------------------------------------------------

    def _begin(self, sinks: Sequence[str]) -> None:
        """Open the file and learn what is in it, or leave nothing open."""
        self._connection = self._opened()
        try:
            self._take_up(sinks)
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> sqlite3.Connection:
        """The file, ours alone, with its tables."""
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            # Exclusive from the first access on: a second watch is refused, and no shared memory
            # is needed, which network file systems lack.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
            self._check(connection)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA journal_size_limit={8 << 20}")
            if not _pragma(connection, "application_id"):
                connection.executescript(f"BEGIN;{_TABLES}COMMIT")
                if self._mending:
                    self._mending.is_new = True
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        application = _pragma(connection, "application_id")
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and (application or tables):
            raise UsageError(
                f"{self.path} is a database of something else: name another file for the spool"
            )
        version = _pragma(connection, "user_version")
        if application and version != _VERSION:
            raise UsageError(
                f"{self.path} is a spool of version {version}, this padim-edge knows {_VERSION}: "
                "let the version that made it empty it, or name another file"
            )

    def _take_up(self, sinks: Sequence[str]) -> None:
        """Learn what is there, and for whom it waits."""
        ask = self._file.execute
        known = {
            address: _Reached(number, dropped)
            for address, number, dropped in ask("SELECT address, reached, dropped FROM sinks")
        }
        in_file = ask("SELECT max(number), coalesce(sum(bytes), 0) FROM events").fetchone()
        self._bytes: int = in_file[1]
        self._last = max(
            self._last, in_file[0] or 0, *(reached.number for reached in known.values()), 0
        )
        self._first_key, self._last_key = (
            number or 0 for number in ask("SELECT min(number), max(number) FROM keys").fetchone()
        )
        for address, reached in known.items():
            waiting = self._last - reached.number
            if address not in sinks and waiting:
                self._unsaid.append(
                    f"{waiting} events that waited for {address} are let go: it is not among the "
                    "sinks any more"
                )
        earlier = self._mending.reached if self._mending else {}
        self._reached = {address: known.get(address) or _Reached(self._last) for address in sinks}
        for address in earlier.keys() - known.keys():  # what waited is not in here
            lost = self._last - earlier[address].number
            self._reached[address].dropped = earlier[address].dropped + lost
        with self._transaction(durable=True):
            ask("DELETE FROM sinks")
            for address in sinks:
                self._write_reached(address)
            self._remove_delivered()

    def _spoilt(self, error: sqlite3.Error, reached: dict[str, _Reached] | None = None) -> bool:
        """Whether an error leaves a file that must be mended before it is used again: `_mend`."""
        is_damaged = _is_damage(error)
        if not is_damaged and not _is_gone(error):
            return False
        self._let_go()
        self._mending = _Mending(first_line(error), is_damaged, reached or self._reached)
        return True

    def _mend(self) -> None:
        """Open what can be used in the place of a file that cannot, if there is such.

        Raises:
            PadimEdgeError: it cannot be done now; every further call tries it again.
        """
        mending = self._mending
        if mending is None:
            return
        try:
            if mending.is_damaged and mending.aside is None:
                mending.aside = self._renamed()
            self._begin(tuple(mending.reached))
        except (OSError, sqlite3.Error) as failed:
            if isinstance(failed, sqlite3.Error) and _is_damage(failed):  # the new one, too
                mending.is_damaged, mending.aside = True, None
            mending.in_vain = first_line(failed)
            raise self._cannot(failed) from failed
        self._mending = None
        if not mending.is_new:
            return
        if mending.aside:
            what = f"is damaged ({mending.why}): it is now {mending.aside.name}"
        else:
            what = f"is not there any more ({mending.why})"
        late = ""
        if mending.in_vain:
            seconds = time.monotonic() - mending.since
            late = f" {seconds:.0f} s later, before that it could not ({mending.in_vain})"
        self._unsaid.append(
            f"the spool {self.path} {what}, and a new one begins{late}; events that waited in it "
            "are not delivered, and files of a hot folder that are still there are judged again"
        )

    def _renamed(self) -> Path:
        """Give the damaged file another name, with what belongs to it, and let go of older ones."""
        now = time.time_ns()
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now // 10**9))}.{now % 10**9:09}"
        earlier = sorted(
            path
            for path in self.path.parent.glob(f"{glob.escape(self.path.name)}.damaged-*")
            if not path.name.endswith(_BESIDE)
        )
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        if self.path.exists():
            self.path.replace(aside)
        for suffix in _BESIDE:
            beside = self.path.with_name(self.path.name + suffix)
            if beside.exists():
                beside.replace(aside.with_name(aside.name + suffix))
        for path in earlier[: max(0, len(earlier) + 1 - _DAMAGED)]:
            for suffix in ("", *_BESIDE):
                with suppress(OSError):  # one more than need be is no reason to stop
                    path.with_name(path.name + suffix).unlink()
        return aside

    def _cannot(self, error: Exception) -> PadimEdgeError:
        reason = first_line(error)
        if "locked" in reason:
            return UsageError(
                f"another watch uses the spool {self.path} now: name another file, or stop it"
            )
        return SpoolError(
            f"cannot write the spool {self.path}: {reason}; choose a folder that exists, is "
            "writable and has room"
        )

    # --- writing ------------------------------------------------------------------------------

    def append(self, events: Sequence[Event], keys: Sequence[str] = ()) -> list[Event]:
        """Keep events, and what need not be judged again, all together or nothing.

        Returns:
            When they are on disk: what the spool itself had to say (events dropped, the file
            damaged), which is in it as well.

        Raises:
            SpoolError: they are not on disk, and nothing of them is kept.
        """
        batch = _Batch(
            events,
            [_row(event, self._pictures) for event in events] if self._reached else [],
            [_digest(key) for key in keys],
        )
        self._tell(events)
        with self._queue:
            self._waiting.append(batch)
        with self._lock:
            if not batch.done:  # nobody took it along while we waited for the lock
                with self._queue:
                    batches, self._waiting = self._waiting, []
                self._write(batches)
        if batch.error is not None:
            raise batch.error
        self._tell()
        return batch.notices

    def _write(self, batches: Sequence[_Batch]) -> None:
        """One transaction for all who wait; the first of them is told what the spool says."""
        try:
            try:
                self._mend()
                notices = self._written(batches)
            except sqlite3.Error as error:
                if not self._spoilt(error):
                    raise
                self._mend()
                notices = self._written(batches)
        except (sqlite3.Error, PadimEdgeError) as error:
            if not isinstance(error, PadimEdgeError):
                error = self._cannot(error)
            for batch in batches:
                batch.error = SpoolError(str(error))
        else:
            batches[0].notices = notices
        for batch in batches:
            batch.done = True

    def _written(self, batches: Sequence[_Batch]) -> list[Event]:
        notices: list[Event] = []
        last = next((batch.events[-1] for batch in reversed(batches) if batch.events), None)
        before = (self._last, self._bytes, self._first_key, self._last_key)
        reached = {name: replace(value) for name, value in self._reached.items()}
        try:
            with self._transaction(durable=True):
                self._insert([row for batch in batches for row in batch.rows])
                self._insert_keys([digest for batch in batches for digest in batch.digests])
                if last is not None:
                    said: list[tuple[str, dict[str, Any]]] = [
                        (message, {}) for message in self._unsaid
                    ]
                    if self._bytes > self._max_bytes:
                        said.append(self._drop_oldest())
                    notices = [_notice(last, number, *it) for number, it in enumerate(said, 1)]
                    self._insert([_row(event) for event in notices] if self._reached else [])
        except BaseException:
            self._last, self._bytes, self._first_key, self._last_key = before
            self._reached = reached
            raise
        if last is not None:
            self._unsaid.clear()
        return notices

    def _insert(self, rows: Sequence[tuple[str, str, bytes | None, int]]) -> None:
        numbered = [(self._last + count, *row) for count, row in enumerate(rows, start=1)]
        self._file.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", numbered)
        self._last += len(rows)
        self._bytes += sum(row[-1] for row in rows)

    def _drop_oldest(self) -> tuple[str, dict[str, Any]]:
        """Make room, a tenth at once, so that a full spool does not say so with every event.

        Returns:
            What to say of it, and how many each sink has lost.
        """
        wanted = self._max_bytes - self._max_bytes // 10
        upto = 0
        freed = 0
        for number, size in self._file.execute(
            "SELECT number, bytes FROM events WHERE number < ? ORDER BY number", (self._last,)
        ):
            upto, freed = number, freed + size
            if self._bytes - freed <= wanted:
                break
        lost = {}
        for address, reached in self._reached.items():
            if reached.number < upto:
                lost[address] = upto - reached.number
                reached.dropped += upto - reached.number
                reached.number = upto
                self._write_reached(address)
        self._remove_delivered()
        which = ", ".join(f"{count} for {address}" for address, count in lost.items())
        message = (
            f"the spool is full ({self._max_bytes} bytes): the oldest events that were not yet "
            f"delivered are dropped, {which}"
        )
        return message, {"dropped": lost}

    def _insert_keys(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            self._last_key += self._file.execute(
                "INSERT OR IGNORE INTO keys VALUES (?, ?)", (self._last_key + 1, digest)
            ).rowcount
        excess = self._last_key - self._max_keys
        if excess >= self._first_key:
            self._file.execute("DELETE FROM keys WHERE number <= ?", (excess,))
            self._first_key = excess + 1

    def _write_reached(self, address: str) -> None:
        reached = self._reached[address]
        self._file.execute(
            "INSERT OR REPLACE INTO sinks VALUES (?, ?, ?)",
            (address, reached.number, reached.dropped),
        )

    def _remove_delivered(self) -> None:
        """Let go of what every sink has."""
        upto = min((reached.number for reached in self._reached.values()), default=self._last)
        (size,) = self._file.execute(
            "SELECT coalesce(sum(bytes), 0) FROM events WHERE number <= ?", (upto,)
        ).fetchone()
        self._file.execute("DELETE FROM events WHERE number <= ?", (upto,))
        self._bytes -= size

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[None]:
        self._file.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._file.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back already.
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise

    # --- reading ------------------------------------------------------------------------------

    def judged(self, key: str) -> bool:
        """Whether a key was appended before (and is not forgotten: see ``max_keys``).

        Raises:
            SpoolError: the file cannot be read now.
        """
        with self._reading():
            return bool(self._ask("SELECT 1 FROM keys WHERE digest = ?", _digest(key)))

    def pending(self, sink: str, limit: int = 100, pictures: bool = False) -> list[Event]:
        """The oldest events that a sink has not got, in order; with their pictures if asked for.

        Raises:
            SpoolError: the file cannot be read now.
        """
        picture = "picture" if pictures else "NULL"
        with self._reading():
            rows = self._ask(
                f"SELECT id, record, {picture} FROM events WHERE number > ? "
                "ORDER BY number LIMIT ?",
                self._reached[sink].number,
                limit,
            )
            try:
                return [Event(row[0], json.loads(row[1]), row[2]) for row in rows]
            except ValueError as error:  # a card that forgets bits
                raise sqlite3.DatabaseError(f"an event is not what was written: {error}") from error

    def delivered(self, sink: str, last: str) -> None:
        """A sink has the event of this id, of those of `pending`, and all before it.

        Raises:
            SpoolError: that cannot be written now; the sink will be sent them again.
        """
        with self._reading():
            reached = self._reached[sink]
            found = self._ask(
                "SELECT number FROM events WHERE id = ? AND number > ?", last, reached.number
            )
            if not found:  # it was dropped while it was on its way
                return
            before = reached.number, self._bytes
            try:
                with self._transaction(durable=False):
                    reached.number = found[0][0]
                    self._write_reached(sink)
                    self._remove_delivered()
            except BaseException:
                reached.number, self._bytes = before
                raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Our turn at the file; what it cannot do is an error of ours, damage is mended."""
        with self._lock:
            self._mend()
            try:
                yield
            except sqlite3.Error as error:
                if self._spoilt(error):
                    self._mend()
                raise self._cannot(error) from error

    def _ask(self, query: str, *values: Any) -> list[Any]:
        return self._file.execute(query, values).fetchall()

    @property
    def _file(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.ProgrammingError("it is closed")
        return self._connection

    def backlog(self, sink: str) -> int:
        """How many events wait for a sink."""
        return self._last - self._reached[sink].number

    def dropped(self, sink: str) -> int:
        """How many events a sink never got, since it is one."""
        return self._reached[sink].dropped

    @property
    def bytes(self) -> int:
        """What waits, in bytes; the file may be larger, for it does not shrink."""
        return self._bytes

    # --- news ---------------------------------------------------------------------------------

    def _tell(self, events: Sequence[Event] = ()) -> None:
        """Wake whoever waits; events that show what is are known from here on."""
        now = time.monotonic()
        with self._news:
            for event in events:
                camera, kind = event.record["camera"], event.record["kind"]
                before = self._newest.get(camera)
                # One that could not be written is appended again, and counts once.
                if kind in ("verdict", "error") and (before is None or event.id > before[0].id):
                    self._newest[camera] = event, now
                    self._verdicts += kind == "verdict"
            self._appended += 1
            self._news.notify_all()

    def newest(self) -> tuple[list[tuple[Event, float]], int]:
        """Each camera's newest verdict or error, when it came, and the number of verdicts.

        Of this run, and whether or not they could be written: a full disk is no reason for a PLC
        to see an old decision. When: in seconds of `time.monotonic`.
        """
        with self._news:
            return list(self._newest.values()), self._verdicts

    @property
    def appended(self) -> int:
        """Grows with every `append`, for `wait`."""
        return self._appended

    def wait(self, seen: int, seconds: float) -> None:
        """Wait until `appended` is not ``seen`` any more, or the time is over."""
        with self._news:
            if self._appended == seen:
                self._news.wait(seconds)

    def wake(self) -> None:
        """Wake whoever waits, for a reason of one's own."""
        self._tell()

    def close(self) -> None:
        """Let go of the file; what waits stays in it. Twice is harmless."""
        with self._lock:
            self._mending = None
            self._let_go()


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _row(event: Event, pictures: bool = False) -> tuple[str, str, bytes | None, int]:
    record = event.to_json()
    picture = event.picture if pictures else None
    pages = -(-len(picture) // 4096) * 4096 if picture else 0
    return event.id, record, picture, len(record) + 2 * len(event.id) + pages + _ROW_BYTES


def _digest(key: str) -> bytes:
    """A key may be a long path; a hundred thousand of them should take little room."""
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).digest()


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is not what was written any more."""
    # SQLITE_CORRUPT and SQLITE_NOTADB come as this class itself, text that is none as another.
    return type(error) is sqlite3.DatabaseError or "decode to UTF-8" in str(error)


def _is_gone(error: sqlite3.Error) -> bool:
    """Whether the file cannot be reached: its handle may never work again, though the disk does."""
    return isinstance(error, sqlite3.OperationalError) and first_line(error) in (
        *("disk I/O error", "unable to open database file"),
        "attempt to write a readonly database",
    )


def _notice(after: Event, number: int, message: str, fields: dict[str, Any]) -> Event:
    """An event of the spool's own, named after the one at which it happened."""
    name = f"{after.id}.{number}"
    record = {"id": name, "time": time.time(), "camera": "", "kind": "watch", "message": message}
    return Event(name, record | fields)
