"""A mobile app's client, written from docs/protocol.md alone: hello, keep the newest cursor, ack, resume."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from server import Server, new_phone

SUBPROTOCOL = "eshaar.v1.json"
FRAME_LIMIT_S = 15.0
# Hello from the start of what is kept.
START = {"from": "start"}

Frame = dict[str, Any]


class Session:
    """One connection, from its hello to its close."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.bye: Frame | None = None
        # How often it was told that something that is in no stream may be missing.
        self.missed = 0

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()

    async def send(self, op: str, **fields: Any) -> None:
        await self.send_text(json.dumps({"op": op} | fields))

    async def send_text(self, text: str | bytes) -> None:
        await self.socket.send(text)

    async def frame(self, limit_s: float = FRAME_LIMIT_S) -> Frame:
        """The next frame, but for `missed`, which is counted."""
        async with asyncio.timeout(limit_s):
            while (frame := json.loads(await self.socket.recv()))["op"] == "missed":
                self.missed += 1
        if frame["op"] == "bye":
            self.bye = frame
        return frame

    async def expect(self, op: str, limit_s: float = FRAME_LIMIT_S) -> Frame:
        """The next frame, which must be this one."""
        frame = await self.frame(limit_s)
        assert frame["op"] == op, f"expected {op}, got {frame}"
        return frame

    async def messages(self, count: int) -> list[Frame]:
        """The next messages, whether they waited or came just now: `caught_up` may stand between them."""
        messages: list[Frame] = []
        while len(messages) < count:
            frame = await self.frame()
            assert frame["op"] in ("message", "caught_up"), f"expected a message, got {frame}"
            messages += [frame] if frame["op"] == "message" else []
        return messages

    async def nothing_else(self) -> None:
        """Fails if another message is on its way to this session: what was written before comes before the pong."""
        await self.send("ping")
        assert [frame["op"] for frame in await self.until("pong") if frame["op"] != "caught_up"] == ["pong"]

    async def until(self, op: str) -> list[Frame]:
        """Every frame up to the first of this kind, which is the last of the list."""
        frames = [await self.frame()]
        while frames[-1]["op"] != op:
            frames.append(await self.frame())
        return frames

    async def silence(self, seconds: float = 0.5) -> None:
        """Fails if a frame comes within this time: what should not come can only be waited for."""
        try:
            frame = await self.frame(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"expected nothing, got {frame}")

    async def closed(self, limit_s: float = FRAME_LIMIT_S) -> int:
        """Reads to the end; returns the close code. The bye before it, if there was one, is in `bye`."""
        try:
            while True:
                await self.frame(limit_s)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, "the connection ended without a close frame"
            return closed.rcvd.code


class Phone:
    """A user with the token of their phone number."""

    def __init__(self, url: str, number: str, token: str) -> None:
        self.url = url
        self.number = number
        self.token = token

    @classmethod
    def new(cls, server: Server) -> Phone:
        """A phone that nobody has written to yet."""
        number = new_phone()
        return cls(server.ws_url, number, server.token(number))

    async def dial(self, **options: Any) -> Session:
        """Connects, without saying hello."""
        options.setdefault("additional_headers", {"Authorization": f"Bearer {self.token}"})
        options.setdefault("subprotocols", [SUBPROTOCOL])
        options.setdefault("compression", None)
        return Session(await connect(options.pop("url", self.url), proxy=None, **options))

    async def connect(self, **hello: Any) -> Session:
        """Connects and says hello; the welcome is checked."""
        session = await self.dial()
        await session.send("hello", **hello)
        welcome = await session.expect("welcome")
        assert welcome["principal"] == self.number and welcome["session"]
        return session

    async def connect_empty(self, **hello: Any) -> Session:
        """Connects where nothing waits: ready for live messages."""
        session = await self.connect(**hello)
        await session.expect("caught_up")
        return session

    async def fetch(self, count: int, **hello: Any) -> list[Frame]:
        """Connects, takes so many messages and not one more, and goes without a word."""
        async with await self.connect(**hello) as session:
            messages = await session.messages(count)
            await session.nothing_else()
        return messages


def contents(messages: list[Frame]) -> list[str]:
    """What the user reads."""
    return [message["content"] for message in messages]
