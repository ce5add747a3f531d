"""Claims about the user's own ladder of templates."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from pilocal.compress import CompressedTemplate, Tools, compress_template
from pilocal.errors import InputError
from pilocal.task import Compression

TEMPLATE = "You sort mail into boxes.\nPlease greet {name} first.\nNever open a parcel.\n"
RUNGS = {"0.67.md": "Sort mail.\nGreet {name}. Open no parcel.\n", "0.33.md": "Sort mail, {name}.\n"}
TAUS = (1.0, 2 / 3, 1 / 3, 0.0)


def climb(
    folder: Path, rungs: dict[str, str], taus: tuple[float, ...] = TAUS, keep: tuple[str, ...] = ()
) -> tuple[CompressedTemplate, ...]:
    def needless(*_: object) -> NoReturn:
        raise AssertionError("a ladder needs no model")

    (folder / "mine").mkdir(exist_ok=True)
    for name, text in rungs.items():
        (folder / "mine" / name).write_text(text)
    tools = Tools(
        count_tokens=lambda text: len(text.split()), base_id="x", folder=folder, load_model=needless, download=needless
    )
    config = Compression(method="ladder", ladder="mine", keep=keep)
    return compress_template(TEMPLATE, taus, config, tools, folder / "templates")


def fault(folder: Path, rungs: dict[str, str], **settings: tuple[str, ...]) -> str:
    with pytest.raises(InputError) as caught:
        climb(folder, rungs, **settings)  # type: ignore[arg-type]
    return str(caught.value).replace(f"{folder}/", "")


def test_a_rung_serves_the_tau_that_rounds_to_its_name(tmp_path: Path) -> None:
    whole, two_thirds, third, gone = climb(tmp_path, RUNGS)
    assert (whole.text, two_thirds.text, third.text, gone.text) == (TEMPLATE, *RUNGS.values(), "")
    assert (third.compressor, third.ratio) == ("ladder", 3 / 13)


def test_the_nearest_of_two_rungs_is_taken(tmp_path: Path) -> None:
    rungs = {"0.7.md": "Sort mail. Open no parcel now.", "0.67.md": "Sort mail. Open nothing.", "0.3.md": "Sort mail."}
    assert climb(tmp_path, rungs)[1].text == rungs["0.67.md"]


def test_a_gap_says_what_is_there(tmp_path: Path) -> None:
    assert fault(tmp_path, {"0.67.md": "Sort mail."}) == (
        "mine: a gap: no file for tau 0.3333; there is 0.67.md; write 0.33.md, or change the schedule"
    )
    (tmp_path / "mine" / "0.67.md").unlink()
    assert len(fault(tmp_path, {}).splitlines()) == 2
    assert "there is nothing" in fault(tmp_path, {})


def test_a_file_must_not_grow(tmp_path: Path) -> None:
    rungs = {"0.67.md": "Sort mail.", "0.33.md": "Sort all the mail."}
    assert fault(tmp_path, rungs) == (
        "mine/0.33.md: grows: 4 tokens, but 0.67.md has 2; shorten it, or name it after a larger tau"
    )


def test_no_file_is_longer_than_the_template(tmp_path: Path) -> None:
    assert "0.67.md: grows: 26 tokens, but the template has 13" in fault(tmp_path, RUNGS | {"0.67.md": TEMPLATE * 2})


@pytest.mark.parametrize("name", ["short.md", "1.5.md", "0.md", "0.0.md", "-0.5.md", "0.5.txt", "1e-1.md", "README.md"])
def test_a_name_must_be_a_number_between_0_and_1(tmp_path: Path, name: str) -> None:
    line = fault(tmp_path, RUNGS | {name: "Sort."})
    assert line.startswith(f"mine/{name}: its name is not a number between 0 and 1 with .md; name it after its tau")
    assert len(line.splitlines()) == 1


def test_two_files_of_one_tau_are_refused(tmp_path: Path) -> None:
    assert "mine/0.330.md: the same tau as 0.33.md" in fault(tmp_path, RUNGS | {"0.330.md": "Sort."})


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert fault(tmp_path, RUNGS | {"0.33.md": " \n"}) == "mine/0.33.md: the file is empty; fill it in"


def test_a_missing_folder_and_a_missing_setting_are_one_line_each(tmp_path: Path) -> None:
    tools = Tools(count_tokens=len, base_id="x", folder=tmp_path, load_model=NotImplemented, download=NotImplemented)
    for ladder, line in (
        ("none", f"{tmp_path}/none: no such folder; create it, with one file per tau of the schedule"),
        (None, '[compression] ladder: method = "ladder" needs it; set ladder = "FOLDER"'),
    ):
        with pytest.raises(InputError) as caught:
            compress_template(TEMPLATE, TAUS, Compression(method="ladder", ladder=ladder), tools, tmp_path)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


def test_a_file_that_lost_what_is_to_be_kept_is_refused(tmp_path: Path) -> None:
    assert climb(tmp_path, RUNGS, keep=("{",))[2].text == RUNGS["0.33.md"]
    assert fault(tmp_path, RUNGS | {"0.33.md": "Sort mail."}, keep=("{",)) == (
        "mine/0.33.md: a protected text is missing; got '{name}'; put it back, or take it out of [compression] keep"
    )


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    climb(tmp_path, RUNGS)
    assert climb(tmp_path, RUNGS | {"0.33.md": "Sort it."})[2].text == "Sort it."
