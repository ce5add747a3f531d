"""Doors of files that are kept so that nothing is computed twice, and of what a run ships."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pilocal.comparison.results import Result, read_result
from pilocal.compress.template import CompressedTemplate, _read, _write
from pilocal.flow.artefacts import Artefacts, float_notes
from pilocal.prompt.soft import Soft
from pilocal.retrieve import ShotPicker
from pilocal.run_folder.calibration import Calibration, read_calibration
from pilocal.run_folder.hashes import remembered_sha256
from pilocal.run_folder.live import Live, read_live
from pilocal.run_folder.shipped import read_shipped
from pilocal.run_folder.teacher import read_soft, write_soft
from pilocal.synth.records import Labelled, Records, Remembered
from pilocal.synth.stale import Memory
from pilocal.task import Example, Retrieval
from tests.fuzz import mutate
from tests.fuzz.door import Door, Files, door
from tests.fuzz.run_doors import KEY, changing, each, finished

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
