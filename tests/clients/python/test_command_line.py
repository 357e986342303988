"""The command line, as the README shows it: a phone and a business in two terminals."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import shlex
import signal
import subprocess

import httpx
import pytest
import zstandard

from business import Business
from phone import START, Phone, contents
from server import Server, binary, environment, free_port, new_business, new_phone
from terminal import Terminal, eshaar


async def test_a_message_is_sent_in_one_terminal_and_read_in_another(server: Server, phone: Phone):
    here = ("--data-dir", server.data_dir, "--url", server.url)
    listening = asyncio.create_task(eshaar("listen", *here, "--phone", phone.number, "--json", "--count", "1"))
    code, output, errors = await eshaar("send", *here, "--to", phone.number, "Your card was used.")
    assert code == 0, errors
    code, lines, errors = await listening
    assert code == 0, errors
    [message] = [frame for frame in map(json.loads, lines.splitlines()) if frame["op"] == "message"]
    assert message["content"] == "Your card was used." and message["id"] in output


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


@pytest.mark.parametrize("value", ["hunter2", "[1, 2", "-1"])
async def test_no_error_of_the_configuration_shows_a_value_or_a_line_of_the_file(tmp_path, value: str):
    file = tmp_path / "eshaar.toml"
    for text in ('[scylla]\npassword = "hunter2\nport = 1\n', '[redis]\npassword = ["hunter2"]\n', "[kafka]\nepoch = 'hunter2'\n"):
        file.write_text(text)
        code, output, errors = await eshaar("check", "--config", file, "--data-dir", tmp_path)
        assert code != 0 and "hunter2" not in output + errors and str(file) in errors, errors
    code, output, errors = await eshaar("check", "--data-dir", tmp_path, ESHAAR_KAFKA__EPOCH=value)
    assert code != 0 and value not in output + errors and "kafka.epoch" in errors and "ESHAAR_KAFKA__EPOCH" in errors


async def test_text_from_the_environment_is_taken_as_it_is(tmp_path):
    for text in ("407408718192", ' a "quoted" name ', "true", "[a"):
        code, output, errors = await eshaar("check", "--data-dir", tmp_path, ESHAAR_TOPIC_PREFIX=text)
        assert code == 0 and f"prefix `{text}`" in output, errors


def test_the_log_has_colours_only_in_a_terminal(server: Server):
    assert "\x1b" not in server.log_path.read_text() and "serving" in server.log_path.read_text()


async def test_a_server_whose_log_cannot_be_written_goes_on(tmp_path):
    port = free_port()
    command = [binary(), "serve", "--data-dir", tmp_path / "data", "--listen", f"127.0.0.1:{port}", "--set", "logging.filter=trace"]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=full, env=environment())
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            async with asyncio.timeout(20):
                while not await answers(http, "/health"):
                    await asyncio.sleep(0.02)
            key = (tmp_path / "data" / "demo-key").read_text().strip()
            message = {"to": new_phone(), "type": "one_way", "content": "Still here."}
            sent = await http.post("/v1/messages", json=message, headers={"Authorization": f"Bearer {key}"})
            assert sent.status_code == 202
            assert await answers(http, "/health") and await answers(http, "/health/live")
            dropped = [line for line in (await http.get("/metrics")).text.splitlines() if "log_lines_dropped" in line]
            assert dropped and float(dropped[-1].split()[-1]) > 0
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(35) == 0


async def answers(http: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await http.get(path)).status_code == 200
    except httpx.TransportError:
        return False


async def test_check_does_not_complain_of_the_server_that_runs(server: Server):
    code, output, errors = await eshaar(
        "check", "--data-dir", server.data_dir, "--set", f"listen=127.0.0.1:{server.port}"
    )
    assert code == 0 and "runs already" in output, output + errors


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


@pytest.mark.parametrize(
    "command", ["send --to +966500000001 Hello", "check", "console", "keys list", "topics list", "token --phone +966500000001"]
)
def test_a_closed_pipe_ends_every_command_quietly(server: Server, command: str):
    name, *rest = shlex.split(command)
    words = [name, *rest, "--data-dir", str(server.data_dir)]
    if name == "send":
        words += ["--url", server.url]
    if name == "check":
        words += ["--set", "listen=127.0.0.1:0"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([binary(), *words], stdout=closed, stderr=subprocess.PIPE, timeout=30, env=environment())
    assert (done.returncode, done.stderr) == (0, b"")


async def test_printed_commands_run_as_they_are_printed(tmp_path):
    log = tmp_path / "out"
    command = [binary(), "serve", "--data-dir", tmp_path / "my data", "--listen", "127.0.0.1:0"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment())
    try:
        async with asyncio.timeout(20):
            while "Ctrl-C" not in log.read_text():
                await asyncio.sleep(0.02)
        rows = dict(re.findall(r"^  (.{11}) (.+)$", log.read_text(), re.MULTILINE))
        sent = subprocess.run(rows["a message  "], shell=True, capture_output=True, timeout=30, env=environment())
        assert sent.returncode == 0, sent.stderr
        listen = f"{rows['a phone    ']} --count 1"
        received = subprocess.run(listen, shell=True, capture_output=True, timeout=30, env=environment())
        assert received.returncode == 0 and b"Hello" in received.stdout
        tail = f"{rows['the topics ']} --from-start --no-follow"
        assert b"Hello" in subprocess.run(tail, shell=True, capture_output=True, timeout=30, env=environment()).stdout
        async with httpx.AsyncClient() as http:
            for row in ("in a page  ", "the API    ", "schemas    ", "health     "):
                assert (await http.get(rows[row], follow_redirects=True)).status_code == 200, rows[row]
    finally:
        process.terminate()
        assert process.wait(35) == 0


def interrupted(process: subprocess.Popen[bytes]) -> str:
    """Interrupts an upload; the command that it prints."""
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0 and process.stderr is not None
    [resume] = [line for line in process.stderr.read().decode().splitlines() if "--idempotency-key" in line]
    return resume


async def test_an_interrupted_upload_goes_on_with_the_command_that_it_prints(server: Server, phone: Phone, tmp_path):
    fifo, file = tmp_path / "fifo", tmp_path / "messages.ndjson"
    texts = [f"message {n}" for n in range(40)]
    lines = [json.dumps({"to": phone.number, "content": text}) + "\n" for text in texts]
    lines.insert(10, '{"to": "+1", "content": "refused"}\n')
    file.write_text("".join(lines))
    os.mkfifo(fifo)
    here = ["--data-dir", server.data_dir, "--url", server.url]
    command = [binary(), "send", *here, "--file", fifo, "--refused", tmp_path / "refused", "--verbose"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    with fifo.open("wb", buffering=0) as upload:
        upload.write("".join(lines[:20]).encode())
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(20)]
        assert shown[10].startswith(b"line 11: to: ")
        resume = interrupted(process)
    # Standard input and pipes cannot be read again: the file can.
    resume = resume.replace(str(fifo), str(file))
    gone_on = subprocess.run(resume, shell=True, capture_output=True, timeout=30, env=environment())
    shown = gone_on.stdout.splitlines()
    assert shown[0].startswith(b"line 21: ") and shown[-1] == b"21 accepted, 0 refused", gone_on
    assert contents(await phone.fetch(40, **START)) == texts


@pytest.mark.parametrize("name", ["messages.ndjson", "messages.ndjson.gz", "messages.ndjson.zst", "utf-16.ndjson"])
async def test_an_interrupted_upload_goes_on_without_the_lines_that_were_accepted(new_server, tmp_path, name: str):
    server = new_server("ingest.bulk.batch_lines=10")
    phone, file = Phone.new(server), tmp_path / name
    key = server.new_key(new_business(), rate="50/s")
    texts = [f"message {number}" for number in range(100)]
    lines = [json.dumps({"to": phone.number, "content": text}) + "\n" for text in texts]
    for place in (5, 60, 85):
        lines.insert(place, '{"to": "+1", "content": "refused"}\n')
    lines.insert(20, "\n")
    text = "".join(lines)
    # As it is when parts that were compressed are joined.
    parts = [text[:1_000].encode(), text[1_000:].encode()]
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(file.suffix)
    plain = text.encode("utf-16") if name.startswith("utf-16") else text.encode()
    file.write_bytes(b"".join(map(compress, parts)) if compress else plain)
    (tmp_path / f"{name}.refused").write_text("of another upload\n")

    words = [binary(), "send", "--data-dir", server.data_dir, "--url", server.url, "--file", file, "--json"]
    keyed = environment() | {"ESHAAR_API_KEY": key}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=keyed)
    assert process.stdout is not None
    for _ in range(30):
        process.stdout.readline()
    resume = interrupted(process)
    last = int(re.search(r"--after-line (\d+)", resume)[1])
    assert 30 <= last < len(lines)
    gone_on = subprocess.run(resume, shell=True, capture_output=True, timeout=30, env=keyed)
    assert gone_on.stdout, gone_on.stderr
    *answers, total = map(json.loads, gone_on.stdout.splitlines())
    assert [answer["line"] for answer in answers] == list(range(last + 1, len(lines) + 1)), gone_on.stderr
    assert total["accepted"] + total["rejected"] == len(lines) - last
    assert contents(await phone.fetch(len(texts), **START)) == texts
    async with Business(server.url, key) as business:
        listed = await business.list(limit=100)
        assert len(listed["messages"]) == 100 and listed["next_cursor"] is None
    refused = (tmp_path / f"{name}.refused").read_bytes().decode("utf-16-le" if name.startswith("utf-16") else "utf-8")
    assert refused == '{"to": "+1", "content": "refused"}\n' * 3


async def test_lines_that_were_refused_when_the_log_went_away_are_sent_again(tmp_path):
    """Where an upload ends early, what was refused for that reason is no refused line."""
    problem = {"code": "log_unavailable", "detail": "the log is away"}
    answers = [{"line": 1, "id": "1"}, {"line": 2, "error": {"code": "invalid_phone", "detail": "", "field": "to"}}]
    answers += [{"line": 3, "id": "3"}, {"line": 4, "error": problem}, {"line": 5, "id": "5"}]
    answers += [{"line": 6, "error": problem}, {"accepted": 3, "rejected": 3, "last_line": 6, "error": problem}]
    body = "".join(json.dumps(answer) + "\n" for answer in answers).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    file = tmp_path / "messages.ndjson"
    file.write_text("".join(f"{number}\n" for number in range(1, 7)))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, _, errors = await eshaar("send", "--url", url, "--api-key", "esk_a_b", "--file", file)
    assert code == 1 and "the log is away (log_unavailable)" in errors
    assert "3 accepted, 1 refused, up to line 3" in errors and errors.count("--after-line 3") == 1, errors
    assert (tmp_path / "messages.ndjson.refused").read_text() == "2\n"


async def test_an_upload_goes_on_behind_a_line_of_its_file_under_its_key_only(server: Server, tmp_path):
    file = tmp_path / "messages.ndjson"
    file.write_text("{}\n{}\n")
    here = ("send", "--data-dir", server.data_dir, "--url", server.url, "--file", file, "--after-line")
    code, _, errors = await eshaar(*here, "1")
    assert code == 2 and "--idempotency-key" in errors
    code, _, errors = await eshaar(*here, "3", "--idempotency-key", "k")
    assert code == 1 and "--after-line 3: " in errors and "has only 2 lines" in errors
    code, _, errors = await eshaar(*here, "15000001", "--idempotency-key", "k")
    assert code == 2 and "--after-line" in errors and "15000000" in errors


async def test_refused_lines_are_written_to_a_file(server: Server, phone: Phone, tmp_path):
    file = tmp_path / "messages.ndjson"
    file.write_text(json.dumps({"to": phone.number, "content": "one"}) + '\n\n{"to": "+1", "content": "two"}\nnot json\n')
    code, output, errors = await eshaar("send", "--data-dir", server.data_dir, "--url", server.url, "--file", file)
    assert code != 0 and "line 3: to: " in output and "1 accepted, 2 refused" in output, output + errors
    assert (tmp_path / "messages.ndjson.refused").read_text() == '{"to": "+1", "content": "two"}\nnot json\n'


async def test_a_phone_waits_for_a_server_that_is_not_there_yet(new_server, tmp_path):
    server = new_server()
    phone = new_phone()
    token = server.token(phone)
    server.stop()
    words = [binary(), "listen", "--url", server.url, "--token", token, "--count", "1"]
    listening = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert listening.stderr is not None and b"trying again" in listening.stderr.readline()
    server.start()
    server.cli("send", "--url", server.url, "--to", phone, "Here.")
    output, _ = listening.communicate(timeout=30)
    assert listening.returncode == 0 and b"Here." in output


async def test_a_server_on_this_machine_is_called_without_the_proxy(server: Server, phone: Phone):
    here = ("--data-dir", server.data_dir, "--url", server.url)
    proxy = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY")}
    code, _, errors = await eshaar("send", *here, "--to", phone.number, "Direct.", **proxy)
    assert code == 0, errors
    code, output, errors = await eshaar("listen", *here, "--phone", phone.number, "--count", "1", **proxy)
    assert code == 0 and "Direct." in output, errors


def test_every_command_has_examples_and_completions(server: Server):
    commands = ["serve", "ingest", "processors", "gateway", "send", "listen", "chat", "keys create", "keys list", "keys revoke"]
    commands += ["token", "topics list", "topics tail", "topics append", "topics apply", "store apply", "console", "check"]
    commands += ["dead-letters list", "dead-letters show", "dead-letters redrive", "dead-letters discard", "completions"]
    for command in commands:
        shown = subprocess.run([binary(), *command.split(), "--help"], capture_output=True, text=True, timeout=30)
        assert "Example" in shown.stdout, command
    for shell in ("bash", "zsh", "fish"):
        script = subprocess.run([binary(), "completions", shell], capture_output=True, text=True, timeout=30)
        assert script.returncode == 0 and "dead-letters" in script.stdout


def test_help_and_an_unknown_command(server: Server):
    for words in (["--help"], ["serve", "--help"], ["topics", "tail", "--help"]):
        assert subprocess.run([binary(), *words], capture_output=True, timeout=30).returncode == 0
    assert subprocess.run([binary(), "fly"], capture_output=True, timeout=30).returncode == 2
    assert "messages.accepted" in server.cli("topics list")
