"""A business's client of the HTTP API, written from docs/api.md alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

import httpx

SETTLE_LIMIT_S = 15.0


class Business:
    """A business with an API key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        # `trust_env=False`: a proxy of the machine is not part of the test.
        self.http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False
        )

    async def __aenter__(self) -> Business:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def post(self, to: str, content: str, *, key: str | None = None, **fields: Any) -> httpx.Response:
        """Posts one message; whatever the answer is."""
        headers = {"Idempotency-Key": key} if key else {}
        body = {"to": to, "type": "one_way", "content": content} | fields
        return await self.http.post("/v1/messages", json=body, headers=headers)

    async def say(self, to: str, content: str, **fields: Any) -> str:
        """Posts one message that is accepted; its id."""
        answer = await self.post(to, content, **fields)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    async def say_all(self, to: str, texts: Iterable[str], **fields: Any) -> list[str]:
        """Posts messages one after another; their ids."""
        return [await self.say(to, text, **fields) for text in texts]

    async def bulk(self, lines: Iterable[dict], encoding: str | None = None, encode=None) -> list[dict]:
        """Posts NDJSON; the answer's lines, the total last."""
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        headers = {"Content-Type": "application/x-ndjson"}
        if encoding:
            body = encode(body)
            headers["Content-Encoding"] = encoding
        answer = await self.http.post("/v1/messages/bulk", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    async def message(self, id: str) -> dict:
        """A message with its timeline, as soon as history has it."""
        return await self.eventually(id, lambda message: True)

    async def reaches(self, id: str, status: str) -> dict:
        """The message, once it has this status."""
        return await self.eventually(id, lambda message: message["status"] == status)

    async def eventually(self, id: str, wanted) -> dict:
        """The message, once it is as wanted: history follows the log within moments."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while True:
            answer = await self.http.get(f"/v1/messages/{id}")
            assert answer.status_code in (200, 404), answer.text
            if answer.status_code == 200 and wanted(answer.json()):
                return answer.json()
            assert time.monotonic() < deadline, f"not so after {SETTLE_LIMIT_S} s: {answer.text}"
            await asyncio.sleep(0.05)

    async def list(self, **query: Any) -> dict:
        """A page of what this business sent."""
        answer = await self.http.get("/v1/messages", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()
