"""llama.cpp behind an OpenAI-compatible HTTP API; a program calls `serve`."""

from pilocal.serve.options import ServeOptions
from pilocal.serve.request_log import RequestLogEntry
from pilocal.serve.server import serve

__all__ = ["RequestLogEntry", "ServeOptions", "serve"]
