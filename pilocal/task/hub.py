"""The names of models on the Hugging Face Hub."""

from __future__ import annotations


def is_hub_id(model: str) -> bool:
    """Tell whether a name can be a Hub id: owner/name, with @REVISION to stay with one commit, tag or branch.

    >>> [is_hub_id(name) for name in ("owner/name", "owner/name@refs/pr/1", "./a/b", "a/b/c", "a/b.gguf", "ollama:a/b")]
    [True, True, False, False, False, False]
    """
    name, _ = split_hub_id(model)
    if name.startswith((".", "/", "~")) or name.lower().endswith(".gguf"):
        return False
    return name.count("/") == 1 and ":" not in name


def split_hub_id(model: str) -> tuple[str, str | None]:
    """Return what stands before the @ of a Hub id, and the revision after it, if there is one.

    >>> split_hub_id("owner/name@v1.0"), split_hub_id("owner/name")
    (('owner/name', 'v1.0'), ('owner/name', None))
    """
    name, at, revision = model.partition("@")
    return name, revision if at else None
