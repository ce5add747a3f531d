"""`python -m tests.soak [MINUTES]`: ask a server for so long from many clients, and say what did not stay as it was.

It serves four random adapters on the bundled base and a fused one, and beside them what `--run` names.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from pilocal.base.base import find_base
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.shipped import Shipped, read_shipped
from tests.bench.http_load import replies
from tests.bench.two_servers import our_server
from tests.served import make_run
from tests.soak.questions import Asker, Question
from tests.soak.soak import GROWTH, SLACK, Result, Soak, answers_alone, handles, is_as_likely, read_of, table
from tests.tiny import make_adapter

ADAPTERS = 4
EACH = 6
"""Questions of each client, of any kind."""
LINES = 20
LATER = 10
"""Open files more at the end than before: what the server had not opened before it was asked."""


def made(folder: Path, run: Path | None) -> list[Shipped]:
    """Return what is served."""
    starter = find_base("starter", Path())
    shipped = [read_shipped(run)] if run else []
    for seed in range(ADAPTERS + 1):
        adapter = make_adapter(folder / f"adapter-{seed}", starter, rank=4, scale=2.0, seed=seed)
        gguf = shipped[0].base_path if shipped else None
        shipped.append(make_run(folder / f"task-{seed}", starter, adapter, gguf=gguf, fused=seed == ADAPTERS))
    return shipped


def soak(minutes: float, options: argparse.Namespace, folder: Path) -> list[str]:
    """Let the clients ask; print what came of it and return what is wrong."""
    tasks = made(folder, options.run)
    rng = Random(options.seed)
    how = ["--threads", options.threads, "--context", 1024, *(["--exact"] if options.exact else [])]
    runs = [task.folder.parent for task in tasks]
    with our_server(runs, folder, *how) as (port, pid):
        asker = Asker(tasks, end_tokens(find_base("starter", Path()).tokenizer), rng)
        questions = [
            each for owner in range(options.clients) for each in rng.sample(list(asker.questions(owner)), EACH)
        ]
        known = answers_alone(port, questions)
        say(f"seed {options.seed}: {options.clients} clients have {len(known)} questions; left out are ")
        say(f"{len(questions) - len(known)} with an answer that another client gets, too\n")
        before = handles(pid)
        result = Soak(port, pid, known, rng, told(minutes)).run(60 * minutes)
        wrong = [*result.wrong, *changed(port, known)]
        after = handles(pid)
    if before is not None and after is not None and after > before + LATER:
        wrong.append(f"{after} files are open, after {before}")
    if not result.is_flat:
        wrong.append("memory has grown: {:.1f} MiB after the warm-up, {:.1f} at the end".format(*result.grown))
    if result.ties and options.exact:
        wrong.append(f"{result.ties} answers differ between tokens as likely, with --exact")
    if "Traceback" in (server := (folder / "pilocal.txt").read_text(errors="replace")):
        wrong.append(f"a traceback: {server[server.index('Traceback') :][:2000]}")
    summarize(result, wrong)
    return wrong


def changed(port: int, questions: Sequence[Question]) -> Iterator[str]:
    """Yield what the server answers, alone, in another way than before."""
    for question in questions:
        (reply,) = replies(port, [question.forms[0][0]], 1, status=question.status)
        if (said := read_of(question, reply)) != question.answer and not is_as_likely(port, question, said):
            yield f"alone, {question.kind} is {said!r} afterwards, and was {question.answer!r}"


def told(minutes: float) -> Callable[[Result, float], None]:
    """Return what prints a line twenty times."""
    moments = iter([60 * minutes * part / LINES for part in range(LINES)])
    due = next(moments)

    def tell(result: Result, seconds: float) -> None:
        nonlocal due
        if seconds >= due:
            due = next(moments, math.inf)
            answered, left = result.answered.total(), result.left.total()
            say(f"{seconds:7.0f} s {answered:9,} answered {left:8,} hung up {result.memory[-1]:8.1f} MiB\n")

    return tell


def summarize(result: Result, wrong: list[str]) -> None:
    """Print what came of it."""
    say("".join(f"{line}\n" for line in table(result)))
    first, last = result.grown
    allowed = f"{GROWTH} times and {SLACK:.0f} MiB are allowed"
    say(f"memory: {first:.1f} MiB after the warm-up, {last:.1f} at the end; {allowed}\n")
    say(f"{result.answered.total():,} answers, {result.ties:,} parted from those alone at tokens as likely\n")
    say("".join(f"WRONG: {line}\n" for line in wrong) or "every answer was its client's own\n")


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> int:
    """Read the command line; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=60.0, help="how long (60)")
    parser.add_argument("--run", type=Path, help="a finished run on the bundled base, served too")
    parser.add_argument("--clients", type=int, default=64, help="how many (64)")
    parser.add_argument("--threads", type=int, default=1, help="of llama.cpp (1)")
    parser.add_argument("--seed", type=int, default=0, help="draws the questions and who hangs up")
    parser.add_argument("--exact", action="store_true", help="as the server's --exact")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    with TemporaryDirectory(prefix="pilocal-soak-") as folder:
        return 1 if soak(options.minutes, options, Path(folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
