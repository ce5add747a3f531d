"""Why a request is not answered, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Refusal(Exception):
    """Ends a request with an HTTP status and OpenAI's error body, which OpenAI's clients turn into exceptions."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def no_such_model(name: object, names: Collection[str]) -> Refusal:
    """Return the refusal of a model that the server does not have; `names` are those that it has."""
    message = f"The model {name!r} does not exist. This server has: {', '.join(names)}."
    return Refusal(404, message, param="model", code="model_not_found")


def server_error(message: str) -> Refusal:
    """Return the refusal of a request for which the server is at fault.

    >>> server_error("out of memory").body["error"]["type"]
    'server_error'
    """
    return Refusal(500, message, kind="server_error")
