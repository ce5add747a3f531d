"""`python -m tests.faults [--moments N] [--seed N] [--only COMMAND,...]`: try the matrix and print what survived."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.kills import Lives
from tests.faults.matrix import COMMANDS, FAULTS, Bench, Command, cells
from tests.faults.serving import ServeBench
from tests.faults.tasks import made


def bench_of(command: Command) -> Callable[[Path], Bench | ServeBench]:
    """Return what makes the bench of a command in a folder."""
    return lambda folder: Bench(command, folder, made(command.name))


BENCHES: dict[str, Callable[[Path], Bench | ServeBench]] = {each.name: bench_of(each) for each in COMMANDS}
BENCHES["serve"] = ServeBench


def main(words: Sequence[str]) -> int:
    """Try every cell; return the exit status: 1 where something did not survive."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--moments", type=int, default=3, help="writes at which each fault happens; 0 for every one")
    parser.add_argument("--seed", type=int, default=0, help="draws them")
    parser.add_argument("--only", default="", help="commands between commas")
    parser.add_argument("--kills", type=int, default=0, help="instead: kill one training so many times")
    parser.add_argument("--steps", type=int, default=5000, help="of that training (5000)")
    parser.add_argument("--backend", choices=("mlx", "torch"), default="mlx", help="of that training (mlx)")
    options = parser.parse_args(words)
    if options.kills:
        return killed(Lives(options.backend, options.steps, options.kills, options.seed))
    table: dict[str, dict[str, str]] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, bench_in in BENCHES.items():
            if not options.only or name in options.only.split(","):
                bench = bench_in(Path(temporary).resolve() / name)
                table[name] = tried(name, bench, options.moments, options.seed, wrong)
                sys.stderr.write(f"{name}: {bench.writes} writes, done\n")
    names = list(table)
    sys.stdout.write(f"| fault | {' | '.join(names)} |\n| --- |{' --: |' * len(names)}\n")
    for fault in FAULTS:
        sys.stdout.write(f"| {fault} | {' | '.join(table[name].get(fault, '') for name in names)} |\n")
    sys.stdout.write("".join(f"\n{line}" for line in wrong))
    return 1 if wrong else 0


def tried(name: str, bench: Bench | ServeBench, moments: int, seed: int, wrong: list[str]) -> dict[str, str]:
    """Try a command's cells; return how many of each fault it survived, and add to `wrong` what it did not."""
    found: dict[str, list[bool]] = defaultdict(list)
    for fault, nth in cells(bench.writes, moments or bench.writes, seed):
        said = bench.cell(fault, nth)
        found[fault].append(not said)
        if said:
            wrong.append(f"{name}, {fault}, write {nth} of {bench.writes}: {said}")
            sys.stderr.write(f"{wrong[-1]}\n")
    return {fault: f"{sum(good)} of {len(good)}" for fault, good in found.items()}


def killed(lives: Lives) -> int:
    """Kill one training over and over; return the exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        wrong = lives.survive(Path(temporary).resolve(), lambda text: sys.stderr.write(f"{text}\n"))
    sys.stdout.write(f"seed {lives.seed}: {wrong or 'survived'}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
