"""Real servers on 127.0.0.1 that are told of events; each can be stopped and started again."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from live_events import until


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def program(name: str, package: str, *places: str) -> str:
    """A program, or skip and say which Debian package has it."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *places))
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"no {name}: apt-get install {package}")
    return found


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate for 127.0.0.1, its key, and that of who signed it."""
    pytest.importorskip("cryptography", reason="no cryptography: pip install cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.now(timezone.utc)

    def make(name: str, key: Any, issuer: str, signer: Any, *extensions: Any) -> bytes:
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            key.public_key(),
            x509.random_serial_number(),
            now - timedelta(days=1),
            now + timedelta(days=1),
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        made = builder.sign(signer, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)

    ours, theirs = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    files = folder / "server.pem", folder / "server.key", folder / "ca.pem"
    files[0].write_bytes(make("server", ours, "ca", theirs, address))
    files[1].write_bytes(
        ours.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    authority = x509.BasicConstraints(ca=True, path_length=None)
    files[2].write_bytes(make("ca", theirs, "ca", theirs, authority))
    return files


def application(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that an application of OPC UA signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    now, key = datetime.now(timezone.utc), rsa.generate_private_key(65537, 2048)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin, end = now - timedelta(days=1), now + timedelta(days=1)
    names = [x509.UniformResourceIdentifier(f"urn:padim-edge:{name}")]
    builder = x509.CertificateBuilder(
        who, who, key.public_key(), x509.random_serial_number(), begin, end
    ).add_extension(x509.SubjectAlternativeName(names), critical=False)
    files = folder / f"{name}.der", folder / f"{name}.pem"
    encoding, plain = serialization.Encoding, serialization.NoEncryption()
    files[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(encoding.DER))
    files[1].write_bytes(key.private_bytes(encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return files


class Mosquitto:
    """A broker, and a client that takes down all that is published."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.port = free_port()
        self._program = program("mosquitto", "mosquitto", "/usr/sbin")
        self._configuration = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            "user root" if os.geteuid() == 0 else "",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
            *(more or ("allow_anonymous true",)),
        ]
        self._configuration.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._program, "-c", self._configuration],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: listens(self.port))

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def listener(self, **options: Any) -> Listener:
        return Listener(self.port, **options)


class Listener:
    """A client whose session outlives the broker.

    Attributes:
        messages: topic, text, and whether it was retained.
    """

    def __init__(
        self, port: int, ca: Path | None = None, user: tuple[str, str] | None = None
    ) -> None:
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self.messages: list[tuple[str, str, bool]] = []
        self._ready = threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
        client.reconnect_delay_set(0.05, 0.2)
        client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        client.on_subscribe = lambda *_: self._ready.set()
        client.on_message = lambda _client, _data, message: self.messages.append(
            (message.topic, message.payload.decode(), message.retain)
        )
        if ca:
            client.tls_set(ca_certs=str(ca))
        if user:
            client.username_pw_set(*user)
        client.connect("127.0.0.1", port)
        client.loop_start()
        assert self._ready.wait(30)
        self._client = client

    def events(self) -> list[dict[str, Any]]:
        """Those that are events."""
        return [
            json.loads(text)
            for topic, text, _ in list(self.messages)
            if not topic.endswith(("status", "config"))
        ]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Postgres:
    """A server with one database, "line"."""

    def __init__(self) -> None:
        places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
        self._initdb = program("initdb", "postgresql", *places)
        self._postgres = program("postgres", "postgresql", *places)
        self.port = free_port()
        # Not below pytest's folder, which is root's alone; it refuses to run as root.
        self.folder = Path(tempfile.mkdtemp(prefix="padim-edge-postgres-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("no user postgres: apt-get install postgresql")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        arguments = ["--no-sync", "--auth=trust", "--username=line", "--locale=C", "-E", "UTF8"]
        self._run([self._initdb, "-D", self.folder / "data", *arguments], check=True)

    def _run(self, command: Sequence[Any], **options: Any) -> Any:
        return subprocess.run(command, cwd=self.folder, capture_output=True, **self._as, **options)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(self._postgres, "-D", self.folder / "data", "-p", str(self.port)),
                *(
                    "-c",
                    "listen_addresses=127.0.0.1",
                    "-c",
                    f"unix_socket_directories={self.folder}",
                ),
                *("-c", "shared_buffers=4MB", "-c", "max_connections=20"),
            ],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as,
        )
        until(self._answers)

    def _answers(self) -> bool:
        import psycopg

        try:
            self.ask("SELECT 1", "postgres")
        except psycopg.OperationalError:
            return False
        return True

    def ask(self, query: str, database: str = "line") -> list[Any]:
        """Rows of a query, of a connection of its own."""
        import psycopg

        address = f"host=127.0.0.1 port={self.port} user=line dbname={database}"
        with psycopg.connect(address, autocommit=True) as connection:
            found = connection.execute(query)
            return found.fetchall() if found.description else []

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # fast: connections are cut
        self._process.wait(30)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Receiver:
    """A web receiver.

    Attributes:
        requests: headers and bodies of those that were accepted.
        answer: given path, headers and body; the code, and headers.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []
        self.answer: Callable[[dict[str, str], bytes], tuple[int, dict[str, str]]] = (
            lambda _headers, _body: (204, {})
        )

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                if len(body) < int(headers["content-length"]):  # cut off: we are being stopped
                    self.close_connection = True
                    return
                code, more = receiver.answer(headers, body)
                receiver.paths.append(self.path)
                if code < 300:
                    receiver.requests.append((headers, body))
                self.send_response(code)
                for name, value in {"Content-Length": "0", **more}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A connection that was cut is nothing to print."""

            daemon_threads = True
            block_on_close = False

            def process_request(self, request: Any, client_address: Any) -> None:
                receiver._connections.append(request)
                super().process_request(request, client_address)

        self._connections: list[socket.socket] = []
        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def events(self) -> list[dict[str, Any]]:
        """What came, one after another, however many in a request."""
        found: list[dict[str, Any]] = []
        for _, body in list(self.requests):
            content = json.loads(body)
            found += content if isinstance(content, list) else [content]
        return found

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                connection.close()


