"""R5.9: bulk uploads from `requests`, which writes the whole body before it reads anything."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import requests

from server import REPOSITORY, Server, new_phone

LINES = int(os.environ.get("BULK_LINES", "40000"))


def messages(path: Path, refused: set[int]) -> Path:
    """A file of messages to one phone, some of which are refused."""
    phone = new_phone()
    with path.open("w") as file:
        for number in range(1, LINES + 1):
            to = "nobody" if number in refused else phone
            file.write(json.dumps({"to": to, "content": "x" * 60, "reference": str(number), "ttl_s": 60}) + "\n")
    return path


def test_the_code_of_the_guide_learns_of_each_line(server: Server, tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "guides" / "business.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "def send_all" in block]
    names = {"URL": server.url, "KEY": server.demo_key}
    exec(code, names)
    refused = {7, 100, LINES}
    total, lines = names["send_all"](str(messages(tmp_path / "messages.ndjson", refused)), "guide-1")
    assert {line["line"] for line in lines} == refused
    assert all(line["error"]["code"] == "invalid_phone" for line in lines)
    assert total == {"accepted": LINES - 3, "rejected": 3, "last_line": LINES}


def test_every_line_is_answered_though_nothing_is_read_before_all_is_sent(server: Server, tmp_path: Path) -> None:
    body = messages(tmp_path / "messages.ndjson", {5}).read_bytes()
    headers = {"Authorization": f"Bearer {server.demo_key}", "Content-Type": "application/x-ndjson"}
    answer = requests.post(f"{server.url}/v1/messages/bulk", data=body, headers=headers, timeout=120)
    *lines, total = [json.loads(line) for line in answer.content.splitlines()]
    assert [line["line"] for line in lines] == list(range(1, LINES + 1))
    assert len({line["id"] for line in lines if "id" in line}) == LINES - 1
    assert total == {"accepted": LINES - 1, "rejected": 1}


def test_an_upload_that_ends_early_says_so_to_a_client_that_reads_last(new_server, tmp_path: Path) -> None:
    server = new_server("ingest.bulk.unread_answers_bytes=200000", "ingest.bulk.stall_timeout_s=1")
    headers = {"Authorization": f"Bearer {server.demo_key}", "Content-Type": "application/x-ndjson"}
    body = messages(tmp_path / "messages.ndjson", set()).read_bytes() * 4
    answer = requests.post(f"{server.url}/v1/messages/bulk", data=body, headers=headers, timeout=120)
    *lines, total = [json.loads(line) for line in answer.content.splitlines()]
    assert total["error"]["code"] == "answers_unread"
    assert len(lines) == total["accepted"] == total["last_line"] < 4 * LINES
