"""pilocal's server beside llama.cpp's own: `just bench serving`, or parts of it: `python -m tests.bench.serving gap`.

Both have the same files, threads, slots and requests, and are asked in turn; figures are medians of the repeats.
PILOCAL_SERVED_RUN names a finished run, PILOCAL_LLAMA_SERVER the rival, which the exported script starts. It gets the
environment of pilocal's server, too, where OpenMP's threads sleep while they wait.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pilocal.base.base import Base
from pilocal.flow.opening import base_of
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.shipped import BARE_BASE
from tests.bench.http_load import Clients, Connection, Reply, replies
from tests.bench.two_servers import OURS, RIVAL, Service, Setting, both
from tests.rival import VARIABLE, llama_server

RUN = "PILOCAL_SERVED_RUN"
MANY = 64
"""Clients where a part has one number of them."""
STREAMS, WARM_UP = 16, 20
"""Short streams beside the long prompt, and tokens of each before it comes."""
POINTS = 20
"""Of the curve of memory."""


def measured(service: Service, requests: Sequence[bytes], clients: int) -> tuple[float, list[Reply], float]:
    """Return requests a second, the replies, and the share of a core that the clients took."""
    began, spent = time.perf_counter(), time.process_time()
    found = list(replies(service.port, requests, clients))
    seconds = time.perf_counter() - began
    return len(found) / seconds, found, (time.process_time() - spent) / seconds


def asked(setting: Setting, service: Service, seed: int, **more: Any) -> tuple[list[str], list[bytes]]:
    """Draw a task and a query for each request; return both, one text each, and the requests."""
    draw = random.Random(seed)
    names = [name for name in service.bodies if name != BARE_BASE]
    drawn = [(draw.choice(names), draw.choice(setting.queries)) for _ in range(setting.requests)]
    return ["\n".join(each) for each in drawn], [service.request(*each, **more) for each in drawn]


def compared(setting: Setting, services: Mapping[str, Service], clients: int) -> dict[str, Any]:
    """Return the figures of both servers at a number of clients, and the share of queries that they answer alike."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in services}
    said: dict[str, dict[str, str]] = {name: {} for name in services}
    for repeat in range(setting.repeats):
        for name in in_turn(services, repeat):
            keys, plain = asked(setting, services[name], repeat)
            rate, answered, share = measured(services[name], plain, clients)
            said[name] |= {keys[reply.number]: content(reply) for reply in answered}
            _, streamed, _ = measured(services[name], asked(setting, services[name], repeat, stream=True)[1], clients)
            half, most = np.percentile([1000 * reply.first for reply in streamed], (50, 95)).tolist()
            found[name].append({"per_second": rate, "p50_ms": half, "p95_ms": most, "client_share": share})
    alike = [said[OURS][key] == said[RIVAL][key] for key in said[OURS]]
    medians = {name: medians_of(lines) for name, lines in found.items()}
    return {"clients": clients, **medians, "same_answers": sum(alike) / len(alike)}


def in_turn(services: Mapping[str, Service], repeat: int) -> list[str]:
    """Return the servers in the order of a repeat: each is the first every other time."""
    return list(services)[:: 1 if repeat % 2 == 0 else -1]


