"""Events in a table of SQLite or PostgreSQL, each there once: its id is the key."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from padim_edge.errors import MissingDependencyError, UsageError, first_line
from padim_edge.files import writable
from padim_edge.live.addresses import Address
from padim_edge.live.event import Event
from padim_edge.live.sink import RefusedError, SinkError
from padim_edge.live.sinks.secrets import PASSWORD, password

try:
    import sqlalchemy as sql
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.exc import (
        DataError,
        DBAPIError,
        IntegrityError,
        SQLAlchemyError,
        StatementError,
    )
except ModuleNotFoundError as error:
    raise MissingDependencyError("a database as a sink", "sqlalchemy", "live") from error

_SSL = ("sslmode", "sslrootcert", "sslcert", "sslkey")
"""Options that are given to libpq as they are."""


def events_table(name: str) -> sql.Table:
    """The table; docs/live.md tells of it."""
    return sql.Table(
        name,
        sql.MetaData(),
        sql.Column("id", sql.Text, primary_key=True),
        sql.Column("time", sql.DateTime(timezone=True), nullable=False, index=True),
        sql.Column("camera", sql.Text, nullable=False),
        sql.Column("kind", sql.Text, nullable=False),
        sql.Column("score", sql.Double),
        sql.Column("threshold", sql.Double),
        sql.Column("is_anomalous", sql.Boolean),
        sql.Column("latency_ms", sql.Double),
        sql.Column(
            "record", sql.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False
        ),
    )


class _SqlSink:
    """What both databases have in common."""

    is_state = False
    wants_pictures = False
    _insert: Any

    def __init__(self, address: Address, url: sql.URL, **arguments: Any) -> None:
        self.address = str(address)
        name = address.options.get("table", "events")
        if not name.isidentifier():
            raise address.refused(f"table={name}: a name of letters, digits and _ is needed")
        self._table = events_table(name)
        self._engine = sql.create_engine(
            url, poolclass=sql.pool.NullPool, connect_args=arguments, hide_parameters=True
        )
        self._connection: sql.Connection | None = None

    def open(self) -> None:
        """Connect; make the table if it is not there."""
        self.close()
        try:
            self._connection = self._engine.connect()
            self._table.create(self._connection, checkfirst=True)
            self._connection.commit()
            columns = sql.inspect(self._connection).get_columns(self._table.name)
            self._connection.rollback()
        except SQLAlchemyError as error:
            self.close()
            raise SinkError(f"{self.address}: {_reason(error)}") from error
        missing = {column.name for column in self._table.columns} - {
            column["name"] for column in columns
        }
        if missing:
            self.close()
            raise UsageError(
                f"{self.address}: the table {self._table.name} has no {', '.join(sorted(missing))}:"
                " name another with ?table=NAME"
            )

    def send(self, events: Sequence[Event]) -> None:
        """Insert them in one transaction, those left out that are there."""
        if not events:
            return
        try:
            self._write(events)
        except SQLAlchemyError as error:
            if not _is_refusal(error):
                raise SinkError(f"{self.address}: {_reason(error)}") from error
            self._one_by_one(events)

    def _one_by_one(self, events: Sequence[Event]) -> None:
        """Find out which one the database will not have."""
        for number, event in enumerate(events):
            try:
                self._write([event])
            except SQLAlchemyError as error:
                kind = RefusedError if _is_refusal(error) else SinkError
                raise kind(f"{self.address}: {_reason(error)}", delivered=number) from error

    def _write(self, events: Sequence[Event]) -> None:
        if self._connection is None:
            raise SinkError(f"{self.address}: not connected")
        insert = self._insert(self._table).on_conflict_do_nothing(index_elements=["id"])
        with self._connection.begin():
            self._connection.execute(insert, [_row(event) for event in events])

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()


class SqliteSink(_SqlSink):
    """``sqlite:FILE``."""

    _insert = staticmethod(sqlite.insert)

    def __init__(self, address: Address) -> None:
        address.check_options(("table",))
        if not address.rest:
            raise address.refused("name a file, like sqlite:events.db")
        url = sql.URL.create("sqlite", database=str(writable(address.rest)))
        super().__init__(address, url, timeout=10)


class PostgresqlSink(_SqlSink):
    """``postgresql://user@host/database``."""

    _insert = staticmethod(postgresql.insert)

    def __init__(self, address: Address) -> None:
        address.check_options(("table", "host", PASSWORD, *_SSL))
        try:
            import psycopg  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingDependencyError("PostgreSQL", "psycopg", "postgres") from error
        url = sql.URL.create(
            "postgresql+psycopg",
            address.user or None,
            password(address),
            address.host or address.options.get("host"),  # the latter may be a folder of sockets
            address.port,
            address.path.strip("/") or None,
        )
        super().__init__(
            address,
            url,
            application_name="padim-edge",
            connect_timeout=10,
            tcp_user_timeout=10_000,  # a server that is unplugged is noticed in seconds, not hours
            **{name: address.options[name] for name in _SSL if name in address.options},
        )


_NUMBERS = ("score", "threshold", "is_anomalous", "latency_ms")
"""Columns that verdicts alone have."""


def _row(event: Event) -> dict[str, Any]:
    record = event.record
    return {
        "id": event.id,
        "time": datetime.fromtimestamp(record["time"], timezone.utc),
        "camera": record["camera"],
        "kind": record["kind"],
        # What others call so need not be numbers.
        **{name: record.get(name) if record["kind"] == "verdict" else None for name in _NUMBERS},
        "record": record,
    }


def _is_refusal(error: SQLAlchemyError) -> bool:
    """Whether it is about the event: the database will not have it, or no row can be made of it."""
    is_ours = isinstance(error, StatementError) and not isinstance(error, DBAPIError)
    return is_ours or isinstance(error, (DataError, IntegrityError))


def _reason(error: SQLAlchemyError) -> str:
    """What the database says, without the statement."""
    return first_line(getattr(error, "orig", None) or error)
