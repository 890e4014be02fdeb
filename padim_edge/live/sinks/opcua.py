"""What is now in nodes of an OPC UA server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from contextlib import suppress
from typing import Any

from padim_edge.errors import MissingDependencyError, UsageError, first_line
from padim_edge.live.addresses import Address
from padim_edge.live.sink import SinkError, State
from padim_edge.live.sinks.plc import PlcSink
from padim_edge.live.sinks.secrets import PASSWORD, password

try:
    from asyncua import ua
    from asyncua.sync import Client, ThreadLoopNotRunning
    from asyncua.ua.uaerrors import UaError
except ModuleNotFoundError as error:
    raise MissingDependencyError("OPC UA as a sink", "asyncua", "plc") from error

# It logs what it raises as well.
logging.getLogger("asyncua").setLevel(logging.CRITICAL)

_FAILURES = (
    UaError,
    OSError,
    asyncio.TimeoutError,
    concurrent.futures.TimeoutError,
    concurrent.futures.CancelledError,
    asyncio.CancelledError,
    ThreadLoopNotRunning,
)

_NODES = ("score", "counter", "heartbeat", "node")
"""Options that name a node, in the order in which they are written: whoever waits for the
decision finds the rest there."""


_SECURITY = ("cert", "key", "server")


class OpcuaSink(PlcSink):
    """``opc.tcp://host:4840/path?node=ns=2;s=Anomalous&score=...&counter=...&heartbeat=...``.

    Values take the type that the node has. With ``cert`` and ``key`` all is signed and encrypted
    (Basic256Sha256), for the server whose certificate ``server`` holds; without it, for whoever
    answers.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(address, (*_NODES[::-1], PASSWORD, *_SECURITY))
        if not address.host or "node" not in address.options:
            raise address.refused("name a server and a node, like opc.tcp://plc:4840?node=ns=2;s=A")
        given = [name in address.options for name in _SECURITY]
        if given not in ([False] * 3, [True, True, False], [True] * 3):
            raise address.refused("cert and key go together, and server with them")
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._url = f"opc.tcp://{host}:{address.port or 4840}{address.path}"
        self._user, self._password = address.user, password(address)
        self._security = [address.options[name] for name in _SECURITY if name in address.options]
        self._ids = {}
        for name in _NODES:
            if name in address.options:
                try:
                    self._ids[name] = ua.NodeId.from_string(address.options[name])
                except (UaError, ValueError) as error:
                    raise address.refused(
                        f"{name}={address.options[name]} is no id of a node, like ns=2;s=Anomalous"
                    ) from error
        self._client: Client | None = None
        self._nodes: dict[str, tuple[Any, ua.VariantType]] = {}

    def open(self) -> None:
        """Connect, and learn the types of the nodes."""
        self.close()
        try:
            # A call is several requests; at a server that stops halfway it would hang for minutes.
            # asyncua asks for the server's state each second, and lets go of one that does not
            # answer that within a second: a slow PLC would be lost again and again.
            client = Client(
                self._url,
                timeout=self._timeout,
                sync_wrapper_timeout=4 * self._timeout,
                watchdog_intervall=self._timeout,
            )
            self._client = client
            if self._user:
                client.set_user(self._user)
                client.set_password(self._password or "")
            if self._security:
                client.set_security_string(
                    ",".join(("Basic256Sha256", "SignAndEncrypt", *self._security))
                )
            client.connect()
            for name, node_id in self._ids.items():
                node = client.get_node(node_id)
                self._nodes[name] = node, node.read_data_type_as_variant_type()
        except _FAILURES as error:
            self.close()
            raise SinkError(f"{self.address}: {_reason(error)}") from error
        except ValueError as error:
            self.close()
            raise UsageError(
                f"{self.address}: {', '.join(self._security)} cannot be read: files in PEM, named "
                ".pem, or in DER are needed"
            ) from error

    def show(self, state: State) -> None:
        """Write it."""
        if self._client is None:
            raise SinkError(f"{self.address}: not connected")
        values: dict[str, float | None] = {
            "score": state.score,
            "counter": state.verdicts,
            "heartbeat": state.beat,
            "node": self._value(state),
        }
        try:
            for name, (node, kind) in self._nodes.items():
                value = values[name]
                if value is not None:
                    node.write_value(ua.DataValue(ua.Variant(_cast(value, kind), kind)))
        except _FAILURES as error:
            raise SinkError(f"{self.address}: {_reason(error)}") from error

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        self._nodes = {}
        if client is not None:
            with suppress(*_FAILURES):
                client.disconnect()


_BITS = {
    ua.VariantType.SByte: 7,
    ua.VariantType.Byte: 8,
    ua.VariantType.Int16: 15,
    ua.VariantType.UInt16: 16,
    ua.VariantType.Int32: 31,
    ua.VariantType.UInt32: 32,
    ua.VariantType.Int64: 63,
    ua.VariantType.UInt64: 64,
}


def _cast(value: float, kind: ua.VariantType) -> bool | int | float:
    """A value as the type of its node; counts go on from 0 where the type ends."""
    if kind == ua.VariantType.Boolean:
        return bool(value)
    if kind in _BITS:
        return int(value) & ((1 << _BITS[kind]) - 1)
    if kind in (ua.VariantType.Float, ua.VariantType.Double):
        return float(value)
    raise UsageError(
        f"a node of type {kind.name} takes no number: a Boolean, integer or Float does"
    )


def _reason(error: BaseException) -> str:
    return first_line(error) if str(error) else "no answer in time"
