"""What stands before a query, as the weights need it: the whole prompt for the base, what stays for the adapter."""

from __future__ import annotations

import random
from collections.abc import Mapping

from pilocal.prompt.preamble import query_of
from pilocal.prompt.render import with_values
from pilocal.retrieve.shipped import ShippedShots
from pilocal.run_folder.shipped import Shipped
from pilocal.server.prompt_stripping import Chat
from pilocal.task import Example


class PromptWriter:
    """Writes a task's prompts, with shots chosen as in the evaluation.

    Its methods raise InputError when the model that compares queries cannot be loaded.
    """

    def __init__(self, task: Shipped, examples: tuple[Example, ...]) -> None:
        self._task = task
        self._shots = ShippedShots(task, examples)

    def full(self, bare: Chat, values: Mapping[str, str]) -> Chat | None:
        """Return a chat that starts with template and shots; None when the last turn is not a query.

        The caller's own system messages follow the template, in whose slots the values stand.
        """
        if query_of([message for message in bare if message["role"] != "system"]) is None:
            return None
        return self._task.full.before(bare, self._shots, values)

    def with_residue(self, bare: Chat, values: Mapping[str, str]) -> Chat:
        """Return a chat as the adapter was taught it: as it is, unless something of the prompt stays for good.

        The values of slots that have no place there are stated before what the user says first.
        """
        residue = self._task.residue
        if residue:
            return residue.before(bare, self._shots, values)
        return with_values(bare, values) if values else bare


class ShareSampler:
    """Chooses a share of the requests; the same ones each time the server starts.

    >>> chosen = ShareSampler(0.1)
    >>> sum(chosen() for _ in range(10_000))
    1026
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._random = random.Random(0)

    def __call__(self) -> bool:
        """Tell whether the next request is chosen."""
        return self._random.random() < self._share
