"""A server of OPC UA in a process of its own, so that it can be killed.

    opcua_server.py PORT

Prints a line when it listens, and then the value of its node Counter whenever that is another.
"""

import asyncio
import logging
import sys

from asyncua import Server, ua

logging.getLogger("asyncua").setLevel(logging.CRITICAL)


async def main(port: str) -> None:
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    await server.register_namespace("line")
    nodes = {}
    for name, value, kind in (
        ("Anomalous", True, ua.VariantType.Boolean),
        ("Counter", 0, ua.VariantType.UInt16),
    ):
        node = await server.nodes.objects.add_variable(ua.NodeId(name, 2), name, value, kind)
        await node.set_writable()
        nodes[name] = node
    async with server:
        print("listens", flush=True)
        before = 0
        while True:
            await asyncio.sleep(0.02)
            now = await nodes["Counter"].read_value()
            if now != before:
                before = now
                print(now, flush=True)


asyncio.run(main(sys.argv[1]))
