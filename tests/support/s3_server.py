"""A real S3 server, moto's, on this machine, and the environment that leads there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

BUCKET = "photos"


@contextlib.contextmanager
def s3_server() -> Iterator[Callable[[str, bytes], object]]:
    """Serves a bucket; gives what puts an object there. Skips where moto or s3fs is absent."""
    for name in ("moto", "s3fs", "boto3"):
        pytest.importorskip(name, reason="needs moto[server] and s3fs, of the extra dev and stores")
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    reached = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": host,
        "no_proxy": host,
    }
    try:
        with mock.patch.dict(os.environ, reached):
            os.environ.pop("AWS_PROFILE", None)  # until the end of the patch
            client = boto3.client("s3")
            client.create_bucket(Bucket=BUCKET)
            yield lambda key, body: client.put_object(Bucket=BUCKET, Key=key, Body=body)
    finally:
        server.stop()
        fsspec.filesystem("s3").clear_instance_cache()
