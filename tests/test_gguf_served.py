"""A base that is the user's own GGUF file: trained on, and served where it lies, without a byte of it being changed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gguf import GGUFReader
from mlx.utils import tree_flatten

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import ModelError
from pilocal.export.fused import export_fused
from pilocal.flow.artefacts import Artefacts
from pilocal.flow.opening import base_of
from pilocal.flow.run import Run, export_run, run_task
from pilocal.llamacpp.model import Model
from pilocal.prompt.render import Message
from pilocal.prompt.tokens import prompt_tokens
from pilocal.run_folder.files import cache_folder
from pilocal.run_folder.hashes import sha256_file
from pilocal.run_folder.shipped import CHAT_TEMPLATE, read_shipped
from pilocal.server.access import Access
from pilocal.server.app import make_app
from pilocal.server.options import ServeOptions
from tests.layouts import SMOLLM2
from tests.test_flow import make_task
from tests.tiny import make_base
from tests.vocabularies import smollm_like

QUERY = [Message(role="user", content="blue")]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base whose chat template has a default system message, which the task leaves out."""
    folder = tmp_path_factory.mktemp("base")
    smollm_like(folder / "tokenizer")
    (folder / "tokenizer" / "chat_template.jinja").write_text(SMOLLM2)
    return make_base(folder / "base", folder / "tokenizer", rope_scaling=None)


@pytest.fixture(scope="module")
def gguf(original: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_fused(original, None, tmp_path_factory.mktemp("models") / "theirs.gguf", "q4_k_m")


@pytest.fixture(scope="module")
def finished(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a whole run on it."""
    task = make_task(tmp_path_factory.mktemp("own") / "task", gguf)
    with (task / "task.toml").open("a") as file:
        file.write("[serving]\ndefault_system = false\n")
    before = sha256_file(gguf), gguf.stat().st_mtime_ns, sorted(cache_folder().rglob("*.gguf"))
    run_task(task, task / "schedule.toml", task / "run", until="evaluate")
    assert (sha256_file(gguf), gguf.stat().st_mtime_ns, sorted(cache_folder().rglob("*.gguf"))) == before
    return task / "run"


@pytest.fixture
def run(finished: Path, gguf: Path, tmp_path: Path) -> Iterator[Path]:
    """The same in another place; the user's file is back where it was after the test."""
    aside = tmp_path / "aside.gguf"
    shutil.copy2(gguf, aside)
    shutil.copytree(finished, tmp_path / "run")
    yield tmp_path / "run"
    shutil.copy2(aside, gguf)


def test_nothing_is_written_but_the_adapter(finished: Path, gguf: Path) -> None:
    shipped = read_shipped(finished)
    assert (shipped.base_path, shipped.served_path) == (gguf, gguf)
    assert shipped.base_files == {gguf.name: sha256_file(gguf)}
    assert sorted(path.name for path in finished.joinpath("export").glob("*.gguf")) == ["adapter.gguf"]
    assert list(Artefacts(finished / "export").entries["lossless"]["files"]) == ["adapter.gguf"]
    fields = GGUFReader(finished / "export" / "adapter.gguf").fields
    assert fields["pilocal.base.sha256"].contents() == base_of(finished).sha256


def test_a_base_with_its_own_chats_is_known_by_its_file_s_hash(gguf: Path) -> None:
    assert Base.of_gguf(gguf).sha256 == sha256_file(gguf)


def ask(run: Path) -> tuple[str, int]:
    """Return the server's answer to the query, and the tokens that it was asked with."""

    async def post(app: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            body = {"model": "tiny", "messages": QUERY, "max_tokens": 4, "temperature": 0}
            return await client.post("/v1/chat/completions", json=body)

    with make_app([read_shipped(run)], ServeOptions(context=512), Access(), lambda entry: None) as app:
        reply = asyncio.run(post(app)).json()
    return reply["choices"][0]["message"]["content"], reply["usage"]["prompt_tokens"]


def plain(text: str) -> str:
    return text.encode("ascii", "ignore").decode().strip()


def test_the_server_asks_it_as_training_did(finished: Path, original: Base) -> None:
    tokens = prompt_tokens(QUERY, base_of(finished).tokenizer)
    assert len(tokens) < len(prompt_tokens(QUERY, original.tokenizer))
    answer, count = ask(finished)
    assert count == len(tokens)
    with Run(finished) as opened:
        # llama-cpp-python completes or leaves out a letter whose bytes the last token cuts.
        assert plain(opened.answer("blue")) == plain(answer) != ""


def test_the_modelfile_names_it_and_llama_server_gets_the_chat_template(run: Path, gguf: Path) -> None:
    export_run(run, forms=["ollama"])
    lines = (run / "export" / "Modelfile").read_text().splitlines()
    assert f"FROM {gguf}" in lines and "ADAPTER ./adapter.gguf" in lines
    card = (run / "export" / "README.md").read_text()
    assert f"-m {gguf} --lora adapter.gguf --jinja --chat-template-file {CHAT_TEMPLATE}" in card
    assert sha256_file(gguf) in card


def test_other_programs_get_it_as_they_read_it(run: Path, gguf: Path) -> None:
    export_run(run, forms=["mlx", "peft"])
    card = (run / "export" / "peft" / "README.md").read_text()
    assert card.count(f"from_pretrained({str(gguf.parent)!r}, gguf_file={gguf.name!r})") == 2
    fused = load_base(Base.at(run / "export" / "mlx"))
    assert prompt_tokens(QUERY, Base.at(run / "export" / "mlx").tokenizer) == prompt_tokens(
        QUERY, base_of(run).tokenizer
    )
    assert dict(tree_flatten(fused.parameters()))["model.norm.weight"].shape == (base_of(run).config["hidden_size"],)


def test_a_type_that_is_asked_for_is_fused_and_needs_the_file_no_more(run: Path, gguf: Path) -> None:
    tokenizer = base_of(run).tokenizer
    export_run(run, quants=["q8_0"], accept_loss=True)
    gguf.unlink()
    shipped = read_shipped(run)
    assert (shipped.base_files, shipped.served_template) == (None, None)
    assert ask(run)[1] == len(prompt_tokens(QUERY, tokenizer))


def test_a_base_that_is_gone_or_another_is_one_line(run: Path, gguf: Path, tmp_path: Path) -> None:
    sha256 = sha256_file(gguf)
    with gguf.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ModelError, match=f"{gguf}: the base has changed since .* got '[0-9a-f]{{64}}'; put .*{sha256}"):
        read_shipped(run)
    gguf.unlink()
    with pytest.raises(
        ModelError, match=f"{gguf}: the base that the adapter belongs to is not there any more; .*{sha256}"
    ):
        read_shipped(run)


def test_a_base_that_was_moved_beside_the_adapter_is_found(
    run: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(run)
    shutil.move(gguf, run / "export" / gguf.name)
    assert read_shipped(run).base_path == run / "export" / gguf.name
    assert ask(run) == expected
    monkeypatch.chdir(run.parent)
    assert ask(Path(run.name)) == expected


def test_copy_makes_a_folder_that_can_be_moved(run: Path, gguf: Path) -> None:
    export_run(run, copy=True)
    copied = run / "export" / gguf.name
    assert sha256_file(copied) == sha256_file(gguf)
    gguf.unlink()
    with Model(read_shipped(run).served_path, vocabulary_only=True) as model:
        assert model.path == copied
