"""A client that is many callers at once: one keep-alive connection each, nothing between it and the socket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass


@dataclass
class Answer:
    """What was answered, and when it was asked and answered, in seconds of the loop's clock."""

    status: int
    headers: dict[str, str]
    body: bytes
    asked: float
    answered: float

    def json(self) -> dict:
        return json.loads(self.body)


class Caller:
    """One caller of `POST /v1/messages` at one address."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def dial(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    def hang_up(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def post(self, api_key: str, idempotency_key: str, body: bytes) -> Answer:
        """One request; `OSError` or `EOFError` where the other side goes away before it has answered."""
        if self.writer is None:
            await self.dial()
        assert self.reader is not None and self.writer is not None
        loop = asyncio.get_running_loop()
        asked = loop.time()
        head = (
            f"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {api_key}\r\n"
            f"Idempotency-Key: {idempotency_key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        await self.writer.drain()
        status, *fields = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        content = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(status.split()[1]), headers, content, asked, loop.time())


async def insist(caller: Caller, elsewhere: int, api_key: str, idempotency_key: str, body: bytes) -> list[Answer]:
    """Asks until it is answered for good: again when it is told to, and at the other address where nobody answers."""
    answers = []
    while True:
        try:
            answer = await caller.post(api_key, idempotency_key, body)
        except (OSError, EOFError):
            caller.hang_up()
            caller.port = elsewhere
            continue
        answers.append(answer)
        if answer.status not in (409, 429, 503):
            caller.hang_up()
            return answers
        await asyncio.sleep(int(answer.headers["retry-after"]))
