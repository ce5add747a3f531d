"""Doors of a run folder: what a run, a comparison or a synthesis has left there and reads again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pilocal.comparison.results import Result, read_result
from pilocal.compress.template import CompressedTemplate, _read, _write
from pilocal.errors import PilocalError
from pilocal.flow.artefacts import Artefacts, float_notes
from pilocal.flow.cleaning import clean, find_waste
from pilocal.flow.listing import list_runs
from pilocal.flow.opening import open_run
from pilocal.flow.run import Run
from pilocal.flow.runner import run_steps, step_named
from pilocal.flow.start import read_former, start_of
from pilocal.packages import is_installed
from pilocal.prompt.soft import Soft
from pilocal.report.write import write_report
from pilocal.retrieve import ShotPicker
from pilocal.run_folder.adapter import Adapter, AdapterConfig, read_adapter, read_start
from pilocal.run_folder.calibration import Calibration, read_calibration
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.hashes import remembered_sha256
from pilocal.run_folder.live import Live, read_live
from pilocal.run_folder.log import Log, read_log
from pilocal.run_folder.rows import read_records
from pilocal.run_folder.shipped import read_shipped
from pilocal.run_folder.teacher import read_soft, write_soft
from pilocal.synth.records import Labelled, Records, Remembered
from pilocal.synth.stale import Memory
from pilocal.task import Example, Lora, Retrieval
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


EXAMPLES = [Example(id=str(n), query=f"what is {n}?", answer=f"it is {n} of {n * 7}") for n in range(5)]
TEMPLATE = "Answer.\n- red is ZOR\n- blue is MIP\n"


@cache
def kept() -> Files:
    """Return files that are kept so that nothing is computed twice."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as made:
        folder = Path(made)
        _write(folder / "t.md", KEY, CompressedTemplate(tau=0.5, compressor="rules", text="x", tokens=1, ratio=0.5))
        ShotPicker(EXAMPLES, Retrieval(), folder / "index", k=2)
        Result(arm="linear", seed=0, key=KEY, answers=["x"], prompt_tokens=2.0).save(folder)
        records = Records(folder / "records.jsonl", KEY, Labelled)
        records.add([Labelled(query="x", answer="y", turns=[["user", "z"]]), Labelled(query="x", answer="y")])
        Remembered(lambda some: ["text" for _ in some], folder / "remembered.json", KEY, 4)(["a", "b"])
        memory = Memory(folder / "memory.json", TEMPLATE, ["red"])
        memory.is_stale(EXAMPLES[0])
        memory.save()
        live = Live(steps=("train",), step="train", seconds=1.0, what="train", done=1, total=2)
        (folder / "live.json").write_text(json.dumps({name: getattr(live, name) for name in Live.__slots__}))
        figures: dict[str, Any] = dict.fromkeys(("examples", "wrong", "unsure"), 3)
        Calibration(threshold=-0.5, score=0.5, score_with_fallback=0.75, **figures).save(folder)
        artefacts = Artefacts(folder)
        floats = {"lm_head.weight": {"type": "F32", "bytes": 4_000_000, "bytes_in_base": 1_000_000}}
        artefacts.add("lossless", [folder / "live.json"], kl=0.5, kl_without=0.75, floats=floats)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


def knock_kept(folder: Path, files: Files) -> None:
    """Read each file that is kept as what needs it does, which makes it anew if it is damaged."""

    def artefacts() -> None:
        found = Artefacts(folder)
        float_notes(found.gated)
        found.clear()

    def shots() -> None:
        picker = ShotPicker(EXAMPLES, Retrieval(), folder / "index", k=2)
        assert all(0 <= other < len(EXAMPLES) for number in range(5) for other in picker.for_training(number, 2))

    def remembered() -> None:
        Remembered(lambda some: ["text" for _ in some], folder / "remembered.json", KEY, 4)(["a", "c"])

    def memory() -> None:
        found = Memory(folder / "memory.json", TEMPLATE, ["red"])
        found.is_stale(EXAMPLES[0])
        found.save()

    def records() -> None:
        found = Records(folder / "records.jsonl", KEY, Labelled)
        list(found.missing(4, 2))
        found.add([Labelled(query="x", answer="y")])

    def result() -> None:
        found = read_result(folder, "linear-seed0", KEY)
        _ = found and (found.marks_NS, found.name)

    def calibration() -> None:
        found = read_calibration(folder)
        _ = found and found.line

    live = folder / "live.json"
    each(lambda: _read(folder / "t.md", KEY), shots, remembered, memory, records, result, calibration, artefacts)
    each(lambda: read_live(live) if live.exists() else None)


