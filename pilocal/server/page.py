"""The page at /, and the policy that lets it reach nothing but its server."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files


def read_page(room: str = "pilocal.server", images: str = "data:") -> tuple[str, str]:
    """Return a room's page and its Content-Security-Policy: its own script and style, and requests to its server.

    `images` are the sources that the page may show.
    """
    page = files(room).joinpath("page.html").read_text(encoding="utf-8")
    script, style = (_hash(page, tag) for tag in ("script", "style"))
    policy = f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src {images}"
    return page, f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _hash(page: str, tag: str) -> str:
    """Return the source expression of the only such element.

    >>> _hash("<p><style></style>", "style")
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    """
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
