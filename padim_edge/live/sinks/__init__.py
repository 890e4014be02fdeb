"""Sinks, by their addresses: one file each, imported when it is asked for.

`make_sink` is the door; `SINKS` is the table of what there is, for help and documents.
"""

from __future__ import annotations

from typing import NamedTuple

from padim_edge.live.addresses import parse
from padim_edge.live.sink import AnySink
from padim_edge.runtime.engines import load

__all__ = ["METRICS", "SINKS", "make_sink"]


class Kind(NamedTuple):
    """A kind of sink: where its class is, and what to tell about it."""

    place: str
    example: str
    what: str


_HERE = "padim_edge.live.sinks"

SINKS: dict[str, Kind] = {
    "jsonl": Kind(f"{_HERE}.jsonl:JsonLinesSink", "jsonl:events.jsonl", "JSON lines"),
    "sqlite": Kind(f"{_HERE}.sql:SqliteSink", "sqlite:events.db", "a database in a file"),
    "postgresql": Kind(f"{_HERE}.sql:PostgresqlSink", "postgresql://user@host/line", "PostgreSQL"),
    "mqtt": Kind(f"{_HERE}.mqtt:MqttSink", "mqtt://broker/line/3", "a broker of MQTT"),
    "mqtts": Kind(f"{_HERE}.mqtt:MqttSink", "mqtts://broker/line/3", "the same, over TLS"),
    "http": Kind(f"{_HERE}.webhook:WebhookSink", "http://host/hook", "a web receiver"),
    "https": Kind(f"{_HERE}.webhook:WebhookSink", "https://host/hook", "the same, over TLS"),
    "folder": Kind(f"{_HERE}.folder:FolderSink", "folder:anomalies/?limit=1GB", "anomalous frames"),
    "modbus": Kind(f"{_HERE}.modbus:ModbusSink", "modbus://plc?coil=0", "a PLC, Modbus TCP"),
    "opc.tcp": Kind(
        f"{_HERE}.opcua:OpcuaSink", "opc.tcp://plc:4840?node=ns=2;s=Anomalous", "a PLC, OPC UA"
    ),
}
"""Scheme -> kind, in the order in which they are told of."""

METRICS = "prometheus"
"""The scheme of what is asked, not told: see `padim_edge.live.metrics`."""


def make_sink(address: str) -> AnySink:
    """Make what an address stands for; it is opened later, and as often as need be.

    Args:
        address: a scheme of `SINKS` with what it makes of the rest.

    Raises:
        UsageError: the address makes no sense.
        MissingDependencyError: its package is not installed.
    """
    parsed = parse(address, "sink", (*SINKS, METRICS))
    if parsed.scheme == METRICS:
        raise parsed.refused("metrics are asked for, not sent: name it once, beside other sinks")
    sink: AnySink = load(SINKS[parsed.scheme].place)(parsed)
    return sink