door(
    Door(
        name="kept files",
        make=lambda random: kept(),
        mutate=changing(""),
        knock=knock_kept,
        short=100,
    )
)


def shipped_files(random: Random) -> Files:
    """Return what a run ships; the models are empty files."""
    found = {name[4:]: data for name, data in finished().items() if name.startswith("run/export/")}
    said = json.loads(found["export/shipped.json"])
    return found | {f"export/{said[name]}": b"GGUF" for name in ("base", "adapter") if said[name]}


def knock_shipped(folder: Path, files: Files) -> None:
    """Read what a run ships, as the server does."""
    shipped = read_shipped(folder)
    shipped.examples()
    _ = shipped.full, bool(shipped.residue), shipped.served_template
    shipped.save_alone()


door(
    Door(
        name="shipped.json",
        make=shipped_files,
        mutate=changing("export/shipped.json", "export/examples.jsonl", "export/confidence.json"),
        knock=knock_shipped,
        short=150,
    )
)


def teacher_files(random: Random) -> Files:
    """Return what a teacher says, as arrays."""
    from tempfile import TemporaryDirectory

    ids = np.arange(6, dtype=np.int32).reshape(3, 2)
    one = Soft(ids, np.full((3, 2), -1, dtype=np.float32), np.full(3, -2, dtype=np.float32))
    with TemporaryDirectory() as folder:
        write_soft(Path(folder) / "0.npz", [one, one], KEY)
        return {"0.npz": (Path(folder) / "0.npz").read_bytes()}


TEACHER = teacher_files(Random(0))


def any_npz(files: Files, random: Random) -> Files:
    """Change the archive's bytes, or the header or the numbers of one array in it."""
    import zipfile

    if random.random() < 0.4:
        return files | {"0.npz": mutate.any_bytes(files["0.npz"], random)}
    made = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(files["0.npz"])) as old, zipfile.ZipFile(made, "w") as new:
            chosen = random.choice(old.namelist())
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, one_array(data, random) if name == chosen else data)
    except Exception:  # it is broken already
        return files | {"0.npz": mutate.any_bytes(files["0.npz"], random)}
    return files | {"0.npz": made.getvalue()}


def one_array(data: bytes, random: Random) -> bytes:
    """Change an array of numpy's format: its header as text, or anything."""
    if random.random() < 0.5:
        return mutate.any_bytes(data, random)
    shapes = (b"(999999999999,)", b"(-1,)", b"()", b"(3, 2, 0)", b"(2**62,)", b"((1,),)", b"[3]", b"(10**400,)")
    types = (b"'|O'", b"'<f9'", b"'|S1000000000'", b"[('a', '<i4')]", b"'<M8[s]'", b"'>i4'", b"None")
    part, others = random.choice(((data.partition(b"'shape': ")[2].partition(b", }")[0], shapes), (b"'<f4'", types)))
    return data.replace(part, random.choice(others)) if part else data


def knock_teacher(folder: Path, files: Files) -> None:
    """Read what the teacher says; what is damaged is asked for again."""
    read_soft(folder / "0.npz", KEY)


door(
    Door(
        name="teacher",
        make=lambda random: TEACHER,
        mutate=any_npz,
        knock=knock_teacher,
        short=150,
    )
)


def knock_hashes(folder: Path, files: Files) -> None:
    """Read a remembered hash that is damaged: the file is hashed again."""
    import os

    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        (folder / "large").write_bytes(b"x" * 8)
        os.utime(folder / "large", (1, 1))
        remembered_sha256(folder / "large", 1)
        note = next((folder / "pilocal" / "hashes").glob("*.json"))
        note.write_bytes(mutate.JSON(note.read_bytes(), Random(files["seed"])))
        assert len(remembered_sha256(folder / "large", 1)) == 64
    finally:
        os.environ.pop("XDG_CACHE_HOME", None)
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


door(
    Door(
        name="remembered hashes",
        make=lambda random: {"seed": str(random.random()).encode()},
        mutate=lambda files, random: {"seed": str(random.random()).encode()},
        knock=knock_hashes,
        short=50,
    )
)
