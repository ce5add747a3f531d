"""What a task changes about how its base writes chats."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilocal.prompt.default_system import leave_out_default_system


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """The task's own chat template, and whether the default system message stays."""

    template: str | None = None
    """A chat template in the place of the base's own."""
    file: Path | None = field(default=None, compare=False)
    """Where it was read from."""
    default_system: bool = True
    """Whether the chat template may write a system message where a chat has none."""

    @property
    def facts(self) -> dict[str, Any]:
        """What differs from the base's own behaviour, as JSON; `ChatSettings(**facts)` is the same again."""
        template = {} if self.template is None else {"template": self.template}
        return template | ({} if self.default_system else {"default_system": False})

    def apply(self, tokenizer: Any) -> None:
        """Change a tokenizer's chat template; raises InputError when it cannot be used, or the message not be left out.

        A template of the base's own that is broken is not looked at here.
        """
        if self.template is not None:
            tokenizer.chat_template = self.template
        if not self.default_system:
            leave_out_default_system(tokenizer)


OWN = ChatSettings()
"""The base's own behaviour."""
