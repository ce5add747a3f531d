"""Training data from a template: entries, what queries call them, new queries, and the prompted self's answers."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import pilocal.synth.files as files
from pilocal.base.base import Base
from pilocal.compress.entries import Index, alone, read_entries, read_names, without
from pilocal.errors import Faults, InputError
from pilocal.flow.listeners import Listeners
from pilocal.prompt.render import Message
from pilocal.prompt.sampling import Sampling
from pilocal.synth import synthesize
from pilocal.synth.queries import OWN, TEST, TRAIN, VALID, Coverage, cover
from pilocal.synth.recombine import Recombiner
from pilocal.synth.teacher import CUT, EMPTY, Teacher
from pilocal.task import load_task
from pilocal.task.text import key_of
from tests.forked import pilocal
from tests.test_flow import make_task

GAP = Path(__file__).parent.parent / "examples" / "smart-home-gap"
TEMPLATES = Path(__file__).parent / "templates"


@pytest.mark.parametrize(
    "template",
    [
        "- lamp NIZ\n- door VOL\n- night light SUK\n",
        "- lamp: NIZ\n- door: VOL\n- night light: SUK\n",
        "- `lamp` -> NIZ, always\n- `door` -> VOL\n- `night light` -> SUK, at night\n",
        "- NIZ is the lamp\n- VOL is the door\n- SUK is the night light\n",
    ],
)
def test_queries_tell_what_the_entries_of_a_list_are_called(template: str) -> None:
    entries = read_entries(f"Codes of things.\n{template}Answer with the code.")
    assert [entry.group is None for entry in entries] == [True, False, False, False, True]
    (names,) = read_names(entries, ["dim my Lamp", "dim my door, please", "dim my door"])
    assert {number: name.lower() for number, name in names.by_entry.items()} == {1: "lamp", 2: "door", 3: "night light"}


PROSE = {
    "English": "You run a shop. It opens at nine, e.g. on Mondays. Ask Dr. Holt for a refund! Dogs may enter.",
    "without capitals": "you run a shop. it opens at nine. dogs may enter.",
    "broken by width": "You run a shop that is in Calder Bay and opens at nine. It\nis closed on Sundays. The owner is "
    "called Maren Holt and the\nwarehouse is in Tilburg.",
}


FOREIGN = ("russian", "japanese", "korean", "arabic", "chinese")


@pytest.mark.parametrize("kind", [*PROSE, *FOREIGN])
def test_the_entries_of_a_paragraph_are_its_sentences(kind: str) -> None:
    template = PROSE.get(kind) or (TEMPLATES / f"{kind}.txt").read_text(encoding="utf-8").strip()
    entries = read_entries(template)
    ends = [entry.text for entry in entries]
    assert len(entries) >= 3 and (kind != "English" or len(entries) == 4)
    assert all(text[-1] in ".!?\u3002\uff01\uff1f\u061f" for text in ends)
    assert "".join(ends).replace(" ", "") == template.replace(" ", "").replace("\n", "")
    for entry in entries:
        left = [one.text for one in read_entries(without(template, entry))]
        assert kind == "broken by width" or left == [text for text in ends if text != entry.text]
        assert entry.text not in " ".join(without(template, entry).split())


Chats = Sequence[Sequence[Message]]


def test_lines_that_are_not_broken_by_width_are_entries_of_their_own() -> None:
    lines = ["Lamp: NIZ, the code of a lamp in any room", "Door: VOL", "Use `find . -name x` for files. Be brief."]
    assert [entry.text for entry in read_entries("\n".join(lines))] == [
        *lines[:2],
        "Use `find . -name x` for files.",
        "Be brief.",
    ]


def test_entries_alone_keep_the_rules_around_them() -> None:
    template = "Answer with codes.\n\nThings:\n- lamp NIZ\n- door VOL\n\nRooms:\n- hall HAL\n- attic GUN\n\nUse commas."
    assert alone(template, [1, 4]) == (
        "Answer with codes.\n\nThings:\n- lamp NIZ\n\nRooms:\n- attic GUN\n\nUse commas."
    )
    assert alone("You sell bikes. A bike costs 5. A lock costs 1.", [1]) == "You sell bikes. A bike costs 5."


@pytest.mark.parametrize("queries", [[], ["dim the lamp", "dim it"], ["use the lamp", "be at the lamp"]])
def test_a_list_whose_words_queries_have_by_chance_has_no_names(queries: list[str]) -> None:
    entries = read_entries("Rules:\n- Be brief.\n- Use commas.\n- Never ask.\n- lamp NIZ\n")
    assert read_names(entries, queries) == []


def test_queries_that_name_half_of_a_long_list_name_it() -> None:
    entries = read_entries("\n".join(f"- {word}: code {word[0]}" for word in ("lamp", "door", "fan", "oven", "kettle")))
    (names,) = read_names(entries, ["dim the lamp", "is a door shut?", "how warm is my oven"])
    assert list(names.by_entry.values()) == ["lamp", "door", "fan", "oven", "kettle"]
    assert read_names(entries, ["dim the lamp", "is a door shut?"]) == []


def test_sentences_are_not_named_by_a_word_at_one_place_of_each() -> None:
    """Names that queries have by chance, since the words are common, would be put into other queries."""
    facts = ("A city bike costs 18 euros a day.", "The trailer costs 7 euros.", "Helmets are lent free of charge.")
    more = ("Whoever hires a bike has to be 16.", "The deposit is 150 euros.", "Dogs may ride in the trailer.")
    entries = read_entries("Hiring:\n" + "\n".join(f"- {fact}" for fact in (*facts, *more)))
    queries = ["what does a city bike cost?", "how much is the trailer?", "are helmets free?", "what hires a bike?"]
    assert read_names(entries, [*queries, "which deposit is there?", "may my dog come in the trailer?"]) == []


def test_sentences_of_one_form_are_named() -> None:
    """What stands before and behind the names is the same in all: the words between are what differs."""
    rooms = ("kitchen", "cellar", "attic", "hall", "garage")
    entries = read_entries("Rooms:\n" + "\n".join(f"- The {room} is on floor {len(room)} of it" for room in rooms))
    (names,) = read_names(entries, ["where is my kitchen?", "which floor has the attic", "to the hall, please"])
    assert list(names.by_entry.values()) == list(rooms)


def lists(*queries: str) -> Recombiner:
    entries = read_entries("Things:\n- lamp NIZ\n- door VOL\n- fan VER\nRooms:\n- hall HAL\n- attic GUN\n- study MAL\n")
    return Recombiner(Index(read_names(entries, queries)), queries)


def test_new_queries_put_other_entries_of_the_same_list_in() -> None:
    queries = ["dim the lamp in the hall", "dim the door in the attic", "open the door of the attic"]
    queries += ["dim the lamp in the attic"]
    recombiner = lists(*queries)
    taken = {key_of(query) for query in queries}
    made = recombiner.make({}, 3, taken, seed=0)
    assert len({key_of(one.query) for one in made}) == len(made)
    counts = Counter(number for one in made for number in set(one.entries))
    assert set(counts) == set(recombiner.named)
    assert min(counts.values()) >= 3
    form = re.compile(r"(dim the (lamp|door|fan) in|open the (lamp|door|fan) of) the (hall|attic|study)")
    for one in made:
        assert form.fullmatch(one.query)
        assert one.query not in queries
        assert one.entries == recombiner.index.entries_of(one.query)
    assert made == recombiner.make({}, 3, {key_of(query) for query in queries}, seed=0)
    assert made != recombiner.make({}, 3, {key_of(query) for query in queries}, seed=1)


def test_an_entry_whose_wordings_are_used_up_has_fewer() -> None:
    recombiner = lists("dim the lamp in the hall", "dim the door in the hall", "dim the door in the attic")
    made = recombiner.make({}, 100, set(), seed=0)
    assert len(made) == 9
    assert recombiner.make({}, 100, {key_of(one.query) for one in made}, seed=0) == []


def gap(per_entry: int = 10) -> Coverage:
    task = load_task(GAP)
    solved, valid, test = ([example.query for example in split] for split in (task.train, task.valid, task.test))
    return cover(task.template, solved, [], [*valid, *test], per_entry=per_entry, seed=0, held_out={VALID: valid})


def test_the_entries_that_lack_queries_are_those_that_no_training_answer_shows() -> None:
    found = gap()
    lacking = {number for number in found.nameable if not found.known[number]}
    lines = (GAP / "test.jsonl").read_text().splitlines()
    left_out = {word for line in lines for word in json.loads(line).get("left_out", ())}
    assert {found.entries[number].text.split()[0] for number in lacking} == left_out
    assert len(lacking) == 16
    counts = Counter(found.known)
    for one in found.asked:
        counts.update(set(one.entries) if one.split == TRAIN else ())
    assert min(map(counts.__getitem__, found.nameable)) >= 10
    assert Counter(one.split for one in found.asked).keys() == {TRAIN, VALID}
    assert lacking <= set().union(*(one.entries for one in found.asked if one.split == VALID))


@pytest.fixture
def gap_task(tmp_path: Path) -> Path:
    folder = shutil.copytree(GAP, tmp_path / "gap", ignore=shutil.ignore_patterns("run"))
    (folder / "task.toml").write_text((folder / "task.toml").read_text() + "\n[synth]\nper_entry = 1\n")
    return folder


def test_the_prompted_self_knows_the_answers(gap_task: Path) -> None:
    report = synthesize(gap_task)
    codes = {line[2:].split()[0]: line.split()[-1] for line in (gap_task / "template.md").read_text().splitlines()
             if re.fullmatch(r"- \w+ [A-Z]{3}", line)}  # fmt: skip
    codes |= {"lower": "MEN", "kitchen": "ZER"}  # the template's exceptions
    records = [json.loads(line) for line in (gap_task / "synth" / "train.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (gap_task / "train.jsonl").read_text().splitlines()]
    assert records[: len(before)] == before
    made = [record for record in records[len(before) :] if record["origin"] == "recombined"]
    assert len(made) == len(records) - len(before) > 5
    named = [(re.findall(r"\w+", record["query"]), record["answer"]) for record in made]
    right = [codes[word] in answer for words, answer in named for word in words if word in codes]
    assert len(right) > 10
    assert sum(right) >= 0.98 * len(right)
    assert report["short"] == []
    assert 'train = "synth/train.jsonl", valid = "synth/valid.jsonl"' in report["advice"]
    splits = "".join(f'{split} = "synth/{split}.jsonl"\n' for split in (TRAIN, VALID))
    text = (gap_task / "task.toml").read_text().replace("[training]", f"{splits}[training]", 1)
    (gap_task / "task.toml").write_text(text)
    assert len(load_task(gap_task).train) == len(records)
    assert synthesize(gap_task)["advice"] is None  # the solved examples are those of train.jsonl, as before


def test_every_turn_of_a_solved_conversation_counts(gap_task: Path) -> None:
    talk = [("user", "reset the lamp"), ("assistant", "KUV NIZ"), ("user", "and now?"), ("assistant", "KUV")]
    record = {"messages": [{"role": role, "content": text} for role, text in talk]}
    with (gap_task / "train.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    report = synthesize(gap_task)
    assert {row["entry"].split()[0]: row["solved"] for row in report["entries"]}["lamp"] == 1


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def learnable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never end an answer: that is no reason to drop it."""
    monkeypatch.setattr(Teacher, "objection", lambda self, answer: None)


