"""Who may use the server: by the key that a client sends, and in a browser by the page that asks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

from pilocal.errors import InputError
from pilocal.server.api_key import ApiKey
from pilocal.server.refusal import Refusal

NAME = re.compile(r"[\w.:/\[\]*+-]{1,255}", re.ASCII)
"""What a host or an origin consists of."""
PATHS_WITHOUT_KEY = ("/", "/health")
ANY = "*"
"""Stands for every origin."""
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
EXPOSED = (
    "Retry-After, X-Pilocal-Task, X-Pilocal-Arm, X-Pilocal-Prompt-Tokens, X-Pilocal-Prompt-Tokens-Saved, "
    "X-Pilocal-Adapter-Scale"
)
"""The response headers that a page of an allowed origin may read."""

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)


def read_origin(text: str) -> str:
    """Return an origin as browsers send it; raises InputError for anything but scheme://host[:port] or *.

    >>> read_origin("HTTPS://Example.org:443"), read_origin("http://[::1]:3000"), read_origin("*")
    ('https://example.org', 'http://[::1]:3000', '*')
    """
    found = _ORIGIN.fullmatch(text.lower())
    if text == ANY:
        return ANY
    if found is None or int((found[3] or ":1")[1:]) not in range(1, 65536):
        fix = "write scheme://host[:port] without a path, such as http://localhost:3000, or * for every page"
        raise InputError("--allow-origin", "not an origin", got=text, fix=fix)
    scheme, host, port = found.groups(default="")
    return f"{scheme}://{host}{port if port != DEFAULT_PORTS.get(scheme) else ''}"


class Access:
    """Refuses clients without the key, web pages of other origins, and names that were pointed at this machine.

    A browser sends a page's requests to any server, also to one that only this machine can reach. It names the page's
    origin, and in the Host header the name by which it found the server.
    """

    def __init__(self, key: ApiKey | None = None, *, origins: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """Take the key, the allowed origins, and the hosts that requests may name; none means any."""
        self._key = key
        self._origins = {read_origin(origin) for origin in origins}
        self._hosts = {host.lower() for host in hosts}
        if self._hosts:
            self._hosts |= {_name(origin.partition("://")[2]) for origin in self._origins - {ANY}}

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raise Refusal unless a request with these headers, their names in lower case, may go on."""
        host = headers.get("host")
        if self._hosts and host is not None and _name(host) not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            message = f"Host: {_shown(host)} is not a name of this server, which has: {known}. See --allow-origin."
            raise Refusal(403, message, code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and not self._allows(origin) and not _is_own(origin, host):
            message = f"Origin: web pages of {_shown(origin)} may not use this server. --allow-origin lets them."
            raise Refusal(403, message, code="origin_not_allowed")
        self._check_key(path, headers)

    def response_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers by which a browser lets a page of an allowed origin read the response."""
        vary = {"Vary": "Origin"} if self._origins - {ANY} else {}
        origin = headers.get("origin")
        if origin is None or not self._allows(origin):
            return vary
        allowed = ANY if ANY in self._origins else origin
        return {**vary, "Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": EXPOSED}

    def preflight_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers by which a browser lets a page of an allowed origin ask."""
        origin = headers.get("origin")
        if origin is None or not self._allows(origin):
            return {}
        found = {
            **self.response_headers(headers),
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Max-Age": "600",
        }
        if asked := headers.get("access-control-request-headers"):
            found["Access-Control-Allow-Headers"] = asked
        if headers.get("access-control-request-private-network") == "true":
            found["Access-Control-Allow-Private-Network"] = "true"
        return found

    def _allows(self, origin: str) -> bool:
        return ANY in self._origins or origin.lower() in self._origins

    def _check_key(self, path: str, headers: Mapping[str, str]) -> None:
        if self._key is None or path in PATHS_WITHOUT_KEY:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._key.matches(given.strip()):
            return
        message = "Incorrect API key provided." if given else "You didn't provide an API key."
        raise Refusal(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def hosts_at(address: str, host: str) -> tuple[str, ...]:
    """Return the hosts that requests may name where the server listens at an address, chosen as `host`; () for any.

    On a loopback address a name that is not the server's own was pointed at this machine by somebody else.

    >>> hosts_at("127.0.0.1", "127.0.0.1"), hosts_at("192.168.0.7", "nas")
    (('localhost', '127.0.0.1', '[::1]', '127.0.0.1'), ())
    """
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return ()
    return (*LOOPBACK_HOSTS, f"[{host}]" if ":" in host else host)


def _name(authority: str) -> str:
    """Return a Host header's host, without the port.

    >>> _name("LOCALHOST:8080"), _name("[::1]:8080"), _name("[::1]")
    ('localhost', '[::1]', '[::1]')
    """
    end = authority.find("]") + 1
    return (authority[:end] or authority.partition(":")[0]).lower()


def _is_own(origin: str, host: str | None) -> bool:
    """Tell whether an origin is the server's own, at its own port."""
    scheme, _, authority = origin.lower().partition("://")
    return scheme in DEFAULT_PORTS and host is not None and authority == host.lower()


def _shown(value: str) -> str:
    """Return a header's value as a refusal repeats it, unless more than a name has come into it.

    >>> _shown("evil.example:80"), _shown("a b: Bearer key")
    ("'evil.example:80'", 'what this one holds')
    """
    return repr(value) if NAME.fullmatch(value) else "what this one holds"