class _Looped:
    """A server in an event loop of a thread of its own."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def serve(self) -> None:
        """Begin, and return."""
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, daemon=True)
        self._thread.start()
        self.call(self.serve())

    def call(self, work: Any) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def stop(self) -> None:
        self.call(self.end())
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


class ModbusPlc(_Looped):
    """A PLC with 16 coils and 16 holding registers, which remembers every write.

    Attributes:
        writes: place ("coil 0", "register 1") and value, in order.
    """

    def __init__(self) -> None:
        pytest.importorskip("pymodbus", reason="no pymodbus: pip install 'padim-edge[plc]'")
        self.port = free_port()
        self.writes: list[tuple[str, int]] = []

    async def serve(self) -> None:
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        def look(is_answer: bool, request: Any) -> Any:
            if not is_answer and request.function_code == 5:
                self.writes.append((f"coil {request.address}", int(request.bits[0])))
            if not is_answer and request.function_code == 6:
                self.writes.append((f"register {request.address}", request.registers[0]))
            return request

        def block(kind: Any, value: Any) -> Any:
            return [SimData(0, count=16, values=value, datatype=kind)]

        bits, registers = block(DataType.BITS, False), block(DataType.REGISTERS, 0)
        self._server = ModbusTcpServer(
            SimDevice(7, (bits, bits, registers, registers)),
            address=("127.0.0.1", self.port),
            trace_pdu=look,
        )
        await self._server.serve_forever(background=True)

    async def end(self) -> None:
        await self._server.shutdown()

    def last(self, place: str) -> int | None:
        """What was last written there."""
        return next((value for name, value in reversed(self.writes) if name == place), None)


class SlowWay:
    """A way to a server of this machine on which answers take their time.

    Attributes:
        port: of the way.
        delay: seconds for each piece of an answer.
    """

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listening.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            for pair in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, to: socket.socket, slowly: bool) -> None:
        try:
            while piece := source.recv(1 << 16):
                time.sleep(self.delay * slowly)
                to.sendall(piece)
        except OSError:
            pass
        for one in (source, to):
            one.close()

    def close(self) -> None:
        """Take no more connections."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


class OpcuaPlc(_Looped):
    """A server of OPC UA with five nodes in namespace 2.

    Args:
        certificate: and its key, for clients that sign and encrypt.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        pytest.importorskip("asyncua", reason="no asyncua: pip install 'padim-edge[plc]'")
        self.port = free_port()
        self._certificate = certificate

    async def serve(self) -> None:
        """Its address space takes seconds to build, so it stays when the network goes."""
        from asyncua import Server, ua

        self._server = Server()
        await self._server.init()
        self._server.set_endpoint(f"opc.tcp://127.0.0.1:{self.port}/")
        policies = [ua.SecurityPolicyType.NoSecurity]
        if self._certificate:
            policies.append(ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt)
            await self._server.load_certificate(str(self._certificate[0]))
            await self._server.load_private_key(str(self._certificate[1]))
        self._server.set_security_policy(policies)
        await self._server.register_namespace("line")
        self._nodes = {}
        for name, value, kind in (
            ("Anomalous", False, ua.VariantType.Boolean),
            ("Score", 0.0, ua.VariantType.Float),
            ("Counter", 0, ua.VariantType.UInt16),
            ("Heartbeat", 0, ua.VariantType.UInt32),
            ("Name", "", ua.VariantType.String),
        ):
            node = await self._server.nodes.objects.add_variable(
                ua.NodeId(name, 2), name, value, kind
            )
            await node.set_writable()
            self._nodes[name] = node
        await self._server.start()

    def start(self) -> None:
        if self._loop is None:
            super().start()
        else:
            self.call(self._server.bserver.start())

    def stop(self) -> None:
        """Close the port and every connection."""
        self.call(self._server.bserver.stop())

    def value(self, name: str) -> Any:
        """What a node holds now."""
        return self.call(self._nodes[name].read_value())

    def remove(self) -> None:
        super().stop()

    async def end(self) -> None:
        await self._server.stop()