@pytest.mark.usefixtures("learnable")
def test_a_synthesis_that_is_killed_and_run_again_leaves_the_same_bytes(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", 3)
    whole, killed = (template_only(tmp_path / name, tiny_base) for name in ("whole", "killed"))
    synthesize(whole)
    expected = folder_bytes(whole / "synth")
    assert len(expected["records.jsonl"].splitlines()) > 8
    for stop in (3, 6):

        def progress(what: str, done: int, total: int, note: str = "", stop: int = stop) -> None:
            if (what, done) == ("synth", stop):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            synthesize(killed, listeners=Listeners(progress=progress))
        records = killed / "synth" / "records.jsonl"
        assert len(records.read_bytes().splitlines()) == 1 + stop
        records.write_bytes(records.read_bytes()[:-9])  # the last line is cut
    asked, reply = list[Chats](), Teacher.reply

    def counted(self: Teacher, chats: Chats, sampling: Sampling | None = None) -> list[str]:
        asked.append(chats)
        return reply(self, chats, sampling)

    monkeypatch.setattr(Teacher, "reply", counted)
    synthesize(killed)
    assert folder_bytes(killed / "synth") == expected
    assert 0 < len(asked) == -(-(len(expected["records.jsonl"].splitlines()) - 1 - 3) // 3)
    asked.clear()
    synthesize(killed)
    assert asked == []
    (killed / "template.md").write_text((killed / "template.md").read_text() + "Be quick.\n")
    synthesize(killed)
    assert asked


def template_only(folder: Path, base: Base) -> Path:
    """A task that has a template and queries of the user's own, and no answer."""
    make_task(folder, base.folder)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").unlink()
    paths = "\n".join(f'{split} = "synth/{split}.jsonl"' for split in ("train", "valid", "test"))
    text = (folder / "task.toml").read_text().replace('name = "tiny"', f'name = "tiny"\n{paths}')
    (folder / "task.toml").write_text(text + "[synth]\nper_entry = 3\n")
    queries = ["what is red?", "what is blue?", "the code of red", "tell me blue", "red, please", "show blue now"]
    queries += ["what about red?", "I need blue", "how is blue called?", "name red"]
    (folder / "queries.jsonl").write_text("".join(json.dumps({"query": query}) + "\n" for query in queries))
    return folder


@pytest.mark.usefixtures("learnable")
def test_a_task_with_a_template_and_queries_alone_gets_every_split(tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    with pytest.raises(Faults, match="no such file"):
        load_task(folder)
    report = synthesize(folder)
    assert report["advice"] is None
    assert report["made"][TRAIN][OWN] == 10
    task = load_task(folder)
    assert {example.query for example in task.train} >= {"what is red?", "show blue now"}
    for split in (task.train, task.valid, task.test):
        assert any("green" in example.query for example in split)


@pytest.mark.parametrize(("answer", "why"), [("  \n", EMPTY), ("ZOR " * 4, CUT)])
def test_what_is_no_answer_is_dropped_and_counted(
    answer: str, why: str, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = template_only(tmp_path / "task", tiny_base)

    def reply(self: Teacher, chats: Chats, sampling: Sampling | None = None) -> list[str]:
        return [answer if "what" in chat[-1]["content"] else "ZOR" for chat in chats]

    monkeypatch.setattr(Teacher, "reply", reply)
    report = synthesize(folder)
    assert report["dropped"] == {why: sum("what" in query for query in queries_of(folder))}
    assert not any("what" in line for split in (TRAIN, VALID, TEST) for line in lines_of(folder, split))


def queries_of(folder: Path) -> Iterator[str]:
    for line in (folder / "synth" / "records.jsonl").read_text().splitlines()[1:]:
        yield json.loads(line)["query"]


def lines_of(folder: Path, split: str) -> list[str]:
    return (folder / "synth" / f"{split}.jsonl").read_text().splitlines()


def test_without_queries_there_is_one_line_that_says_what_is_needed(tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"no query names an entry; got '0 of \d+ entries'; set \[synth\] generator"):
        synthesize(folder)
    (folder / "queries.jsonl").write_text('{"query": "a"}\n{"question": "b"}\n["c"]\n')
    with pytest.raises(InputError, match=r"queries.jsonl:2: the record has no query, and 1 more like it"):
        synthesize(folder)


def test_where_no_answer_can_be_learned_from_there_is_one_line_and_no_file(tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    done = pilocal("synth", folder)
    assert done.returncode == 1
    assert re.search(r"train queries: no answer can be learned from; got '\d+: the answer is cut off", done.stderr)
    assert [path.name for path in (folder / "synth").iterdir()] == ["records.jsonl"]


def test_the_command_prints_a_table_and_the_report(gap_task: Path) -> None:
    done = pilocal("synth", gap_task)
    assert done.returncode == 0, done.stderr
    assert "unlock VUL" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    again = pilocal("synth", gap_task, "--json")
    assert json.loads(again.stdout) == json.loads((gap_task / "synth" / "report.json").read_text())


def test_where_no_query_is_missing_there_is_one_line(tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    many = [
        {"query": f"{ask} {word}{mark}"} for ask in "abcdefgh" for word in ("red", "blue", "green") for mark in ".!"
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in many))
    records = [one | {"answer": "ZOR"} for one in many]
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[:30]))
    for split, some in (("valid", records[30:45]), ("test", records[45:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    (folder / "queries.jsonl").unlink()
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(text.replace("synth/", ""))
    with pytest.raises(InputError, match=r"every entry that queries name has enough of them; got '3 of \d entries'"):
        synthesize(folder)


@pytest.mark.usefixtures("learnable")
def test_after_an_edit_the_answers_of_changed_entries_are_made_anew(tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    asks = ("what is {}?", "the code of {}", "tell me {}", "{}, please")
    of_blue = [{"query": ask.format("blue"), "answer": "MIP"} for ask in asks]
    of_red = [{"query": ask.format("red"), "answer": "ZOR"} for ask in asks]
    records = [*of_red, *of_blue]
    held_out = [{"query": "and blue?", "answer": "MIP"}]
    for name, some in (("train", records), ("test", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    text = (folder / "task.toml").read_text().replace('test = "synth/test.jsonl"', 'test = "test.jsonl"')
    (folder / "task.toml").write_text(text)
    said: list[str] = []

    def solved() -> list[str]:
        synthesize(folder, listeners=Listeners(warn=said.append))
        return [one["query"] for one in map(json.loads, lines_of(folder, TRAIN)) if "origin" not in one]

    assert solved() == [one["query"] for one in records]
    (folder / "template.md").write_text((folder / "template.md").read_text().replace("blue MIP", "blue TUK"))
    for _ in range(2):  # run again, it knows it still
        assert solved() == [one["query"] for one in of_red]
    asked = {one["query"]: one for one in map(json.loads, lines_of(folder, TRAIN)) if one.get("origin") == OWN}
    assert {one["query"] for one in of_blue} <= asked.keys()
    assert said[:2] == [
        f"{folder}/task.toml, train: 4 of 8 examples name an entry that has changed since; they are asked anew",
        f"{folder}/task.toml, test: 1 of 1 examples name an entry that has changed since; correct their answers",
    ]
    corrected = (folder / "train.jsonl").read_text().replace("MIP", "TUK")
    (folder / "train.jsonl").write_text(corrected)
    assert solved() == [one["query"] for one in records]
