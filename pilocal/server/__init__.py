"""llama.cpp behind an OpenAI-compatible HTTP API; a program calls `serve`."""

from pilocal.server.options import ServeOptions
from pilocal.server.request_log import RequestLog, RequestLogEntry
from pilocal.server.server import serve

__all__ = ["RequestLog", "RequestLogEntry", "ServeOptions", "serve"]
