"""The documents say what the program does, name what exists, and stay short."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.documents import PAGES, ROOT

LINK = re.compile(r"\]\(([^)#\s]+)\)")
PATH = re.compile(r"`((?:schedules|examples|pilocal|tests)/[\w./-]+)`")
LINES = {"README.md": 180}
"""The longest that a document may be; 150 lines for all others that nobody generates."""

SENTENCE = 25
"""Words of the longest sentence in prose; figures, code and tables apart."""


def tracked_documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    skipped = re.compile(r"examples/[\w-]+/template|starter/model/")
    return [ROOT / name for name in listed.stdout.splitlines() if not skipped.search(name) and (ROOT / name).exists()]


DOCUMENTS = tracked_documents()
WRITTEN = [path for path in DOCUMENTS if path not in PAGES]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_documents_for_the_rooms() -> None:
    assert len([path for path in WRITTEN if path.parent.parent == ROOT / "pilocal"]) > 8


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_generated_document_is_what_the_program_says(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page](), "run `just fix`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_and_every_path_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [path.parent / link for link in LINK.findall(text) if "://" not in link]
    paths = [ROOT / named for named in PATH.findall(text) if "NAME" not in named]
    missing = [str(target) for target in (*links, *paths) if not target.exists()]
    assert not missing


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_a_written_document_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES.get(name_of(path), 150)


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_a_recipe_of_just_that_a_document_names_exists(path: Path) -> None:
    recipe = r"^(\w[\w-]*)(?: \*?\w+(?:=\S+)?)*:(?!=)"
    recipes = set(re.findall(recipe, (ROOT / "Justfile").read_text(), flags=re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`just\s+([\w-]+)", text)) | set(re.findall(r"^just ([\w-]+)", text, flags=re.MULTILINE))
    assert named <= recipes
    if path == ROOT / "README.md":
        assert {"demo", "test"} <= named


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_sentences_of_a_document_are_short(path: Path) -> None:
    assert not [sentence for sentence in sentences(path.read_text(encoding="utf-8")) if words(sentence) > SENTENCE]


def words(sentence: str) -> int:
    return len(re.findall(r"\w[\w'.,/-]*", sentence))


def sentences(text: str) -> list[str]:
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "CODE", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text))
    text = re.sub(r"\*\*", "", text)
    found: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=\s*[-*#|<])", text):
        if not block.lstrip().startswith(("|", "#", "<")):
            found += re.split(r"(?<=[.:;?!])\s+|\)\s+(?=[A-Z])", " ".join(block.split()))
    return found
