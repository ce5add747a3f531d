"""`python -m tests.fuzz MINUTES [DOOR...]`: knock at every door in turn until the time is over.

Each door gets a process of its own for a while: one that dies is a fault, too, and is said with the seed of its input.
What is found is written to FILE (fuzz-found.jsonl) as lines of the corpus, one of each kind.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.corpus import Case, line_of, shortened
from tests.fuzz.door import Door, Files, doors
from tests.fuzz.knock import Finding, knock

TURN = 20
"""Seconds that a door gets at a time."""

MEMORY = "/dev/shm"
"""Where folders lie that need no disk, if this system has it."""

STUCK = 300
"""Seconds after which a process that heeds no alarm ends itself, with where it is."""


def main() -> int:
    """Read the command line; return 1 where a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", usage="%(prog)s [MINUTES] [DOOR...] [--seed N]")
    parser.add_argument("words", nargs="*", help="how many minutes (10), and names of doors or how they begin (all)")
    parser.add_argument("--seed", type=int, help="make the input of one seed again and show its trace")
    parser.add_argument("--first", type=int, default=1, help="the first seed of every door (1)")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found.jsonl"), help="where findings are written")
    parser.add_argument("--turn", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    minutes, wanted = named(arguments.words)
    if not wanted:
        parser.error(f"no such door; there are {', '.join(doors())}")
    if arguments.seed is not None:
        return max(again(doors()[name], arguments.seed) for name in wanted)
    if arguments.turn is not None:
        return turn(doors()[wanted[0]], arguments.first, arguments.turn)
    return long_form(wanted, minutes * 60, arguments.first, arguments.found)


def named(words: list[str]) -> tuple[float, list[str]]:
    """Return the minutes among words, 10 where there are none, and the doors that the others name."""
    numbers = [word for word in words if word.replace(".", "", 1).isdigit()]
    begins = tuple(word for word in words if word not in numbers)
    return float(numbers[0]) if numbers else 10, [name for name in doors() if name.startswith(begins or "")]


def again(door: Door, seed: int) -> int:
    """Knock with the input of one seed and show it."""
    files = door.input(seed)
    with TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as folder:
        finding = knock(door, files, Path(folder) / "input")
    print(line_of(Case(door.name, finding.what if finding else "nothing", files)))
    print(finding.trace if finding else f"{door.name} {seed}: nothing went wrong", file=sys.stderr)
    return int(finding is not None)


def turn(door: Door, first: int, seconds: float) -> int:
    """Knock from a seed on for some seconds; print a line of JSON for each fault, and the next seed at the end."""
    until, seed = time.monotonic() + seconds, first
    with TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as folder:
        while time.monotonic() < until:
            print(f"at {seed}", flush=True)
            faulthandler.dump_traceback_later(STUCK, exit=True)
            finding = knock(door, door.input(seed), Path(folder) / "input")
            faulthandler.cancel_dump_traceback_later()
            if finding:
                print(json.dumps({"seed": seed, "what": finding.what, "kind": finding.kind}), flush=True)
            seed += 1
        print(f"at {seed}", flush=True)
    return 0


def long_form(names: list[str], seconds: float, first: int, found: Path) -> int:
    """Give each door its turns until the time is over; say how many inputs there were, and every new kind of fault."""
    until, kinds = time.monotonic() + seconds, Counter[tuple[str, str]]()
    seeds = dict.fromkeys(names, first)
    print(f"seeds from {first}; `python -m tests.fuzz --seed N DOOR` makes an input again", flush=True)
    while time.monotonic() < until:
        for name in names:
            left = min(TURN, seconds / len(names), until - time.monotonic())
            if left <= 0:
                break
            began = seeds[name]
            for fault in _turn_apart(name, seeds, left):
                kinds[name, fault["kind"]] += 1
                if kinds[name, fault["kind"]] == 1:
                    print(f"{name} seed {fault['seed']}: {fault['what']}", flush=True)
                    _keep(doors()[name], fault, found)
            print(f"{name}: {seeds[name] - began:,} inputs, {seeds[name] - first:,} in all", flush=True)
    total = sum(seeds.values()) - first * len(seeds)
    print(f"\n{total:,} inputs at {len(names)} doors, {sum(kinds.values()):,} faults of {len(kinds)} kinds")
    for name in names:
        print(f"{seeds[name] - first:>9,}  {name}")
    return int(bool(kinds))


def _turn_apart(name: str, seeds: dict[str, int], seconds: float) -> Iterator[dict[str, str]]:
    """Yield the faults of one door's turn, in a process of its own; `seeds` has the next seed afterwards."""
    command = [sys.executable, "-m", "tests.fuzz", f"--turn={seconds}", f"--first={seeds[name]}", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("at "):
                seeds[name] = int(line[3:])
            elif line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        what = f"the process died with status {process.returncode}"
        yield {"seed": str(seeds[name]), "what": what, "kind": what}
        seeds[name] += 1


def _keep(door: Door, fault: dict[str, str], found: Path) -> None:
    """Append an input as a line of the corpus, shortened where the fault does not end or stop the process."""
    files, kind = door.input(int(fault["seed"])), fault["kind"]
    if "died" not in kind and "Hang" not in kind:
        with TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as folder:

            def fails(tried: Files) -> bool:
                return _kind(knock(door, tried, Path(folder) / "input")) == kind

            files = shortened(files, fails)
    with found.open("a", encoding="utf-8") as file:
        file.write(line_of(Case(door.name, fault["what"], files)) + "\n")


def _kind(finding: Finding | None) -> str | None:
    return finding.kind if finding else None


if __name__ == "__main__":
    sys.exit(main())
