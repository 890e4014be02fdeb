"""Events to a broker of MQTT: at least once, in order, with a status that outlives the watch."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Sequence
from typing import Any

from padim_edge.errors import MissingDependencyError, first_line
from padim_edge.live.addresses import Address, number, one_of
from padim_edge.live.event import Event
from padim_edge.live.sink import SinkError
from padim_edge.live.sinks.secrets import PASSWORD, password

try:
    from paho.mqtt import client as paho
    from paho.mqtt.enums import CallbackAPIVersion
except ModuleNotFoundError as error:
    raise MissingDependencyError("MQTT as a sink", "paho", "live") from error

_TLS = ("ca", "cert", "key")
_KEEPALIVE = 15
"""Seconds after which a broker that misses us, or we it, knows."""


class MqttSink:
    """``mqtt://`` and ``mqtts://user@host:port/topic``: each event on ``topic/camera/kind``.

    Quality of service 1: an event is delivered when the broker has acknowledged it.
    ``topic/status`` is "online" or "offline", retained; a watch that dies is "offline" by its last
    will.
    """

    is_state = False
    wants_pictures = False

    def __init__(self, address: Address) -> None:
        secure = address.scheme == "mqtts"
        allowed = ("client_id", "discovery", "retain", "timeout", PASSWORD)
        address.check_options((*allowed, *(_TLS if secure else ())))
        if not address.host:
            raise address.refused(f"name a broker, like {address.scheme}://broker/line/3")
        self.address = str(address)
        self._host, self._port = address.host, address.port or (8883 if secure else 1883)
        self._topic = address.path.strip("/") or "padim-edge"
        if re.search(r"[+#\0]", self._topic):
            raise address.refused(f"{self._topic} is no topic to write to: leave out + and #")
        self._retain = address.option("retain", one_of("yes", "no"), "no") == "yes"
        self._discovery = address.option("discovery", one_of("homeassistant", "none"), "none")
        self._timeout = address.option("timeout", number(), 10.0)
        # Of two clients of one name the broker throws one out, for ever.
        name = f"padim-edge-{socket.gethostname()}-{secrets.token_hex(4)}"
        self._client_id = address.options.get("client_id", name)
        self._user, self._password = address.user, password(address)
        self._context = _context(address) if secure else None
        self._client: paho.Client | None = None
        self._changed = threading.Condition()
        self._answer: Any = None
        self._is_connected = False
        self._why = ""
        self._acknowledged: set[int] = set()
        self._announced: set[str] = set()

    def open(self) -> None:
        """Connect, and say that we are there."""
        self.close()
        self._answer, self._why = None, "no answer"
        self._announced.clear()
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self._client_id, reconnect_on_failure=False
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.connect_timeout = self._timeout
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        if self._user:
            client.username_pw_set(self._user, self._password)
        if self._context:
            client.tls_set_context(self._context)
        self._client = client
        try:
            client.connect(self._host, self._port, keepalive=_KEEPALIVE)
            client.loop_start()
            with self._changed:
                self._changed.wait_for(lambda: self._answer is not None, self._timeout)
            if not self._is_connected:
                raise SinkError(f"{self.address}: {self._why}")
            self._publish([(f"{self._topic}/status", "online", True)])
        except (OSError, ValueError) as error:
            self.close()
            raise SinkError(f"{self.address}: {first_line(error)}") from error
        except SinkError:
            self.close()
            raise

    def send(self, events: Sequence[Event]) -> None:
        """Publish them, and wait until the broker has them all."""
        if not self._is_connected:
            raise SinkError(f"{self.address}: {self._why}")
        messages = []
        for event in events:
            camera, kind = _level(event.record["camera"]), event.record["kind"]
            if self._discovery != "none" and kind == "verdict" and camera not in self._announced:
                messages += _discovery(self._topic, camera, event.record["camera"])
                self._announced.add(camera)
            topic = "/".join(filter(None, (self._topic, camera, kind)))
            messages.append((topic, event.to_json(), self._retain and kind == "verdict"))
        self._publish(messages)

    def _publish(self, messages: Sequence[tuple[str, str, bool]]) -> None:
        client = self._client
        if client is None:
            raise SinkError(f"{self.address}: not connected")
        with self._changed:
            self._acknowledged.clear()
        sent = {
            client.publish(topic, text, qos=1, retain=retain).mid
            for topic, text, retain in messages
        }
        with self._changed:
            while not sent <= self._acknowledged:
                known = len(self._acknowledged)
                # As long as the broker goes on acknowledging, it may take its time.
                news = self._changed.wait_for(
                    lambda: len(self._acknowledged) > known or not self._is_connected,  # noqa: B023
                    self._timeout,
                )
                if not self._is_connected:
                    raise SinkError(f"{self.address}: {self._why}")
                if not news:
                    raise SinkError(
                        f"{self.address}: not acknowledged within {self._timeout:g} seconds"
                    )

    def close(self) -> None:
        """Say that we go, and disconnect."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            if self._is_connected:
                said = client.publish(f"{self._topic}/status", "offline", qos=1, retain=True)
                # Of a connection that was lost at this moment paho raises; the will says it then.
                with contextlib.suppress(RuntimeError, ValueError):
                    said.wait_for_publish(1.0)
        finally:
            client.disconnect()
            client.loop_stop()
            self._is_connected = False

    # --- in paho's thread ---------------------------------------------------------------------

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, code: Any, _: Any) -> None:
        with self._changed:
            self._is_connected = client is self._client and not code.is_failure
            self._answer, self._why = code, f"the broker says: {code}"
            self._changed.notify_all()

    def _on_disconnect(
        self, client: paho.Client, _data: Any, _flags: Any, code: Any, _: Any
    ) -> None:
        with self._changed:
            if client is self._client:
                if self._is_connected:
                    self._why = f"the connection was lost ({code})"
                self._is_connected = False
                self._answer = self._answer or code
                self._changed.notify_all()

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, *_: Any) -> None:
        with self._changed:
            self._acknowledged.add(mid)
            self._changed.notify_all()


