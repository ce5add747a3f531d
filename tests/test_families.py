"""A whole run on a small base of every architecture, up to the answers of a server, beside MLX's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from mlx.utils import tree_flatten

from pilocal.base.base import Base
from pilocal.base.generate import generate
from pilocal.base.load import load_base
from pilocal.export.fused import export_fused
from pilocal.export.lossless import export_lossless
from pilocal.flow.opening import base_of
from pilocal.flow.run import run_task
from pilocal.llamacpp.model import Model
from pilocal.progress import silent
from pilocal.prompt.render import Message
from pilocal.prompt.tokens import end_tokens, prompt_tokens
from pilocal.run_folder.hashes import sha256_file
from pilocal.run_folder.shipped import read_shipped
from pilocal.server.access import Access
from pilocal.server.app import make_app
from pilocal.server.options import ServeOptions
from tests.soak.questions import Choice, choices
from tests.test_architectures import SHAPES
from tests.test_export import llama, mlx_logits, tokens_T
from tests.test_flow import make_task
from tests.tiny import GEMMA3, OTHERS, make_base

NEAR = 0.02
"""Nats between two tokens that are as likely: sums in another order differ by less."""

TOKENS = 8
"""Of an answer, at most."""

QUERIES = [
    *(f"{word} {number}" for number in range(20) for word in ("red", "code of blue")),
    *("red, green or blue, " * 20 + str(number) for number in range(4)),
]
"""The last ones reach beyond windows, and begin alike."""


@pytest.mark.parametrize("fixture", ["tiny_base", *OTHERS])
def test_a_run_is_served_with_the_same_greedy_answers(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Base = request.getfixturevalue(fixture)
    task = make_task(tmp_path / "task", base.folder)
    with (task / "task.toml").open("a") as file:
        file.write('quant = "f16"\n')
    run_task(task, task / "schedule.toml", task / "run", until="export")
    served = asyncio.run(served_answers(task / "run"))
    same = [agree(*each) for each in zip(mlx_answers(base, task / "run"), map(choices, served), strict=True)]
    assert sum(same) >= 0.99 * len(same), [query for query, is_same in zip(QUERIES, same, strict=True) if not is_same]


def agree(mlx: list[bytes], served: list[Choice]) -> bool:
    """Tell whether two answers are the same up to where the second token was as likely."""
    for mine, theirs in zip(mlx, served, strict=False):
        if mine != theirs.said:
            return theirs.gap <= NEAR and mine == theirs.second
    return len(mlx) == len(served)


def mlx_answers(base: Base, run: Path) -> list[list[bytes]]:
    """Return the tokens of the trained model's answers to the queries, in MLX."""
    prompts = [prompt_tokens([Message(role="user", content=query)], base.tokenizer) for query in QUERIES]
    how: dict[str, Any] = {"ends": end_tokens(base.tokenizer), "max_tokens": TOKENS, "batch_size": 8}
    found = generate(load_base(base, run / "adapter"), prompts, **how, progress=silent, name="answers")
    with Model(read_shipped(run).served_path, vocabulary_only=True) as model:
        return [[model.tokenizer.text([token]) for token in tokens] for tokens in found]


async def served_answers(run: Path) -> list[bytes]:
    """Return the server's replies to the queries, with how likely their tokens were."""
    with make_app([read_shipped(run)], ServeOptions(context=512), Access(), lambda entry: None) as app:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=300) as client:
            replies = []
            for query in QUERIES:
                chat = [Message(role="user", content=query)]
                body: dict[str, Any] = {"model": "tiny", "messages": chat, "temperature": 0}
                likely = {"logprobs": True, "top_logprobs": 2, "max_tokens": TOKENS}
                replies.append((await client.post("/v1/chat/completions", json=body | likely)).content)
    return replies


def test_a_gemma_in_q4_k_m_is_served_where_it_lies_with_the_task_s_chat_template(starter: Base, tmp_path: Path) -> None:
    shape: dict[str, Any] = {**GEMMA3, "hidden_size": 256, "intermediate_size": 512}
    original = make_base(tmp_path / "base", starter.folder, **shape)
    gguf = export_fused(original, None, tmp_path / "gemma.gguf", "q4_k_m")
    before = sha256_file(gguf)
    task = make_task(tmp_path / "task", gguf)
    (task / "chat.jinja").write_text(
        "{% for turn in messages %}{% set who = 'model' if turn['role'] == 'assistant' else turn['role'] %}"
        "<|start_header_id|>{{ who }}<|end_header_id|>{{ turn['content'] }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>model<|end_header_id|>{% endif %}"
    )
    settings = (task / "task.toml").read_text()
    (task / "task.toml").write_text(f'chat_template = "chat.jinja"\n{settings}')
    run_task(task, task / "schedule.toml", task / "run", until="export")
    base, shipped = base_of(task / "run"), read_shipped(task / "run")
    assert (shipped.served_path, sha256_file(gguf)) == (gguf, before)
    assert [path.name for path in (task / "run" / "export").glob("*.gguf")] == ["adapter.gguf"]
    name = "model.layers.0.mlp.up_proj.weight"
    assert base.gguf_weights.type(name) == "Q4_K"
    stored = next(tensor for tensor in GGUFReader(gguf).tensors if tensor.name == base.architecture.tensor(name))
    held = dict(tree_flatten(load_base(base).parameters()))
    assert np.array_equal(np.array(held[name]), dequantize(np.array(stored.data), stored.tensor_type))
    (reply, *_) = asyncio.run(served_answers(task / "run"))
    asked = prompt_tokens([Message(role="user", content=QUERIES[0])], base.tokenizer)
    assert json.loads(reply)["usage"]["prompt_tokens"] == len(asked)
    assert base.tokenizer.decode(asked).count("<|start_header_id|>model") == 1


@pytest.mark.parametrize("name", SHAPES)
def test_in_float32_no_logit_is_off_by_a_thousandth_of_the_largest(
    name: str, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    """With keys and values in float32, too, which llama.cpp rounds to float16 by default: that alone takes as much."""
    tokenizer, changes = SHAPES[name]
    base = make_base(tmp_path / "base", tokenizers[tokenizer], quantized=False, dtype="float32", **changes)
    expected = mlx_logits(base, None)
    with llama(export_lossless(base, tmp_path).path, logits_all=True, type_k=0, type_v=0) as model:
        model.eval(tokens_T())
        got = model.scores[: len(tokens_T())].copy()
    assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()
