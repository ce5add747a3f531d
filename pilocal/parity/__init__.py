"""Two backends side by side: the same rows, the same weights, the same losses within a stated tolerance.

`parity(Path("my-task/run"))` replays a run and leaves parity.json and parity.svg in it.
"""

from pilocal.parity.files import parity, replay_reference
from pilocal.parity.settings import Settings

__all__ = ["Settings", "parity", "replay_reference"]
