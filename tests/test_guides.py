"""The guides: each of their command lines is run here, or says what it needs and is a command that exists.

A small random model stands in for the base of every task that `pilocal init` makes, and trains for four steps.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from pilocal.base.base import Base
from pilocal.cli import cli
from pilocal.errors import RunError
from pilocal.run_folder.hashes import sha256_file
from tests.bench.macbook import memory_table
from tests.made_logs import Message, query, rules, sentence
from tests.reports import change
from tests.serving import Server, running
from tests.test_logs_folder import rng

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "guides"
GUIDES = sorted(FOLDER.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"\s+# needs: (.+)$")
KNOWN = {"a network", "a Raspberry Pi", "Debian", "LM Studio", "macOS", "Ollama", "llama-server", "llama.cpp"}
"""What a line may need that a test does not have."""

OUR_SERVER = "http://127.0.0.1:8080"
OLLAMA = "ollama:llama3.2:1b"

SMALL = """
[training]
steps = 4
batch_size = 4
learning_rate = 1e-3
direct_drop = false
[lora]
rank = 2
[generation]
max_tokens = 4
timed_requests = 2
[export]
accept_loss = true
[evaluation]
unrelated_tokens = 2
"""
"""Settings of a training that takes seconds."""


@dataclass(frozen=True)
class Line:
    """A command line of a guide."""

    text: str
    needs: str | None

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def blocks(guide: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(guide.read_text(encoding="utf-8")) if found == language]


def workflows(guide: Path) -> Iterator[str]:
    """Yield what the jobs of a guide's workflows run, step by step."""
    for text in blocks(guide, "yaml"):
        yield from re.findall(r"^\s*- run: (.+)$", text, flags=re.MULTILINE)


def lines(guide: Path) -> list[Line]:
    """The command lines of a guide, those of its workflows after the others."""
    texts = [line for text in blocks(guide, "sh") for line in text.splitlines() if line.strip()]
    found = []
    for text in (*texts, *workflows(guide)):
        needs = NEEDS.search(text)
        found.append(Line(NEEDS.sub("", text), needs[1] if needs else None))
    return found


def test_there_is_a_guide_for_each_way_and_the_index_has_it() -> None:
    assert {guide.stem for guide in GUIDES} == {
        "ci", "edge-box", "lm-studio", "macbook", "ollama", "openai-logs", "several-prompts",
    }  # fmt: skip
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"](guides/{guide.name})" in index for guide in GUIDES)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_what_a_line_needs_is_known_and_every_command_of_pilocal_exists(guide: Path) -> None:
    found = lines(guide)
    assert found
    assert {line.needs for line in found} - {None} <= KNOWN
    for line in found:
        check_options(line.words)
    for text in re.findall(r"`(pilocal [a-z][^`]*)`", guide.read_text(encoding="utf-8")):
        with suppress(click.MissingParameter):  # prose may name a command alone
            check_options(shlex.split(text))
    for text in blocks(guide, "python"):
        ast.parse(text)


def check_options(words: list[str]) -> None:
    """Read a command line as pilocal would, without running it."""
    if "pilocal" not in words[:3] or words[0] == "pip":
        return
    name, *rest = words[words.index("pilocal") + 1 :]
    context_of(name, rest).close()


def context_of(name: str, words: list[str]) -> click.Context:
    """Read the words behind a command; its names for --help are kept, so they come from above as always."""
    above = click.Context(cli, info_name="pilocal", **cli.context_settings)
    command = cli.get_command(above, name)
    assert command is not None, name
    return command.make_context(name, list(words), parent=above)