def _context(address: Address) -> ssl.SSLContext:
    """TLS as the options want it; the broker's certificate is always checked."""
    if ("key" in address.options) > ("cert" in address.options):
        raise address.refused("a key without its certificate: give cert=FILE, too")
    try:
        context = ssl.create_default_context(cafile=address.options.get("ca"))
        if "cert" in address.options:
            context.load_cert_chain(address.options["cert"], address.options.get("key"))
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(address.options[name] for name in _TLS if name in address.options)
        raise address.refused(f"{files} cannot be read: {first_line(error)}") from error
    return context


def _level(name: str) -> str:
    """A name as one level of a topic."""
    return re.sub(r"[/+#\0]", "_", name)


def _discovery(topic: str, camera: str, name: str) -> list[tuple[str, str, bool]]:
    """What makes Home Assistant show a camera: retained, under its own prefix.

    https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
    """
    node = re.sub(r"[^A-Za-z0-9_-]", "_", f"{topic}_{camera}")
    common = {
        "state_topic": f"{topic}/{camera}/verdict",
        "availability_topic": f"{topic}/status",
        "payload_available": "online",
        "payload_not_available": "offline",
        "device": {"identifiers": [f"padim-edge_{node}"], "name": name, "model": "padim-edge"},
    }
    anomalous = {
        "name": "Anomalous",
        "unique_id": f"padim-edge_{node}_anomalous",
        "device_class": "problem",
        "value_template": "{{ 'ON' if value_json.is_anomalous else 'OFF' }}",
    }
    score = {
        "name": "Score",
        "unique_id": f"padim-edge_{node}_score",
        "state_class": "measurement",
        "value_template": "{{ value_json.score }}",
    }
    prefix = "homeassistant"
    return [
        (f"{prefix}/binary_sensor/{node}/anomalous/config", json.dumps(common | anomalous), True),
        (f"{prefix}/sensor/{node}/score/config", json.dumps(common | score), True),
    ]
