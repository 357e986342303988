"""Schemathesis against /openapi.json: no 5xx, and no status, content type or body that is not documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server import Server, environment, new_phone

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def run(server: Server, credential: str, directory: Path) -> None:
    """One bounded run with a credential; its report is the failure's message."""
    schemathesis = Path(sys.executable).with_name("schemathesis")
    command = [schemathesis, "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--max-examples", "30"]
    command += ["--header", f"Authorization: Bearer {credential}", "--request-timeout", "20", "--continue-on-failure"]
    command += ["--phases", "examples,coverage,fuzzing,stateful", "--suppress-health-check", "all", "--no-color"]
    here = Path(__file__).parent
    hooks = {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(here)}
    done = subprocess.run(
        command, cwd=directory, env=environment() | hooks, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", ["business", "phone", "nobody"])
def test_the_api_answers_as_it_is_documented(new_server, tmp_path: Path, who: str):
    server: Server = new_server()
    number = new_phone()
    credential = {"business": server.demo_key, "phone": server.token(number), "nobody": "nobody"}[who]
    run(server, credential, tmp_path)
    assert server.process and server.process.poll() is None
