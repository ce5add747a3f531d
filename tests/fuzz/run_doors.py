"""Doors of a run folder: what a run, a comparison or a synthesis has left there and reads again."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random

import numpy as np

from pilocal.errors import PilocalError
from pilocal.flow.cleaning import clean, find_waste
from pilocal.flow.listing import list_runs
from pilocal.flow.opening import open_run
from pilocal.flow.run import Run
from pilocal.flow.runner import run_steps, step_named
from pilocal.flow.start import read_former, start_of
from pilocal.packages import is_installed
from pilocal.report.write import write_report
from pilocal.run_folder.adapter import Adapter, AdapterConfig, read_adapter, read_start
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.live import read_live
from pilocal.run_folder.log import Log, read_log
from pilocal.run_folder.rows import read_records
from pilocal.task import Lora
from pilocal.training.backend import MLX, TORCH
from pilocal.training.checkpoint import FORMATS, Checkpoint, Checkpoints
from pilocal.watch.watcher import Watcher
from tests.fuzz import mutate
from tests.fuzz.door import Door, Files, door
from tests.watched import make_watched

FINISHED = Path(__file__).with_name("finished_run.json")
"""The files of a small task and its finished run, as texts by their names."""

KEY = "k" * 64


def each(*reads: Callable[[], object]) -> None:
    """Call all of these; raise the first error of pilocal's own that any of them raised."""
    errors = []
    for read in reads:
        try:
            read()
        except PilocalError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@cache
def finished() -> Files:
    """Return a task folder with its finished run."""
    found: dict[str, str] = json.loads(FINISHED.read_text(encoding="utf-8"))
    return {name: text.encode() for name, text in found.items()}


def change_of(name: str) -> mutate.Change:
    """Return how the files of a run are changed, by their names."""
    if name.endswith(".safetensors"):
        return mutate.any_safetensors
    return mutate.JSON_LINES if name.endswith(".jsonl") else mutate.JSON


def changing(*names: str) -> Callable[[Files, Random], Files]:
    """Return the mutation that changes some of these files alone; what they begin with is enough."""

    def mutation(files: Files, random: Random) -> Files:
        name = random.choice([name for name in sorted(files) if name.startswith(names)])
        return files | {name: change_of(name)(files[name], random)}

    return mutation


def knock_run(folder: Path, files: Files) -> None:
    """List, clean, watch and open again a run with another run.json."""
    run = folder / "run"

    def opened() -> None:
        state = RunDir(run)
        for name in ("compress", "train", "evaluate"):
            state.is_done(name, KEY)
        start_of(state.state, run)
        Run(run)

    def cleaned() -> None:
        done = clean(find_waste([run]))
        assert all(isinstance(fault, PilocalError) for fault in done.faults)

    each(opened, lambda: [str(line).encode() for line in list_runs(folder)], lambda: read_former(run), cleaned)


door(
    Door(
        name="run.json",
        make=lambda random: finished() | {"run/stages/0/checkpoint/step-0000001.safetensors": b"x", "run/.a.tmp": b"x"},
        mutate=changing("run/run.json"),
        knock=knock_run,
        whole=False,  # no base lies beside it
        short=30,
    )
)


def knock_resume(folder: Path, files: Files) -> None:
    """Go on with a run up to the rows of its stages."""
    with open_run(folder / "run") as context:
        run_steps(context, step_named("stages"))


door(
    Door(
        name="resume",
        make=lambda random: finished(),
        mutate=changing("run/run.json", "run/run.json", "run/stages", "run/export", "run/metrics.json"),
        knock=knock_resume,
        short=4,
        memory=2**31,
        seconds=20,
    )
)


def report_files(random: Random) -> Files:
    """Return a finished run with everything that its report may show."""
    if is_installed("matplotlib"):
        import_module("matplotlib.figure")  # its first import makes folders in the user's home
    entries = [{"entry": "- red is ZOR", "nats": 0.5, "queries": 3, "example": "red"}]
    census = {"key": KEY, "full": 2.0, "bare": 0.5, "entries": entries}
    return finished() | {"run/census.json": json.dumps(census).encode()}


def knock_report(folder: Path, files: Files) -> None:
    """Write the report of a run, and read its metrics and what it shipped."""
    run = folder / "run"
    each(
        lambda: write_report(run).read_text(encoding="utf-8"),
        lambda: write_report(run, price=2.5, comparison=folder / "compare"),
        lambda: Run(run).metrics,
        lambda: [read_records(run / "stages" / "0", split) for split in ("train", "test")],
    )


door(
    Door(
        name="report",
        make=report_files,
        mutate=changing("run/", "compare/"),
        knock=knock_report,
        short=8,
    )
)


@cache
def watched() -> Files:
    """Return a run in the midst of its training."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        run = make_watched(Path(folder) / "run")
        return {f"run/{path.relative_to(run)}": path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def knock_watch(folder: Path, files: Files) -> None:
    """Watch a run, and go on with its logs."""
    from pilocal.watch.app import Viewer

    run = folder / "run"

    def look() -> None:
        viewer = Viewer(Watcher(run))
        json.dumps(viewer.state()).encode()

    def logs() -> None:
        for path in sorted(run.rglob("metrics.jsonl")):
            log = Log(path)
            log.lowest()
            log.is_stale(2)
            log.forget_after(1)
            if log.lines:
                log.speed()
            read_log(path)

    each(look, logs, lambda: read_live(run / "live.json"))


door(
    Door(
        name="watch",
        make=lambda random: watched(),
        mutate=changing("run/"),
        knock=knock_watch,
        short=60,
    )
)


def tensors_files(random: Random) -> Files:
    """Return an adapter, and the checkpoints of a training by each backend."""
    from tempfile import TemporaryDirectory

    weights = {f"model.layers.0.x.lora_{part}": np.full((2, 3), 0.5, dtype=np.float32) for part in "ab"}
    state = Checkpoint(3, (1, 2), weights, {"step": np.array(7, dtype=np.uint64)})
    with TemporaryDirectory() as made:
        folder = Path(made)
        config = AdapterConfig(kind="lora", layers=1, rank=3, scale=2.0, linears=("x",), base_sha256=KEY)
        Adapter(config=config, tensors=weights).write(folder / "adapter")
        for name in (MLX, TORCH):
            checkpoints = Checkpoints(KEY, FORMATS[name], lambda said: None)
            checkpoints.save(folder / name, state)
            checkpoints.save_best(folder / name, state)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


TENSORS = tensors_files(Random(0))


def knock_tensors(folder: Path, files: Files) -> None:
    """Read the adapter as a training and an export do, and the checkpoints as a training that goes on does."""
    said: list[str] = []
    each(
        lambda: read_adapter(folder / "adapter"),
        lambda: read_start(folder / "adapter", Lora(rank=3), KEY),
        *(lambda name=name: Checkpoints(KEY, FORMATS[name], said.append).newest([folder / name]) for name in FORMATS),
        *(lambda name=name: Checkpoints(KEY, FORMATS[name], said.append).best(folder / name) for name in FORMATS),
    )


door(
    Door(
        name="adapters and checkpoints",
        make=lambda random: TENSORS,
        mutate=changing("adapter", MLX, TORCH),
        knock=knock_tensors,
        short=200,
    )
)
