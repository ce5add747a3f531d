"""Which web pages may use the server, and under which names: browsers ask on behalf of any page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilocal.errors import Faults, InputError
from pilocal.server import ServeOptions
from pilocal.server.access import Access, hosts_at, read_origin
from pilocal.server.refusal import Refusal
from tests.serving import ASKED, KEY, Server, running

APP = "http://localhost:3000"
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(runs[:1], tmp_path_factory.mktemp("server"), "--allow-origin", APP) as server:
        yield server


def send(server: Server, headers: dict[str, str], method: str = "POST", path: str = "/v1/chat/completions") -> Any:
    body = {"messages": ASKED, "max_tokens": 1} if method == "POST" else None
    return httpx.request(method, server.url + path, json=body, headers=headers, timeout=60)


def cors(reply: Any) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control")}


def test_a_page_of_another_origin_is_refused_and_its_preflight_allows_nothing(server: Server) -> None:
    before = len(server.entries)
    origins = [EVIL, "null", "http://localhost:3001", "https://localhost:3000", "http://127.0.0.1"]
    cases = [(origin, kind) for origin in origins for kind in ("application/json", "text/plain")]
    for origin, kind in cases:
        reply = send(server, {"Origin": origin, "Content-Type": kind})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert not cors(reply)
        assert send(server, {"Origin": origin}, "GET", "/v1/models").status_code == 403
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        reply = send(server, asked, "OPTIONS")
        assert (reply.status_code, reply.content, cors(reply)) == (204, b"", {})
    assert [entry["status"] for entry in server.entries[before:]] == [403] * len(cases)


def test_a_page_of_an_allowed_origin_asks_and_reads_the_answer(server: Server) -> None:
    asked = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    reply = send(server, asked, "OPTIONS")
    assert (reply.status_code, reply.content) == (204, b"")
    allowed = cors(reply)
    assert allowed["access-control-allow-origin"] == APP
    assert allowed["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
    assert "POST" in allowed["access-control-allow-methods"]
    for reply in (send(server, {"Origin": APP}), send(server, {"Origin": APP}, path="/v1/nothing")):
        assert cors(reply)["access-control-allow-origin"] == APP
        assert "access-control-allow-credentials" not in reply.headers
        assert reply.headers["vary"] == "Origin"
    assert send(server, {"Origin": APP}).status_code == 200


def test_the_server_s_own_page_and_programs_are_answered_without_more_ado(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1", "[::1]"):
        own = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}"}
        reply = send(server, own)
        assert (reply.status_code, cors(reply)) == (200, {})
    assert send(server, {}).status_code == 200
    assert send(server, {}, "GET", "/").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_a_name_that_was_pointed_at_this_machine_is_refused(server: Server, host: str) -> None:
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/"), ("GET", "/v1/models")):
        reply = send(server, {"Host": host, "Origin": f"http://{host}"}, method, path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "host_not_allowed")


def test_a_star_allows_every_page_and_is_warned_of(runs: list[Path], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    with running(runs[:1], tmp_path, "--allow-origin", "*", "--api-key-file", key) as server:
        reply = send(server, {"Origin": EVIL, "Authorization": f"Bearer {KEY}"})
        assert (reply.status_code, cors(reply)["access-control-allow-origin"]) == (200, "*")
        assert send(server, {"Origin": EVIL}, "OPTIONS").status_code == 204
        refused = send(server, {"Origin": EVIL})
        assert (refused.status_code, cors(refused)["access-control-allow-origin"]) == (401, "*")


@pytest.mark.parametrize(
    "text",
    ["localhost:3000", "http://", "http://a/", "http://a/b", "http://a?b", "http://u@a", "null", "", "http://a:0",
     "http://a:99999", "http://*.a", "http://a b", "http://a\n", "http://ä"],
)  # fmt: skip
def test_what_is_no_origin_is_one_line(text: str) -> None:
    with pytest.raises(
        InputError, match=r"^--allow-origin: not an origin; got .*; write scheme://host\[:port\]"
    ) as caught:
        ServeOptions(allow_origins=(text,))
    assert "\n" not in str(caught.value)


def test_every_wrong_origin_is_told() -> None:
    with pytest.raises(Faults) as caught:
        ServeOptions(port=-1, allow_origins=("a", APP, "b"))
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    "origin", ["tauri://localhost", "chrome-extension://abcdef", "HTTP://A.example:80", "http://[::1]:1"]
)
def test_the_origins_of_programs_and_addresses_are_origins(origin: str) -> None:
    access = Access(origins=[origin])
    access.check("/v1/models", {"origin": read_origin(origin), "host": "127.0.0.1:8080"})


def test_hosts_are_checked_on_loopback_alone_and_an_allowed_origin_is_a_host() -> None:
    assert hosts_at("0.0.0.0", "0.0.0.0") == () == hosts_at("192.168.0.7", "nas")
    Access().check("/", {"host": "anything"})
    access = Access(origins=["https://chat.example"], hosts=hosts_at("127.0.1.1", "mybox"))
    for host in ("mybox", "MyBox:8080", "chat.example", "[::1]:1", "localhost"):
        access.check("/", {"host": host})
    with pytest.raises(Refusal, match=r"Host: 'other:80' is not a name of this server"):
        access.check("/", {"host": "other:80"})
