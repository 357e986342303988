"""`eshaar chat` at a terminal: what comes in does not disturb what is typed, and the terminal is left as it was found."""

from __future__ import annotations

import signal

import pytest

from phone import Phone
from server import Server, new_phone
from terminal import Terminal, Tty

CTRL_C, CTRL_D, CTRL_R = "\x03", "\x04", "\x12"


def chat(server: Server, number: str, *options: object) -> tuple[object, ...]:
    here = ("chat", "--data-dir", server.data_dir, "--url", server.url)
    return (*here, "--as", number, "--with", "demo", *options)


async def test_a_half_typed_line_survives_what_comes_in_and_is_sent_whole(server: Server, phone: Phone):
    here = ("chat", "--data-dir", server.data_dir, "--url", server.url)
    agent = await Terminal.run(*here, "--as", "demo", "--with", phone.number)
    await agent.shows("connected as demo")
    async with Tty(*chat(server, phone.number)) as device:
        await device.shows(f"connected as {phone.number}", "you:")
        device.type("Is my ca")
        await device.shows("you: Is my ca")
        assert device.modes() != device.modes_before
        await agent.type("How can I help?")
        await device.shows("demo: How can I help?", "you: Is my ca")
        device.type("rd lost?\r")
        await agent.shows(f"{phone.number}: Is my card lost?")
        await device.shows("  read: Is my card lost?", "you:")
        shown = device.display.lines
        assert [shown.count(line) for line in ("you: Is my card lost?", "demo: How can I help?")] == [1, 1], shown
        # Lines of before come back with the arrow.
        device.type("\x1b[A")
        await device.shows("you: Is my card lost?")
        device.type(CTRL_C)
        await device.shows("you: Is my card lost?", "you:")
        device.type(CTRL_D)
        assert await device.ends() == 0
        assert device.modes() == device.modes_before
    assert await agent.end() == 0
    # Of what was said before, one's own is shown as it was typed.
    async with Tty(*chat(server, phone.number)) as device:
        await device.until(lambda shown: {"demo: How can I help?", "you: Is my card lost?"} <= set(shown))


async def test_what_is_pasted_is_one_message_and_what_is_typed_ahead_is_not_lost(server: Server, phone: Phone):
    ahead = [f"line {number}" for number in range(50)]
    async with Tty(*chat(server, phone.number)) as device:
        await device.shows(f"connected as {phone.number}", "you:")
        device.type("\x1b[200~one\rtwo\x1b[201~\r" + "".join(f"{line}\r" for line in ahead) + CTRL_D)
        assert await device.ends() == 0
    async with Tty(*chat(server, phone.number, "--last", "100")) as device:
        expected = ["you: one", "two", *(f"you: {line}" for line in ahead)]
        await device.until(lambda shown: shown[: len(expected)] == expected)


@pytest.mark.parametrize("keys", [[CTRL_D], [CTRL_C], ["half a line", CTRL_C, CTRL_C], ["half", CTRL_C, CTRL_D]])
async def test_the_terminal_is_left_as_it_was_when_the_user_ends_it(server: Server, phone: Phone, keys: list[str]):
    async with Tty(*chat(server, phone.number)) as device:
        await device.shows(f"connected as {phone.number}", "you:")
        assert device.modes() != device.modes_before
        for typed in keys:
            device.type(typed)
            # Ctrl-C drops what is typed ahead, as a terminal does: each is typed when the one before it is seen.
            if typed.startswith("half"):
                await device.shows(f"you: {typed}")
            elif device.display.lines[-1].startswith("you: half"):
                await device.shows("you:")
        assert await device.ends() == 0
        assert device.modes() == device.modes_before
        assert device.display.lines[-1] == ""


async def test_ctrl_c_clears_a_line_and_sends_nothing_of_it(server: Server, phone: Phone):
    async with Tty(*chat(server, phone.number)) as device:
        await device.shows(f"connected as {phone.number}", "you:")
        device.type("not this")
        await device.shows("you: not this")
        device.type(CTRL_C)
        await device.shows("you: not this", "you:")
        device.type(f"this\r{CTRL_D}")
        assert await device.ends() == 0
    async with Tty(*chat(server, phone.number)) as device:
        await device.until(lambda shown: shown[:1] == ["you: this"])


@pytest.mark.parametrize("typed", ["", "half a line", CTRL_R])
async def test_the_terminal_is_left_as_it_was_when_the_server_ends_the_session(server: Server, typed: str):
    number = new_phone()
    token = server.token(number, ttl_s=3)
    async with Tty(*chat(server, number, "--token", token)) as device:
        await device.until(lambda shown: shown[-1] == "you:")
        device.type(typed)
        assert await device.ends() == 1
        assert device.modes() == device.modes_before
        [*_, reason, last] = device.display.lines
        assert reason == "eshaar: the server closed the session: token_expired" and last == "", device.display.lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_terminal_is_left_as_it_was_after_a_signal(server: Server, phone: Phone, number: signal.Signals):
    async with Tty(*chat(server, phone.number)) as device:
        await device.shows(f"connected as {phone.number}", "you:")
        device.send_signal(number)
        assert await device.ends() == (1 if number == signal.SIGTERM else 0)
        assert device.modes() == device.modes_before


async def test_a_half_typed_line_survives_the_death_of_the_server(new_server):
    server = new_server()
    number = new_phone()
    async with Tty(*chat(server, number)) as device:
        await device.shows(f"connected as {number}", "you:")
        device.type("Are you th")
        await device.shows("you: Are you th")
        server.kill()
        await device.until(lambda shown: "trying again" in shown[-2] and shown[-1] == "you: Are you th")
        device.type("ere?\r")
        server.start()
        await device.until(lambda shown: shown.count(f"connected as {number}") == 2)
        device.type(CTRL_D)
        assert await device.ends() == 0
        assert device.modes() == device.modes_before
    async with Tty(*chat(server, number)) as device:
        await device.shows("you: Are you there?", f"connected as {number}", "you:")
        server.kill()
        await device.until(lambda shown: "trying again" in shown[-2])
        # Nobody answers, and nothing waits for an answer.
        device.type(CTRL_D)
        assert await device.ends() == 0
        assert device.modes() == device.modes_before


async def test_a_message_that_nobody_answered_is_named_when_the_user_ends_it(new_server):
    server = new_server()
    number = new_phone()
    async with Tty(*chat(server, number)) as device:
        await device.shows(f"connected as {number}", "you:")
        server.kill()
        await device.until(lambda shown: "trying again" in shown[-2])
        device.type("Hello?\r")
        await device.shows("you: Hello?", "you:")
        device.type(CTRL_C)
        assert await device.ends() == 1
        assert device.modes() == device.modes_before
        assert "nothing answered them: 1" in device.display.lines[-2]


async def test_a_terminal_that_cannot_edit_lines_has_no_prompt(server: Server, phone: Phone):
    async with Tty(*chat(server, phone.number), TERM="dumb") as device:
        await device.until(lambda shown: f"connected as {phone.number}" in shown)
        assert device.modes() == device.modes_before
        device.type("Hello\n")
        await device.until(lambda shown: "you: Hello" in shown)
        device.type(CTRL_D)
        assert await device.ends() == 0
