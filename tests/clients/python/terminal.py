"""Commands of `eshaar` as they are used: run to their end, over pipes, and at a terminal."""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import Callable

from server import binary, environment

LIMIT_S = 15


async def eshaar(*arguments: object, **variables: str) -> tuple[int, str, str]:
    """Runs a command to its end: exit code, output, errors."""
    words = [str(word) for word in (binary(), *arguments)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe, env=environment() | variables)
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


class Terminal:
    """A command that is typed to and read from while it runs, over pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def run(cls, *arguments: object) -> Terminal:
        words = [str(word) for word in (binary(), *arguments)]
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, env=environment()))

    async def type(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    async def shows(self, line: str) -> None:
        """Reads on until this line."""
        async with asyncio.timeout(LIMIT_S):
            while (shown := (await self.process.stdout.readline()).decode().rstrip("\n")) != line:
                assert shown or not self.process.stdout.at_eof(), f"it ended before {line!r}"

    async def end(self) -> int:
        """The end of its input."""
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)


class Display:
    """What a terminal shows, as far as line editors write: text, line ends, moves of the cursor, deletions."""

    TOKEN = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|\x1b[^\[]|[\r\n\a\b]|[^\x1b\r\n\a\b]+", re.DOTALL)
    PARTIAL = re.compile(r"\x1b(\[\??[0-9;]*)?$")

    def __init__(self) -> None:
        self.rows = [""]
        self.row = self.column = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.rest = ""

    @property
    def lines(self) -> list[str]:
        return [row.rstrip() for row in self.rows]

    def feed(self, data: bytes) -> None:
        text = self.rest + self.decoder.decode(data)
        partial = self.PARTIAL.search(text)
        self.rest = partial[0] if partial else ""
        for token in self.TOKEN.finditer(text.removesuffix(self.rest)):
            if token[2]:
                self.control(token[1], token[2])
            elif token[0] == "\r":
                self.column = 0
            elif token[0] == "\n":
                self.row += 1
                self.column = 0
                self.rows += [""] * (self.row + 1 - len(self.rows))
            elif token[0][0] not in "\x1b\a\b":
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + token[0] + row[self.column + len(token[0]) :]
                self.column += len(token[0])

    def control(self, parameter: str, kind: str) -> None:
        if parameter.startswith("?"):
            return
        count = int(parameter or 1)
        match kind:
            case "A":
                self.row = max(0, self.row - count)
            case "B":
                self.row += count
            case "C":
                self.column += count
            case "D":
                self.column = max(0, self.column - count)
            case "K":
                self.rows[self.row] = self.rows[self.row][: self.column]
            case "J":
                del self.rows[self.row + 1 :]
            case _:
                raise AssertionError(f"a control sequence that is not known: {parameter}{kind}")


class Tty:
    """A command whose standard input, output and errors are a terminal of its own."""

    def __init__(self, *arguments: object, **variables: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        self.modes_before = self.modes()
        self.display = Display()
        self.changed = asyncio.Event()
        self.words = [str(word) for word in (binary(), *arguments)]
        self.environment = environment() | {"TERM": "xterm"} | variables

    async def __aenter__(self) -> Tty:
        asyncio.get_running_loop().add_reader(self.master, self._read)
        self.process = await asyncio.create_subprocess_exec(
            *self.words,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=self.environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        asyncio.get_running_loop().remove_reader(self.master)
        os.close(self.master)
        os.close(self.slave)

    def _read(self) -> None:
        self.display.feed(os.read(self.master, 65_536))
        self.changed.set()

    def modes(self) -> list:
        return termios.tcgetattr(self.slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def until(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """Waits until the lines on the terminal are as wanted; returns them."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not wanted(self.display.lines):
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise AssertionError("\n".join(["it shows:", *self.display.lines])) from None
        return self.display.lines

    async def shows(self, *lines: str) -> list[str]:
        """Waits until these are the last lines."""
        return await self.until(lambda shown: shown[-len(lines) :] == [line.rstrip() for line in lines])

    async def ends(self) -> int:
        """Waits for the end of the command; the exit code."""
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)
