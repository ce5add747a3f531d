"""A check as one page that needs nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from pilocal.errors import InputError, RunError
from pilocal.flow.check_page.prompts import stage_prompts
from pilocal.flow.check_page.sections import answers, data, hints, onward, savings, stages, works
from pilocal.flow.plan import Plan
from pilocal.flow.saving import Prices
from pilocal.report.markup import join, tag
from pilocal.report.page import LARGEST, whole_page
from pilocal.run_folder.files import replacing

LENGTHS = (100_000, 20_000, 4_000, 800, 160, 32)
"""Characters of a text in a prompt, the first that make the page small enough."""

BEGIN = b"<!doctype html"


def check_place(path: Path) -> None:
    """Raise InputError where no page can be, or should be, written: said before any work."""
    if path.is_dir():
        raise InputError(
            path, "this is a folder, not a file for the page", fix=f"name a file, such as {path}/check.html"
        )
    if path.exists() and _holds_something_else(path):
        raise InputError(path, "a file that is no page is there already", fix="name another file, such as check.html")
    above = next(each for each in path.absolute().parents if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(path, f"cannot be written into {above}", fix="name a file where you may write")


def _holds_something_else(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            begin = file.read(len(BEGIN))
    except OSError:
        return True
    return bool(begin) and begin.lower() != BEGIN


def write_check(plan: Plan, path: Path, prices: Prices | None = None) -> Path:
    """Write a check's page and return its path; raises InputError as `check_place`, RunError on a full disk."""
    check_place(path)
    page = make_check(plan, prices)
    with replacing(path) as file:
        file.write(page)
    return path


def make_check(plan: Plan, prices: Prices | None = None) -> str:
    """Return the page, with as much of the prompts as it can hold; raises RunError where it cannot hold them."""
    name = plan.about.name if plan.about else "A task"
    model = plan.about.model if plan.about else "its base"
    above = [answers(plan, prices), savings(plan, prices), stages(plan), works(plan, prices), data(plan)]
    header = tag("header", tag("h1", name), tag("p", f"{model}, before any training", kind="soft"))
    base = "the base and one step" if plan.machine is None else "the sizes of the base, which was not loaded"
    said = f"Predicted by pilocal from the task's files and {base}. Nothing was trained."
    size = 0
    for longest in LENGTHS:
        main = tag("main", join(*above, stage_prompts(plan, longest), hints(plan), onward(plan)))
        page = whole_page(f"{name}: check", join(header, main, tag("footer", tag("p", said))))
        size = len(page.encode())
        if size <= LARGEST:
            return page
    fix = "take fewer stages or shots"
    raise RunError("--html", f"the page would have more than {LARGEST:,} bytes", got=size, fix=fix)
