"""What is now in a coil and registers of a PLC, over Modbus TCP."""

from __future__ import annotations

import logging

from padim_edge.errors import MissingDependencyError, first_line
from padim_edge.live.addresses import Address, whole
from padim_edge.live.sink import SinkError, State
from padim_edge.live.sinks.plc import PlcSink

try:
    from pymodbus.client import ModbusTcpClient
    from pymodbus.exceptions import ModbusException
except ModuleNotFoundError as error:
    raise MissingDependencyError("Modbus as a sink", "pymodbus", "plc") from error

# It logs what it raises as well.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)

_PLACES = whole(0, 65535)


class ModbusSink(PlcSink):
    """``modbus://host:port?unit=1&coil=0&heartbeat=0&counter=1``.

    The coil is on while it is anomalous, and when nobody knows (``idle``). Then the holding
    registers: the counter, of verdicts, after the coil, so that a PLC that sees it change finds
    the coil's new value; the heartbeat. Both go on from 65535 to 0. Addresses count from 0, as the
    protocol does.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(address, ("coil", "counter", "heartbeat", "unit"))
        if not address.host or "coil" not in address.options:
            raise address.refused("name a PLC and a coil, like modbus://plc:502?unit=1&coil=0")
        self._host, self._port = address.host, address.port or 502
        self._unit = address.option("unit", whole(0, 255), 1)
        self._coil = address.option("coil", _PLACES, 0)
        registers = {
            name: address.option(name, _PLACES, 0)
            for name in ("counter", "heartbeat")
            if name in address.options
        }
        if len(set(registers.values())) < len(registers):
            raise address.refused("counter and heartbeat need a register each")
        self._registers = registers
        self._client: ModbusTcpClient | None = None

    def open(self) -> None:
        """Connect."""
        self.close()
        self._client = ModbusTcpClient(
            self._host, port=self._port, timeout=self._timeout, retries=0
        )
        if not self._client.connect():  # type: ignore[no-untyped-call]
            self.close()
            raise SinkError(f"{self.address}: no connection to {self._host}:{self._port}")

    def show(self, state: State) -> None:
        """Write it."""
        value = self._value(state)
        if value is not None:
            self._write("coil", self._coil, value)
        numbers = {"counter": state.verdicts, "heartbeat": state.beat}
        for name, register in self._registers.items():
            self._write(name, register, numbers[name] & 0xFFFF)

    def _write(self, name: str, place: int, value: int) -> None:
        client = self._client
        if client is None:
            raise SinkError(f"{self.address}: not connected")
        try:
            if name == "coil":
                answer = client.write_coil(place, bool(value), device_id=self._unit)
            else:
                answer = client.write_register(place, value, device_id=self._unit)
        except (ModbusException, OSError) as error:
            raise SinkError(f"{self.address}: {first_line(error)}") from error
        if answer.isError():
            raise SinkError(f"{self.address}: the PLC refuses {name}={place}: {answer}")

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.close()  # type: ignore[no-untyped-call]
