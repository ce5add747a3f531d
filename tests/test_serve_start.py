"""How a server starts, what it refuses to start with, and what it never prints."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import httpx
import openai
import pytest

from pilocal.errors import Faults, InputError, RunError
from pilocal.run_folder.shipped import read_shipped
from pilocal.server import ServeOptions, serve
from pilocal.server.access import Access
from pilocal.server.api_key import read_api_key
from pilocal.server.app import make_app
from pilocal.server.server import listen
from tests.serving import ASKED, CHATS, KEY, ROOT, ask, endless, post, running


def test_with_a_key_nothing_but_page_and_health_is_open(runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "key.txt"
    file.write_text(f"{KEY}\n")
    with running(runs[:1], tmp_path, "--host", "0.0.0.0", "--api-key-file", file) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
                ask(client, "colours", ASKED)
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            assert ask(client, "colours", CHATS[0])
        assert [httpx.get(url + path).status_code for path in ("/", "/health", "/metrics")] == [200, 200, 401]


def test_the_port_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    def start(host: str, port: int) -> None:
        serve([], ServeOptions(host=host, port=port))

    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=rf"^127\.0\.0\.1:{port}: cannot listen there: .*in use; choose another"):
            start("127.0.0.1", port)
    with pytest.raises(InputError, match=r"256\.0\.0\.1:80: cannot listen there"):
        start("256.0.0.1", 80)
    with pytest.raises(InputError, match=r"^--host 0\.0\.0\.0: others can reach .* no API key; give --api-key-file"):
        start("0.0.0.0", 0)


def test_no_part_of_an_answer_waits_for_another_to_be_acknowledged() -> None:
    with listen("127.0.0.1", 0, loopback_only=True) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_files_that_cannot_be_served_are_one_line(runs: list[Path], tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        command = [sys.executable, "-c", "import pilocal.cli; pilocal.cli.main()", "serve", *map(str, arguments)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "nothing was exported here yet" in said(tmp_path)
    assert "has the same name" in said(runs[0], runs[0], "--port", 0)
    assert "--log-contents needs --log" in said(runs[0], "--log-contents")


SECRET = "sesame-4711-schlüssel"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (SECRET.encode(), "an API key is plain ASCII text on one line"),
        (SECRET.encode("latin-1"), "an API key is plain ASCII text on one line"),
        (b"sesame-4711\nsesame-4712\n", "an API key is plain ASCII text on one line"),
        (b"sesame\x004711", "an API key is plain ASCII text on one line"),
        (b"\n \n", "the file is empty"),
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\n", "the file is empty"),
    ],
)
def test_a_key_file_that_is_refused_is_told_without_its_key(
    content: bytes, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        serve([tmp_path], ServeOptions(api_key_file=file))
    assert str(caught.value).startswith(f"{file}: {problem}; ")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__) + str(capsys.readouterr())
    assert not re.search("sesame|471|schl", shown)


def test_a_byte_order_mark_is_no_part_of_the_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\xef\xbb\xbfsesame\r\n")
    assert read_api_key(file).matches("sesame")


def test_a_key_given_in_place_of_its_file_is_not_repeated(runs: list[Path]) -> None:
    for key in (SECRET, "sesame-" * 100, f"{SECRET}/{SECRET}"):
        command = [sys.executable, "-c", "import pilocal.cli; pilocal.cli.main()", "serve", str(runs[0])]
        done = subprocess.run(
            [*command, "--api-key-file", key], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        assert done.returncode == 1
        assert done.stderr.startswith("--api-key-file: ")
        assert not re.search("sesame|471|schl", done.stdout + done.stderr)


def test_a_server_with_a_key_never_prints_it(runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "key.txt"
    file.write_text(f"{KEY}\n")
    handshake = {
        "Authorization": f"Bearer {KEY}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    with running(runs[:1], tmp_path, "--log-contents", "--api-key-file", file) as server:
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {KEY}-not"}, {}, handshake):
            post(server, {"messages": ASKED, "max_tokens": 1}, headers)
            httpx.get(f"{server.url}/{KEY}?key={KEY}", headers=headers)
        post(server, b"{", {"Authorization": f"Bearer {KEY}"})
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"Bearer {KEY}\r\n\r\n".encode())
            connection.recv(4096)
        metrics = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        assert metrics.status_code == 200
        assert len(server.entries) == 5
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 130
        assert KEY not in metrics.text
    assert KEY not in server.said.read_text() + server.log.read_text()


def test_a_server_that_is_stopped_finishes_what_goes_on(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path, "--grace", 60) as server, endless(server) as connection:
        server.process.send_signal(signal.SIGINT)
        said = b""
        while part := connection.recv(65536):
            said += part
        assert b"data: [DONE]" in said
        assert server.process.wait(60) == 130
        (entry,) = server.entries
        assert entry["completion_tokens"] == 400


def test_options_out_of_their_bounds_are_all_told() -> None:
    with pytest.raises(Faults) as caught:
        ServeOptions(
            port=-1, context=0, threads=0, parallel=0, cache=-1, queue=-1, grace=0, fallback_share=1.5, shadow_share=-1
        )
    named = ["port", "context", "threads", "parallel", "cache", "queue", "grace", "fallback_share", "shadow_share"]
    assert [fault.where for fault in caught.value.faults] == named


def test_a_program_serves_runs_with_one_call(runs: list[Path]) -> None:
    code = f"""
import sys
from pathlib import Path
from pilocal.server import ServeOptions, serve

def ready(names, port):
    print(*names, port, flush=True)

serve([Path({str(runs[0])!r})], ServeOptions(port=0, context=256), ready=ready, log=lambda entry: print(entry.json()))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            name, port = process.stdout.readline().split()
            reply = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", json={"messages": ASKED, "max_tokens": 1}, timeout=60
            )
            assert (name, reply.status_code) == ("colours", 200)
            assert json.loads(process.stdout.readline())["task"] == "colours"
        finally:
            process.kill()


def test_a_model_that_needs_more_than_there_is_is_refused(runs: list[Path]) -> None:
    tasks = [read_shipped(runs[0])]
    with pytest.raises(RunError, match=r"llama\.cpp has no memory for a context of \d+ tokens; free some, or ask for"):
        make_app(tasks, ServeOptions(context=1 << 26), Access(), lambda entry: None)


def test_an_interrupted_server_ends_and_has_warned_of_nothing(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path) as server:
        post(server, {"messages": ASKED, "max_tokens": 1})
        with endless(server):
            pass
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 130
    text = server.said.read_text()
    assert "Traceback" not in text
    assert "Warning" not in text


def test_a_server_that_is_interrupted_twice_gives_up_an_answer_without_a_word(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path) as server, endless(server):
        server.process.send_signal(signal.SIGINT)
        until = time.monotonic() + 60
        while "Shutting down" not in server.said.read_text() and time.monotonic() < until:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 130
    text = server.said.read_text()
    assert "Traceback" not in text
    assert "ERROR" not in text