def requests(path: Path) -> None:
    """Write a log as the guide on logs does, with a secret in one row."""
    draw = rng()
    text = rules(draw, 4)
    rows = []
    for number in range(40):
        asked = query(draw) + (" me@example.com" if number == 7 else "")
        messages: list[Message] = [{"role": "system", "content": text}, {"role": "user", "content": asked}]
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": sentence(draw, 1, 2)}}
        rows.append({"request": {"model": "gpt", "messages": messages}, "response": {"choices": [choice]}})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_small(task: Path, base: str) -> None:
    """Put the small base and the short training into the place of a task's own."""
    file = task / "task.toml"
    head = re.split(r"^\[", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[0]
    model = tomllib.loads(head)["model"]
    # Ollama's name stays: it leads to a small model here.
    small = (
        head if model == OLLAMA else re.sub(r"^model = .*$", f"model = {json.dumps(base)}", head, flags=re.MULTILINE)
    )
    file.write_text(small + SMALL, encoding="utf-8")


def run_line(words: list[str]) -> str:
    """Run a command of pilocal in this process; an error is raised."""
    result = CliRunner().invoke(cli, words[1:], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


@dataclass
class Shell:
    """Runs a guide's lines, one after the other, in a folder; servers go on until the guide ends."""

    folder: Path
    base: str
    stack: ExitStack
    server: Server | None = None
    said: list[str] = field(default_factory=list)

    def run(self, line: Line) -> str:
        words = line.words
        if words[:2] == ["pilocal", "serve"]:
            self.serve(words[2:])
            return ""
        if words[0] == "pilocal":
            # What a random model has learned in four steps no gate lets pass.
            output = run_line([*words, *(["--accept-loss"] if words[1] == "export" else [])])
            if words[1] == "init":
                make_small(self.folder / words[2], self.base)
            return output
        text = line.text.replace(OUR_SERVER, self.server.url) if self.server else line.text
        done = subprocess.run(["sh", "-c", text], check=False, capture_output=True, text=True)
        assert done.returncode == 0, (text, done.stderr)
        return done.stdout

    def serve(self, words: list[str]) -> None:
        runs = context_of("serve", words).params["runs"]
        options = [word for word in words if Path(word) not in runs]
        place = self.folder.parent / "server"
        place.mkdir(exist_ok=True)
        self.server = self.stack.enter_context(running([self.folder / run for run in runs], place, *options))


@pytest.fixture(scope="module")
def trained(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of logs with a finished run."""
    folder = tmp_path_factory.mktemp("guides")
    requests(folder / "requests.jsonl")
    task = folder / "task"
    run_line(["pilocal", "init", str(task), "--from-logs", str(folder / "requests.jsonl"), "--model", "starter"])
    make_small(task, str(tiny_base.folder))
    run_line(["pilocal", "run", str(task)])
    return task


@pytest.fixture
def shell(trained: Path, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in a new folder with the log, and a home without models."""
    folder, home = tmp_path / "here", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    shutil.copy(trained.parent / "requests.jsonl", folder)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    with ExitStack() as stack:
        yield Shell(folder, str(tiny_base.folder), stack)


def put(trained: Path, task: Path) -> None:
    """Copy a trained task to another place, under the name of its folder."""
    shutil.copytree(trained, task)
    change(task / "run" / "run.json", lambda state: state["task"].update(folder=str(task)))
    file = task / "task.toml"
    file.write_text(re.sub(r"^name = .*$", f'name = "{task.name}"', file.read_text(), count=1, flags=re.MULTILINE))
    run_line(["pilocal", "run", str(task)])


def tasks_of(guide: Path) -> set[str]:
    """The tasks that a guide takes for trained: what it names and does not make."""
    named = {word.removesuffix("/run") for line in lines(guide) for word in line.words if word.endswith("/run")}
    named |= {line.words[2] for line in lines(guide) if line.words[:2] == ["pilocal", "run"]}
    made = {line.words[2] for line in lines(guide) if line.words[:2] == ["pilocal", "init"] and line.needs is None}
    return named - made


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if guide.stem != "ci"], ids=lambda guide: guide.stem)
def test_every_line_of_a_guide_works(guide: Path, shell: Shell, trained: Path, request: pytest.FixtureRequest) -> None:
    if guide.stem == "ollama":
        request.getfixturevalue("ollama")
    for name in tasks_of(guide):
        put(trained, shell.folder / name)
    for line in lines(guide):
        if line.needs is None:
            said = shell.run(line)
            if "/v1/chat/completions" in line.text:
                assert '"choices"' in said, said
                shell.said.append(said)
    if guide.stem == "several-prompts":
        headers = shell.said[3].lower()
        for name in ("x-pilocal-task: support", "x-pilocal-arm: internalized", "x-pilocal-prompt-tokens-saved: 0"):
            assert name in headers


@pytest.fixture
def ollama(tiny_base: Base, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder like Ollama's, in which the guide's model is a small one."""
    folder, (gguf,) = tmp_path / "ollama", (trained / "run" / "export").glob("base-*.gguf")
    digest = f"sha256:{sha256_file(gguf)}"
    (folder / "blobs").mkdir(parents=True)
    shutil.copy(gguf, folder / "blobs" / digest.replace(":", "-"))
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / "llama3.2" / "1b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))


def test_a_workflow_fails_below_the_bar_and_passes_above_it(shell: Shell, trained: Path) -> None:
    guide = FOLDER / "ci.md"
    put(trained, shell.folder / "prompts" / "support")
    (workflow,) = [yaml.safe_load(text) for text in blocks(guide, "yaml")]
    (job,) = workflow["jobs"].values()
    steps = [step["run"] for step in job["steps"] if "run" in step]
    bars = [line for line in lines(guide) if "--at-least" in line.words]
    assert [line.text for line in bars] == ["pilocal run prompts/support --at-least 0.95"] * 2
    assert bars[0].text == steps[-1]
    for line in lines(guide):
        if line.needs is not None:
            continue
        if line not in bars:
            shell.run(line)
            continue
        with pytest.raises(RunError, match=r"^\S+metrics.json: what is served scores less than --at-least 0.95; got "):
            run_line(line.words)
        for command in ("run", "evaluate"):
            assert "shipped" in run_line(["pilocal", command, "prompts/support", "--at-least", "0"])


def test_the_memory_of_a_mac_is_what_is_predicted() -> None:
    text = (FOLDER / "macbook.md").read_text(encoding="utf-8")
    assert text.split("<!-- memory -->\n")[1].split("<!-- /memory -->")[0] == memory_table()
