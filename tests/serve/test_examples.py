"""The Dockerfile and the manifest of examples/serve: what they start, and what they ask."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from padim_edge.cli.app import app
from padim_edge.serve.service import DRAIN_SECONDS

EXAMPLES = Path(__file__).parents[2] / "examples" / "serve"
TOKEN = "0123456789abcdef"

pytestmark = pytest.mark.slow


def instruction(name: str) -> list[str]:
    """The list that an instruction of the Dockerfile ends with."""
    text = (EXAMPLES / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(rf"^{name} .*$", text, re.M)
    return json.loads(line[line.index("[") :])


def test_the_container_serves_every_model_and_its_health_check_knows(model, tmp_path):
    """What the Dockerfile starts, with a free port and a folder of the test's own."""
    shutil.copy(model, tmp_path / "bottle.onnx")
    shutil.copy(model, tmp_path / "cable.onnx")
    programs = Path(sys.executable).parent
    assert (programs / "padim-edge").exists(), "pip install -e . makes it"

    def here(words: list[str], port: str) -> list[str]:
        replaced = {"/models": str(tmp_path), "8000": port, "0.0.0.0": "127.0.0.1"}
        return [re.sub("|".join(replaced), lambda one: replaced[one[0]], word) for word in words]

    process = subprocess.Popen(
        [*here(instruction("ENTRYPOINT"), "0"), "--threads", "1"],
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PADIM_EDGE_TOKEN": TOKEN,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        assert "serving bottle, cable on " in line
        health = here(instruction("HEALTHCHECK"), line.strip().rstrip("/").rpartition(":")[2])
        assert (
            subprocess.run([sys.executable, *health[1:]], check=False, timeout=60).returncode == 0
        )
        process.terminate()  # which must reach the program, not a shell around it
        assert process.wait(60) == 0
    finally:
        process.kill()
        said = process.communicate()[1]
    assert said.endswith("stopped: what was begun has been answered\n")
    gone = subprocess.run(
        [sys.executable, *health[1:]], check=False, timeout=60, stderr=subprocess.DEVNULL
    )
    assert gone.returncode != 0


def test_the_manifest_gives_options_that_exist_and_time_to_drain():
    text = (EXAMPLES / "kubernetes.yaml").read_text()
    arguments = json.loads(re.search(r"args: (\[.*\])", text)[1])
    command = typer.main.get_command(app).commands["serve"]
    command.make_context("serve", ["model.onnx", *arguments])
    grace = int(re.search(r"terminationGracePeriodSeconds: (\d+)", text)[1])
    wait = int(re.search(r'command: \[sleep, "(\d+)"\]', text)[1])
    assert grace >= wait + DRAIN_SECONDS
    assert set(re.findall(r"path: (/v2\S+?),", text)) == {"/v2/health/live", "/v2/health/ready"}
    for needed in ("runAsNonRoot: true", "readOnlyRootFilesystem: true", "drop: [ALL]"):
        assert needed in text
    user, group = (re.search(rf"runAs{one}: (\d+)", text)[1] for one in ("User", "Group"))
    assert f"USER {user}:{group}\n" in (EXAMPLES / "Dockerfile").read_text()
