"""The command line, as the README shows it: a phone and a business in two terminals."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest

from business import Business
from phone import START, Phone, contents
from server import Server, binary, environment


async def eshaar(*arguments: object, **variables: str) -> tuple[int, str, str]:
    """Runs a command to its end: exit code, output, errors."""
    words = [str(word) for word in (binary(), *arguments)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe, env=environment() | variables)
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_a_message_is_sent_in_one_terminal_and_read_in_another(server: Server, phone: Phone):
    here = ("--data-dir", server.data_dir, "--url", server.url)
    listening = asyncio.create_task(eshaar("listen", *here, "--phone", phone.number, "--json", "--count", "1"))
    code, output, errors = await eshaar("send", *here, "--to", phone.number, "Your card was used.")
    assert code == 0, errors
    code, lines, errors = await listening
    assert code == 0, errors
    [message] = [frame for frame in map(json.loads, lines.splitlines()) if frame["op"] == "message"]
    assert message["content"] == "Your card was used." and message["id"] in output


class Terminal:
    """A command that is typed to and read from while it runs."""

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
        async with asyncio.timeout(15):
            while (shown := (await self.process.stdout.readline()).decode().rstrip("\n")) != line:
                assert shown or not self.process.stdout.at_eof(), f"it ended before {line!r}"

    async def end(self) -> int:
        """The end of its input."""
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), 15)


async def test_a_phone_and_a_business_talk_in_two_terminals(server: Server, phone: Phone):
    here = ("chat", "--data-dir", server.data_dir, "--url", server.url)
    device = await Terminal.run(*here, "--as", phone.number, "--with", "demo")
    await device.shows(f"connected as {phone.number}")
    await device.type("Is my card lost?")
    await device.shows("you: Is my card lost?")
    agent = await Terminal.run(*here, "--as", "demo", "--with", phone.number)
    await agent.shows(f"{phone.number}: Is my card lost?")
    await agent.shows("connected as demo")
    await agent.type("It is not.")
    await agent.shows("you: It is not.")
    await device.shows("demo: It is not.")
    await agent.shows("  read: It is not.")
    assert (await device.end(), await agent.end()) == (0, 0)


async def test_a_file_of_messages_is_sent(server: Server, phone: Phone, tmp_path):
    file = tmp_path / "messages.ndjson"
    texts = [f"message {n}" for n in range(20)]
    file.write_text("".join(json.dumps({"to": phone.number, "content": text}) + "\n" for text in texts))
    code, _, errors = await eshaar("send", "--data-dir", server.data_dir, "--url", server.url, "--file", file)
    assert code == 0, errors
    assert contents(await phone.fetch(20, **START)) == texts


@pytest.mark.parametrize("setting", ["gateway.nothing=1", "nothing=1", "store.stream_ttl_s=soon"])
async def test_a_configuration_that_cannot_be_used_is_an_error_that_names_the_key(tmp_path, setting: str):
    code, _, errors = await eshaar("serve", "--data-dir", tmp_path, "--listen", "127.0.0.1:0", "--set", setting)
    assert code != 0 and setting.split("=")[0].rpartition(".")[2] in errors


async def test_variables_that_the_command_line_reads_are_no_settings(tmp_path):
    variables = {"ESHAAR_URL": "http://127.0.0.1:1", "ESHAAR_API_KEY": "esk_a_b", "ESHAAR_TOKEN": "x"}
    code, _, errors = await eshaar("check", "--data-dir", tmp_path, **variables)
    assert code == 0, errors


async def test_a_reader_that_has_had_enough_is_no_failure(server: Server, demo: Business, phone: Phone):
    await demo.bulk({"to": phone.number, "content": "x" * 1_000} for _ in range(500))
    tail = f"{binary()} topics tail messages.accepted --from-start --json --data-dir {server.data_dir}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {tail} | head -1"], capture_output=True, timeout=30, env=environment()
    )
    assert done.returncode == 0 and not done.stderr and json.loads(done.stdout)


def test_help_and_an_unknown_command(server: Server):
    for words in (["--help"], ["serve", "--help"], ["topics", "tail", "--help"]):
        assert subprocess.run([binary(), *words], capture_output=True, timeout=30).returncode == 0
    assert subprocess.run([binary(), "fly"], capture_output=True, timeout=30).returncode == 2
    assert "messages.accepted" in server.cli("topics list")
