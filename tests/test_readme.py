"""The README says what the program does."""

from __future__ import annotations

import re

from tests.readme import README, ROOT, filled


def test_help_and_settings_are_those_of_the_program():
    text = README.read_text(encoding="utf-8")
    assert text == filled(text), "run `just fix`"


def test_every_file_and_command_that_the_readme_names_exists():
    text = README.read_text(encoding="utf-8")
    recipes = {
        line.split(":")[0].split()[0] for line in (ROOT / "Justfile").read_text().splitlines() if re.match(r"\w", line)
    }
    named = set(re.findall(r"\bjust (\w+)`", text)) | set(re.findall(r"^just (\w+)", text, flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= recipes
    paths = set(re.findall(r"`((?:schedules|examples|pilocal|tests)/[\w./-]+)`", text))
    assert len(paths) > 5
    assert not [path for path in paths if not (ROOT / path).exists()]
