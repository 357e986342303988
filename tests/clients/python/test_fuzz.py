"""Hostile and broken clients: the gateway goes on serving others, and its memory stays flat."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from business import Business
from phone import Phone, Session
from server import Server

# Above what a first round of traffic leaves behind (allocator, caches); a leak of what is thrown at it is far more.
FLAT_KIB = 24 * 1024
SEED = int(os.environ.get("ESHAAR_SEED", random.SystemRandom().randrange(2**32)))
# Within this the server ends what goes wrong: noise may begin with the head of a frame that is longer than what comes, which
# is waited for as long as for any client that says nothing (75 s).
ENDED_LIMIT_S = 90
CLOSES = {
    1000,
    1001,
    1002,
    1003,
    1006,
    1007,
    1009,
    4000,
    4001,
    4003,
    4008,
    4009,
    4010,
    4501,
    4503,
    4504,
    4505,
    4508,
    4510,
    4511,
    4512,
}


class Target:
    """A server under attack, with an honest business and an honest phone beside the attackers."""

    def __init__(self, server: Server, demo: Business) -> None:
        self.server, self.demo = server, demo
        self.victim = Phone.new(server)
        self.seeds = random.Random(SEED)

    async def serves(self) -> None:
        """Fails unless an honest user is served, now."""
        async with await self.victim.connect(**{"from": "head"}) as session:
            await session.until("caught_up")
            id = await self.demo.say(self.victim.number, "still there?")
            message = await session.expect("message", limit_s=5)
            assert message["id"] == id
            await session.send("ack", cursor=message["cursor"])
            await self.demo.reaches(id, "delivered")

    async def survives(self, attack: Callable[[], Awaitable[None]], rounds: int = 2, warm_up: int = 1) -> None:
        """Runs an attack again and again: served after each round, and memory flat once the bounded caches (log tails,
        page caches, windows of repeats) are warm."""
        for _ in range(warm_up):
            await attack()
            await self.serves()
        before = self.server.rss_kib()
        for _ in range(rounds):
            await attack()
            await self.serves()
        grown = self.server.rss_kib() - before
        assert grown < FLAT_KIB, f"grew by {grown} KiB, seed {SEED}"


@pytest_asyncio.fixture
async def target(new_server) -> AsyncIterator[Target]:
    server = new_server()
    async with Business(server.url, server.demo_key) as demo:
        yield Target(server, demo)


async def closed_with(session: Session) -> int:
    """The close code of a session that may have been cut off."""
    try:
        while True:
            await asyncio.wait_for(session.socket.recv(), 40)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


def mutated(seeds: random.Random) -> str | bytes:
    """A frame that is nearly right, or not at all."""
    frames = [
        {"op": "hello"},
        {"op": "hello", "after": "AQECAAAA"},
        {"op": "ack", "cursor": "AQECAAAA"},
        {"op": "ack", "ids": ["019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"] * seeds.randrange(1, 500)},
        {"op": "read", "ids": []},
        {"op": "ping"},
        {"op": "renew", "access_token": "x" * seeds.randrange(10_000)},
        {"op": "send", "ref": "a", "to": "demo", "content": "🙂" * seeds.randrange(1_000)},
        {"op": "send", "ref": "b", "conversation_id": "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa", "content": "x"},
        {"op": "read", "conversation_id": "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa", "up_to": "AQAB"},
        {"op": seeds.choice(["join", "leave"]), "conversation_id": "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"},
        {"op": "typing", "conversation_id": "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa", "on": True},
        {"op": "bye"},
        {"op": None},
    ]
    text = json.dumps(seeds.choice(frames), ensure_ascii=seeds.random() < 0.5)
    how = seeds.randrange(6)
    if how == 0:
        return seeds.randbytes(seeds.randrange(1, 4_000))
    if how == 1:
        return seeds.randbytes(seeds.randrange(1, 400)).decode("latin-1")
    if how == 2:
        return text[: seeds.randrange(len(text))]
    if how == 3:
        place = seeds.randrange(len(text))
        return text[:place] + chr(seeds.randrange(32, 0xD7FF)) + text[place + 1 :]
    if how == 4:
        return "[" * seeds.randrange(1, 10_000)
    return text


async def test_random_frames(target: Target):
    async def client(phone: Phone, seeds: random.Random) -> None:
        async with await phone.dial() as session:
            closing = asyncio.create_task(closed_with(session))
            try:
                if seeds.random() < 0.8:
                    await session.send("hello")
                for _ in range(seeds.randrange(1, 60)):
                    await session.send_text(mutated(seeds))
            except ConnectionClosed:
                pass
            await session.socket.close()
            assert await closing in CLOSES, f"seed {SEED}"

    async def attack() -> None:
        phones = [Phone.new(target.server) for _ in range(20)]
        for _ in range(5):
            await asyncio.gather(*(client(phone, random.Random(target.seeds.random())) for phone in phones))

    await target.survives(attack)


async def upgraded(phone: Phone, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A socket right after the upgrade, for bytes that no library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    key = base64.b64encode(os.urandom(16)).decode()
    head = [
        "GET /v1/ws HTTP/1.1",
        "Host: x",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Protocol: eshaar.v1.json",
        f"Authorization: Bearer {phone.token}",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    assert b" 101 " in answer, answer
    return reader, writer


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True, length: int | None = None) -> bytes:
    """A WebSocket frame, right or wrong; `length` is what its header claims."""
    size = len(payload) if length is None else length
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", (0x80 if final else 0) | opcode, mask_bit | size)
    elif size < 65_536:
        head = struct.pack("!BBH", (0x80 if final else 0) | opcode, mask_bit | 126, size)
    else:
        head = struct.pack("!BBQ", (0x80 if final else 0) | opcode, mask_bit | 127, size)
    return head + (b"\0\0\0\0" if masked else b"") + payload


def wire_attacks(seeds: random.Random) -> dict[str, list[bytes]]:
    """Byte sequences behind an upgrade."""
    hello = frame(1, b'{"op":"hello"}')
    return {
        "noise": [seeds.randbytes(2_000)],
        "noise after hello": [hello, seeds.randbytes(2_000)],
        "a length of 2^62": [hello, frame(1, b"", length=2**62)],
        "a length of 10 MiB, sent": [hello, frame(1, b"x" * 10 * 1024 * 1024)],
        "a message of endless fragments": [hello, frame(1, b"x" * 1_000, final=False)]
        + [frame(0, b"x" * 1_000, final=False)] * 2_000,
        "a message within another's fragments": [hello, frame(1, b"", final=False)]
        + [frame(0, b"", final=False)] * 20_000
        + [hello],
        "an unmasked frame": [frame(1, b'{"op":"hello"}', masked=False)],
        "invalid UTF-8": [hello, frame(1, b"\xc3\x28")],
        "a reserved opcode": [hello, frame(5, b"x")],
        "a long ping": [hello, frame(9, b"x" * 200)],
        "a flood of pings": [hello] + [frame(9, b"x" * 100)] * 20_000,
        "a continuation of nothing": [hello, frame(0, b"x")],
        "a lone close": [frame(8, b"\x03\xe8")],
        "a close that is wrong": [hello, frame(8, b"\x01")],
        "compressed, not agreed": [hello, bytes([0xC1, 0x80, 0, 0, 0, 0])],
    }


async def ended_by_the_server(phone: Phone, port: int, pieces: list[bytes]) -> None:
    """Sends the pieces and reads until the server ends the connection, which it must do by itself."""
    reader, writer = await upgraded(phone, port)

    async def write() -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    async def read() -> None:
        while await reader.read(65_536):
            pass

    # Reset while writing or reading: ended is ended.
    await asyncio.gather(write(), read(), return_exceptions=True)
    writer.close()


async def test_broken_bytes_on_the_wire(target: Target):
    async def one(name: str, pieces: list[bytes]) -> None:
        try:
            ended = ended_by_the_server(Phone.new(target.server), target.server.port, pieces)
            await asyncio.wait_for(ended, ENDED_LIMIT_S)
        except TimeoutError:
            raise AssertionError(f"the server kept the connection after {name}, seed {SEED}") from None

    async def attack() -> None:
        await asyncio.gather(*(one(name, pieces) for name, pieces in wire_attacks(target.seeds).items()))

    await target.survives(attack)


async def test_half_open_sockets(target: Target):
    """Clients that vanish without a word at every step of opening."""

    async def attack() -> None:
        held = []
        for _ in range(60):
            phone = Phone.new(target.server)
            _, silent = await asyncio.open_connection("127.0.0.1", target.server.port)
            _, cut = await asyncio.open_connection("127.0.0.1", target.server.port)
            cut.write(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgr")
            _, greeting = await upgraded(phone, target.server.port)
            _, greeted = await upgraded(phone, target.server.port)
            greeted.write(frame(1, b'{"op":"hello"}'))
            held += [silent, cut, greeting, greeted]
        await target.serves()
        for writer in held:
            # A reset, as from a phone that lost its network and its state.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

    await target.survives(attack)


async def test_senders_of_a_byte_a_second(target: Target):
    """A hello and a request that never end do not hold their connections."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> float:
        began = time.monotonic()
        ended = asyncio.create_task(reader.read())
        try:
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                if (await asyncio.wait([ended], timeout=1))[0]:
                    break
        except OSError:
            pass
        writer.close()
        ended.cancel()
        return time.monotonic() - began

    port = target.server.port
    hellos = [await upgraded(Phone.new(target.server), port) for _ in range(20)]
    requests = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    dripping = [
        asyncio.create_task(drip(*ends, frame(1, b'{"op":"hello","device":"' + b"x" * 90 + b'"}'))) for ends in hellos
    ]
    dripping += [asyncio.create_task(drip(*ends, b"GET /health HTTP/1.1\r\nX: " + b"x" * 100)) for ends in requests]
    await target.serves()
    for took in await asyncio.gather(*dripping):
        assert took < 60, f"a dripping client held its connection for {took:.0f} s"
    await target.serves()


@pytest.mark.timeout(180)
async def test_slow_readers_under_load(target: Target):
    """Phones that ask for everything and never read: others are served, memory is bounded."""
    slow = [Phone.new(target.server) for _ in range(30)]
    text = "x" * 4_000

    async def attack() -> None:
        sockets = []
        for phone in slow:
            reader, writer = await upgraded(phone, target.server.port)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            reader._transport.pause_reading()
            writer.write(frame(1, b'{"op":"hello","from":"start"}'))
            sockets.append(writer)
        lines = [{"to": phone.number, "type": "one_way", "content": text} for _ in range(100) for phone in slow]
        total = (await target.demo.bulk(lines))[-1]
        assert total == {"accepted": len(lines), "rejected": 0}
        await target.serves()
        for writer in sockets:
            writer.transport.abort()

    await target.survives(attack, rounds=6, warm_up=6)
