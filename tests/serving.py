"""A server process for tests, and what its clients send."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import openai

from tests.served import EXAMPLES, TEMPLATE

ROOT = Path(__file__).parent.parent
CONTEXT = 512
CHATS: list[list[Any]] = [
    [{"role": "user", "content": "turn on the kitchen light"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 12 + 30? 😀\n"}],
    [{"role": role, "content": f"{role} <|eot_id|>"} for role in ("user", "assistant", "user")],
]
ASKED: list[Any] = [{"role": "user", "content": "tell me red"}]
KEY = "a-key-for-the-tests"


@dataclass
class Server:
    """A server process that has loaded its models."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    said: Path

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The request log, a moment later: a request is counted and logged once its answer is on the way."""
        time.sleep(0.5)
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def running(runs: list[Path], folder: Path, *options: object) -> Iterator[Server]:
    """`pilocal serve`, warnings shown, in an environment that would mislead llama-cpp-python's own settings."""
    log, said = folder / "log.jsonl", folder / "said.txt"
    misleading = {"N_CTX": "8", "CHAT_FORMAT": "chatml", "API_KEY": "secret", "LORA_PATH": "/nowhere"}
    # llama-cpp-python leaves one end of each stream and a /dev/null to the garbage collector: no harm, no warning.
    flags = ["-W", "always", "-W", "ignore::ResourceWarning"]
    command = [*flags, "-c", "import pilocal.cli; pilocal.cli.main()", "serve", *runs]
    command += ["--port", 0, "--context", CONTEXT, "--threads", 1, "--log", log, *options]
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **misleading},
            cwd=ROOT,
        )
    assert process.stderr is not None
    rest = threading.Thread()
    try:
        for line in process.stderr:
            if found := re.search(r"serving .* at (http://\S+)/v1;", line):
                break
        else:
            raise AssertionError("the server ended")
        rest = threading.Thread(target=keep, args=(process.stderr, said))
        rest.start()
        yield Server(found[1], process, log, said)
    finally:
        process.kill()
        process.wait(20)
        if rest.ident:
            rest.join(20)
        process.stderr.close()


def keep(lines: IO[str], path: Path) -> None:
    with path.open("a") as file:
        for line in lines:
            file.write(line)
            file.flush()


def ask(client: openai.OpenAI, model: str, chat: list[Any], **more: Any) -> str:
    reply = client.chat.completions.create(model=model, messages=chat, temperature=0, **{"max_tokens": 12, **more})
    return reply.choices[0].message.content or ""


def post(server: Server, body: Any, headers: dict[str, str] | None = None, path: str = "chat/completions") -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}/v1/{path}", content=content, headers=headers, timeout=60)


def full_chat(query: str) -> list[Any]:
    """What an old caller sends: the template, two solved examples, and the query."""
    turns = [("system", TEMPLATE)]
    turns += [turn for each in EXAMPLES[:2] for turn in (("user", each.query), ("assistant", each.answer))]
    return [{"role": role, "content": content} for role, content in (*turns, ("user", query))]


def endless(server: Server, model: str = "base") -> socket.socket:
    """Ask for a long stream and return the connection once its first part is there."""
    body = {"model": model, "messages": CHATS[0], "temperature": 0, "stream": True, "max_tokens": 400}
    body |= {"logit_bias": {str(token): -100 for token in (2041, 2045, 2046)}}  # the ends of an answer
    content = json.dumps(body).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    assert b"200 OK" in connection.recv(4096)
    while b"data: " not in (part := connection.recv(4096)):
        assert part, "the server hung up"
    return connection