def medians_of(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {figure: median(line[figure] for line in lines) for figure in lines[0]}


def content(reply: Reply) -> str:
    """Return the answer of a reply that was not streamed."""
    return str(json.loads(reply.body)["choices"][0]["message"]["content"])


def throughput(setting: Setting) -> dict[str, Any]:
    """Return requests a second and times to the first token of one task, at each number of clients."""
    with both(setting) as services:
        warm(services)
        rows = [compared(setting, services, clients) for clients in setting.clients]
    show(f"one task, {setting.slots} slots", rows)
    return {"rows": rows}


def adapters(setting: Setting) -> dict[str, Any]:
    """Return the same of several adapters on one base, a random one for each request."""
    with both(setting, setting.adapters) as services:
        warm(services)
        rows = [compared(setting, services, MANY)]
    show(f"{setting.adapters} adapters, {setting.slots} slots", rows)
    return {"rows": rows}


def warm(services: Mapping[str, Service]) -> None:
    """Ask each task once, so that nobody measures what is loaded at first use."""
    for service in services.values():
        for _ in replies(service.port, [service.request(name, "hello") for name in service.bodies], 1):
            pass


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; x is how many times better pilocal is."""
    print(f"\n{title}: requests a second and ms to the first token, {OURS}'s, {RIVAL}'s, and how many times better")
    heads = "".join(f"{head:>10}{'rival':>10}{'x':>7}" for head in ("req/s", "p50", "p95"))
    print(f"clients{heads}   same  clients' share of a core")
    for row in rows:
        cells = "".join(_cell(row, figure) for figure in ("per_second", "p50_ms", "p95_ms"))
        shares = " ".join(f"{row[name]['client_share']:.2f}" for name in (OURS, RIVAL))
        print(f"{row['clients']:>7}{cells}  {row['same_answers']:.3f}  {shares}", flush=True)


def _cell(row: Mapping[str, Any], figure: str) -> str:
    ours, theirs = row[OURS][figure], row[RIVAL][figure]
    return f"{ours:10.1f}{theirs:10.1f}{ours / theirs if figure == 'per_second' else theirs / ours:7.2f}"


def gap(setting: Setting) -> dict[str, Any]:
    """Return how long the streams of short chats stand still while a long prompt is read, over their usual pace."""
    base = base_of(setting.run)
    room = base.context - 64
    prompt = long_prompt(setting.queries, base, min(setting.long, room))
    banned = {str(token): -100 for token in end_tokens(base.tokenizer)}
    wide = replace(setting, context=min(base.context, setting.long + 512))
    with both(wide, slots=STREAMS + 1) as services:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in services}
        warm(services)
        for repeat in range(setting.repeats):
            for name in in_turn(services, repeat):
                service, task = services[name], next(iter(services[name].bodies))
                short = {"stream": True, "max_tokens": min(1000, wide.context - 128), "logit_bias": banned}
                streams = [service.request(task, query, **short) for query in setting.queries[repeat:][:STREAMS]]
                found[name].append(gaps(service, streams, service.request(task, f"{repeat} {prompt}", max_tokens=2)))
    result: dict[str, Any] = {"long_tokens": len(base.tokenizer.encode(prompt)), "streams": STREAMS}
    print(f"\na prompt of {result['long_tokens']} tokens amid {STREAMS} streams: gaps between tokens, in ms")
    for name, each in found.items():
        result[name] = medians_of(each)
        told = ", ".join(f"{figure} {value:.1f}" for figure, value in result[name].items())
        print(f"{name:>13}: {told}", flush=True)
    return result


def long_prompt(queries: Sequence[str], base: Base, tokens: int) -> str:
    """Return queries one after the other, as many as have so many tokens."""
    text = " ".join(queries)
    encoded = base.tokenizer.encode(text, add_special_tokens=False)
    while len(encoded) < tokens:
        encoded += encoded
    return str(base.tokenizer.decode(encoded[:tokens]))


def gaps(service: Service, streams: Sequence[bytes], long: bytes) -> dict[str, float]:
    """Return the usual gap between tokens, the largest, their ratio in the worst stream, and the long prompt's time.

    The streams are given up once the long prompt is answered and each has told some tokens more.
    """
    with Clients(service.port, len(streams) + 1) as clients:
        *short, late = clients.connections
        for number, (connection, request) in enumerate(zip(short, streams, strict=True)):
            connection.send(number, request)
        _read(clients, lambda: _told(short, [WARM_UP] * len(short)))
        late.send(len(streams), long)
        _read(clients, lambda: late.reply.ended > 0)
        more = [len(each.reply.tokens) + WARM_UP for each in short]
        _read(clients, lambda: _told(short, more))
    early = [each for each in short if 0 < each.reply.ended < late.reply.ended]
    steps = [
        [1000 * (after - before) for before, after in pairwise(each.reply.tokens[WARM_UP // 2 :])] for each in short
    ]
    return {
        "median": median(median(each) for each in steps),
        "largest": max(max(each) for each in steps),
        "ratio": max(max(each) / median(each) for each in steps),
        "long prompt": 1000 * (late.reply.ended - late.reply.began),
        "streams that ended before it": len(early),
    }


def _read(clients: Clients, done: Callable[[], bool]) -> None:
    while not done():
        for connection, whole in clients.wait():
            if whole and connection.reply.status != 200:
                raise RuntimeError(f"{connection.reply.status}: {connection.reply.body[:500]!r}")


def _told(short: Sequence[Connection], tokens: Sequence[int]) -> bool:
    """Tell whether each stream has ended, or told so many tokens."""
    return all(
        each.reply.ended > 0 or len(each.reply.tokens) >= count for each, count in zip(short, tokens, strict=True)
    )


def memory(setting: Setting) -> dict[str, Any]:
    """Return the resident memory of pilocal's server, in MiB, over many requests of which some are given up."""
    curve = []
    with both(setting) as services:
        service = services[OURS]
        warm({OURS: service})
        task, draw = next(iter(service.bodies)), random.Random(0)
        step = max(1, setting.total // POINTS)
        streamed = (service.request(task, draw.choice(setting.queries), stream=True) for _ in range(setting.total))
        print(f"\nresident memory over {setting.total} requests, {MANY} clients, one in ten hangs up amid its answer")
        for done, _ in enumerate(replies(service.port, streamed, MANY, lambda number: number % 10 == 0), 1):
            if done % 20 == 0:
                abandon(service.port, service.request(task, draw.choice(setting.queries)))
            if done % step == 0:
                curve.append(resident(service.pid))
                print(f"{done:>9}{curve[-1]:10.1f} MiB", flush=True)
    return {"requests": setting.total, "mib": curve}


def abandon(port: int, request: bytes) -> None:
    """Send a request and hang up at once."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)


def resident(pid: int) -> float:
    """Return the memory of a process that is resident, in MiB."""
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "throughput": throughput,
    "adapters": adapters,
    "gap": gap,
    "memory": memory,
}
COMPARED = {"throughput", "adapters"}
"""The parts that say nothing without the rival."""


def main() -> None:
    """Measure the parts that are named, or all, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all when left out")
    parser.add_argument("--run", type=Path, default=os.environ.get(RUN), help=f"finished run; ${RUN} when left out")
    parser.add_argument("--clients", help="numbers of clients, such as 1,16")
    for name in ("requests", "repeats", "slots", "threads", "context", "adapters", "long", "total"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Setting, name))
    parser.add_argument("--out", type=Path, help="write the results to this file, as JSON")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped, too
    arguments = vars(parser.parse_args())
    parts, out, clients = arguments.pop("parts") or list(PARTS), arguments.pop("out"), arguments.pop("clients")
    if unknown := set(parts).difference(PARTS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; take any of {', '.join(PARTS)}")
    if why := missing(arguments["run"], parts):
        sys.exit(why)
    setting = Setting(**arguments)
    if clients:
        setting = replace(setting, clients=tuple(map(int, clients.split(","))))
    results = {part: PARTS[part](setting) for part in parts}
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def missing(run: Path | str | None, parts: Iterable[str] = PARTS) -> str | None:
    """Return what is not there for these parts of the bench, in one line."""
    if run is None:
        return f"skipped: neither --run nor {RUN} names a finished run"
    if llama_server() is None and not COMPARED.isdisjoint(parts):
        return f"skipped: {VARIABLE} names no llama-server, and none is on the PATH"
    return None


if __name__ == "__main__":
    main()
