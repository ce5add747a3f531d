"""The full prompt, template and shots included, as the base needs it."""

from __future__ import annotations

import random
import threading

from pilocal.prompt.render import render
from pilocal.retrieve import ShotPicker
from pilocal.run_folder.shipped import Shipped
from pilocal.server.prompt_stripping import Chat
from pilocal.task import Example


class FullPrompt:
    """Writes a task's full prompts, with shots chosen as in the evaluation."""

    def __init__(self, task: Shipped, examples: tuple[Example, ...]) -> None:
        self._task = task
        self._examples = examples
        self._picker: ShotPicker | None = None
        self._lock = threading.Lock()

    def chat(self, bare: Chat) -> Chat | None:
        """Return a chat that starts with template and shots; None when the last turn is not a query.

        The caller's own system messages follow the template. Raises InputError when the model that compares queries
        cannot be loaded.
        """
        systems = [message["content"] for message in bare if message["role"] == "system"]
        turns = [message for message in bare if message["role"] != "system"]
        if not turns or any(message["role"] not in ("user", "assistant") for message in turns):
            return None
        *earlier, (role, query) = [(message["role"], message["content"]) for message in turns]
        if role != "user":
            return None
        asked = Example(id="", query=query, answer="", history=tuple(earlier))
        template = "\n\n".join(text for text in (self._task.template, *systems) if text.strip())
        record = render(template, self._shots(asked), asked)
        return [dict(message) for message in record["messages"][:-1]]

    def _shots(self, asked: Example) -> list[Example]:
        k = self._task.shots
        with self._lock:
            if self._picker is None:
                where, config, seed = self._task.folder, self._task.retrieval, self._task.seed
                self._picker = ShotPicker(self._examples, config, None, k=k, seed=seed, where=where, models=where)
            return [self._examples[i] for i in self._picker.for_query(asked.query, k, asked.history)]


class FallbackSampler:
    """Chooses a share of the requests for the full prompt; the same ones each time the server starts.

    >>> chosen = FallbackSampler(0.1)
    >>> sum(chosen() for _ in range(10_000))
    1026
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._random = random.Random(0)

    def __call__(self) -> bool:
        """Tell whether the next request is chosen."""
        return self._random.random() < self._share
