from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import ExportError, InputError, RunError
from pilocal.export.fuse import FusedWeights
from pilocal.export.fused import export_fused
from pilocal.export.gguf import check_exportable
from pilocal.prompt.tokens import end_tokens
from pilocal.starter.episodes import FIRST_TEST_SEED, invent
from tests.tiny import make_adapter, make_base

LOGIT_TOLERANCE = 0.03
"""Largest logit difference in standard deviations of the logits: llama.cpp rounds activations to F16."""
F16_TOLERANCE, Q8_TOLERANCE = 2e-5, 5e-3
"""KL divergence of the next-token distribution in nats: the mean over the tokens, and the largest."""

NASTY = [
    "Hello, world!",
    "  two  spaces   three    four ",
    "tabs\tand\r\nnewlines\n\n\nand \n \n mixed\n",
    "\n",
    " ",
    "I'm you're they'LL we'VE he'D it'S can't",
    "1 12 123 1234 12345 3.14159 1,000,000 0x7f",
    "naïve café Ünïcödé Ελληνικά Русский 日本語 한국어 العربية हिन्दी ไทย",
    "e\u0301 versus \u00e9, \u212b, \ufb01, \u200b, \u00a0, \u2028, \ufeff",
    "😀 👩‍👩‍👧‍👦 🇩🇪 🏳️‍🌈 ☺️",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n\n\tif x != 0: pass",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\temp\\x",
    "<|eot_id|> <|begin_of_text|><|unknown|> <|eot_id |> [INST] </s> <s>",
    "assistant\n\n<|start_header_id|>user<|end_header_id|>\n\n",
    "!!!???...---___***~~~```",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\x00\x01\x7f control",
    "",
]


@contextmanager
def llama(gguf: Path, **options: Any) -> Iterator[Any]:
    from llama_cpp import Llama

    of_the_file = {"yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0}  # where Llama has numbers of its own
    model = Llama(str(gguf), **{"n_ctx": 512, "verbose": False, **of_the_file, **options})
    try:
        yield model
    finally:
        model.close()


def tokens_T() -> list[int]:
    return [2040, *np.random.default_rng(0).integers(0, 2000, 300).tolist()]


def mlx_logits(base: Base, adapter: Path | None) -> np.ndarray:
    """(T, V) float32."""
    model = load_base(base, adapter)
    import mlx.core as mx

    return np.array(model(mx.array([tokens_T()]))[0].astype(mx.float32))


def llama_logits(gguf: Path) -> Any:
    """(T, V) float32."""
    with llama(gguf, logits_all=True) as model:
        model.eval(tokens_T())
        return model.scores[: len(tokens_T())].copy()


def kl(p: np.ndarray, q: np.ndarray) -> Any:
    """KL divergence of softmax(q) from softmax(p), (T,), in nats."""
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (p.astype(np.float64), q.astype(np.float64)))
    return (np.exp(p) * (p - q)).sum(axis=-1)


def read_field(gguf: Path, key: str) -> Any:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field(key)
    return None if field is None else field.contents()


@pytest.mark.parametrize("kind", ["base", "lora", "dora"])
@pytest.mark.parametrize("which", ["tiny_base", "tiny_tied_base", "tiny_float_base", "starter"])
def test_llama_cpp_computes_what_mlx_computes(
    which: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(which)
    adapter = None if kind == "base" else make_adapter(tmp_path / "adapter", base, kind=kind)
    expected = mlx_logits(base, adapter)
    got = llama_logits(export_fused(base, adapter, tmp_path / "model.gguf", "f16"))
    assert expected.std() > 0.5
    assert np.abs(got - expected).max() < LOGIT_TOLERANCE * expected.std()
    assert kl(expected, got).mean() < F16_TOLERANCE
    if adapter:
        assert np.abs(expected - mlx_logits(base, None)).max() > 10 * LOGIT_TOLERANCE * expected.std()


@pytest.mark.parametrize("which", ["tiny_base", "tiny_tied_base"])
def test_q8_0_stays_close(which: str, tiny_adapter: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base = request.getfixturevalue(which)
    gguf = export_fused(base, tiny_adapter, tmp_path / "model.gguf", "q8_0")
    assert kl(mlx_logits(base, tiny_adapter), llama_logits(gguf)).max() < Q8_TOLERANCE
    assert read_field(gguf, "general.file_type") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_the_starter_says_the_same_in_llama_cpp(starter: Base, tmp_path: Path, quant: str) -> None:
    gguf = export_fused(starter, None, tmp_path / "model.gguf", quant)
    from mlx_lm.generate import generate_step

    model, tokenizer = load_base(starter), starter.tokenizer
    ends = end_tokens(tokenizer)
    import mlx.core as mx

    def until_end(tokens: Iterable[int]) -> list[int]:
        return list(takewhile(lambda token: token not in ends, tokens))

    episode, rng, answers = invent(FIRST_TEST_SEED + 1), Random(0), []
    with llama(gguf, n_ctx=1024) as served:
        for query in (episode.ask(rng)[0] for _ in range(5)):
            chat = [{"role": "system", "content": episode.template}, {"role": "user", "content": query}]
            prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            expected = until_end(int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=24))
            assert until_end(served.generate(prompt, temp=0.0)) == expected
            answers.append(tokenizer.decode(expected))
    assert len(set(answers)) == 5
    assert all(answer.startswith(episode.opening) for answer in answers)


def test_both_tokenizers_give_the_same_ids(starter: Base, tmp_path: Path) -> None:
    gguf = export_fused(starter, None, tmp_path / "model.gguf", "f16")
    tokenizer = starter.tokenizer
    with llama(gguf, vocab_only=True) as model:
        for text in NASTY:
            special = tokenizer.encode(text, add_special_tokens=False)
            plain = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert model.tokenize(text.encode(), add_bos=False, special=True) == special, text
            assert model.tokenize(text.encode(), add_bos=False, special=False) == plain, text
            assert model.tokenize(text.encode(), add_bos=True, special=True) == tokenizer.encode(text), text
            assert model.detokenize(plain).decode() == text


def test_the_chat_template_in_the_file_renders_the_same(starter: Base, tmp_path: Path) -> None:
    gguf = export_fused(starter, None, tmp_path / "model.gguf", "q8_0")
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    tokenizer = starter.tokenizer
    render = Jinja2ChatFormatter(
        template=read_field(gguf, "tokenizer.chat_template"),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    chats: list[list[Any]] = [[{"role": "user", "content": text}] for text in NASTY if text.strip()]
    chats += [[{"role": role, "content": f" {role}\n"} for role in ("system", "user", "assistant", "user")]]
    for chat in chats:
        expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert render(messages=chat).prompt == expected


def test_the_file_says_what_it_was_made_from(tiny_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    gguf = export_fused(tiny_base, tiny_adapter, tmp_path / "smart-home.gguf", "q8_0")
    from gguf import GGUFReader, GGUFValueType

    assert read_field(gguf, "general.name") == "smart-home"
    assert read_field(gguf, "pilocal.base.sha256") == tiny_base.sha256
    assert read_field(gguf, "llama.context_length") == 1024
    assert read_field(gguf, "llama.attention.head_count_kv") == 2
    assert read_field(gguf, "tokenizer.ggml.eot_token_id") == 2046
    assert read_field(gguf, "tokenizer.ggml.padding_token_id") == 2042
    types = GGUFReader(gguf).get_field("tokenizer.ggml.token_type")
    assert types is not None
    assert types.types == [GGUFValueType.ARRAY, GGUFValueType.INT32]
    assert types.contents()[2039:2048] == [1] + [3] * 8


def test_merges_as_strings_make_the_same_file(starter: Base, tmp_path: Path) -> None:
    older = shutil.copytree(starter.folder, tmp_path / "older")
    tokenizer = json.loads((older / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (older / "tokenizer.json").write_text(json.dumps(tokenizer))
    files = [
        export_fused(base, None, tmp_path / f"{base.folder.name}.gguf", "f16") for base in (starter, Base.at(older))
    ]
    merges = [read_field(file, "tokenizer.ggml.merges") for file in files]
    assert merges[0] == merges[1] == tokenizer["model"]["merges"]


def test_rows_without_a_token_are_unused_tokens(starter: Base, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", starter.folder, vocab_size=2080)
    gguf = export_fused(base, None, tmp_path / "model.gguf", "f16")
    assert read_field(gguf, "tokenizer.ggml.token_type")[-32:] == [5] * 32
    with llama(gguf) as model:
        assert model.n_vocab() == 2080


def test_a_tokenizer_larger_than_the_embedding_is_refused(starter: Base, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", starter.folder, vocab_size=2016)
    with pytest.raises(ExportError, match="has no embedding among 2016"):
        export_fused(base, None, tmp_path / "model.gguf", "f16")


def test_another_pre_tokenizer_is_refused(starter: Base, tmp_path: Path) -> None:
    base = shutil.copytree(starter.folder, tmp_path / "base")
    text = (base / "tokenizer.json").read_text()
    assert text.count(r"\\p{N}{1,3}") == 1
    (base / "tokenizer.json").write_text(text.replace(r"\\p{N}{1,3}", r"\\p{N}"))
    with pytest.raises(ExportError, match="cannot cut text as this tokenizer does"):
        export_fused(Base.at(base), None, tmp_path / "model.gguf", "f16")


def test_fusing_adds_the_adapter_exactly(tiny_base: Base, tiny_adapter: Path) -> None:
    plain, fused = FusedWeights(tiny_base, None), FusedWeights(tiny_base, tiny_adapter)
    name = "model.layers.1.mlp.down_proj"
    weight = f"{name}.weight"
    from safetensors.numpy import load_file

    lora = load_file(tiny_adapter / "adapters.safetensors")
    delta = 2.0 * (lora[f"{name}.lora_a"].astype(np.float64) @ lora[f"{name}.lora_b"].astype(np.float64)).T
    assert np.abs(delta).max() > 0.01
    assert np.abs(fused.read(weight) - (plain.read(weight) + delta)).max() < 1e-6
    assert fused.shapes[weight] == plain.read(weight).shape == (256, 384)
    assert np.array_equal(fused.read("model.norm.weight"), plain.read("model.norm.weight"))


@pytest.mark.parametrize("which", ["4 bits", "bfloat16, mixed bits"])
def test_every_tensor_is_what_the_trainer_sees(
    which: str, tiny_base: Base, starter: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base
    if which != "4 bits":
        exceptions = {"lm_head": {"bits": 8, "group_size": 64}, "model.layers.0.mlp.up_proj": False}
        base = make_base(tmp_path / "base", starter.folder, dtype="bfloat16", exceptions=exceptions)
    monkeypatch.setattr("pilocal.base.device.on_cpu", lambda: True)  # elsewhere the base would stay in 4 bits
    model = load_base(base)
    from mlx.utils import tree_flatten

    weights = FusedWeights(base, None)
    trained = dict(tree_flatten(model.parameters()))
    assert set(weights.shapes) == set(trained)
    for name, value in trained.items():
        assert np.array_equal(weights.read(name), np.array(value)), name


def test_an_adapter_that_does_not_fit_is_refused_by_name(
    tiny_base: Base, tiny_adapter: Path, starter: Base, tmp_path: Path
) -> None:
    out = tmp_path / "model.gguf"
    with pytest.raises(ExportError, match=r"model\.layers\.0\.mlp\.down_proj, made as .* \(and 9 more\)") as other:
        export_fused(starter, tiny_adapter, out, "q8_0")
    assert str(tiny_adapter) in str(other.value)
    shallow = make_base(tmp_path / "shallow", starter.folder, num_hidden_layers=1)
    with pytest.raises(ExportError, match=r"model\.layers\.1\.\S+, which the base lacks \(and 6 more\)"):
        export_fused(shallow, tiny_adapter, out, "q8_0")
    assert not out.exists()


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no scale", "dora"])
def test_a_broken_adapter_is_refused(tiny_base: Base, tiny_adapter: Path, tmp_path: Path, damage: str) -> None:
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    weights, settings = adapter / "adapters.safetensors", adapter / "adapter_config.json"
    match damage:
        case "no weights":
            weights.unlink()
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no scale":
            settings.write_text("{}")
        case "dora":
            settings.write_text(settings.read_text().replace('"lora"', '"dora"'))
    with pytest.raises(ExportError if damage == "dora" else InputError) as refusal:
        export_fused(tiny_base, adapter, tmp_path / "model.gguf", "f16")
    assert str(refusal.value).startswith(f"{adapter}: not a ")
    assert "\n" not in str(refusal.value)


def test_an_adapter_that_went_astray_is_refused(tiny_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    settings = adapter / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"scale": 2.0', '"scale": 1e9'))
    with pytest.raises(ExportError, match="does not fit F16"):
        export_fused(tiny_base, adapter, tmp_path / "model.gguf", "f16")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_a_failing_write_leaves_the_old_file(tiny_base: Base, tmp_path: Path, quant: str) -> None:
    out = tmp_path / "model.gguf"
    out.write_text("the old file")
    with largest_file(1 << 20), pytest.raises(RunError, match=f"{out.stem}.*: cannot write: File too large"):
        export_fused(tiny_base, None, out, quant)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert out.read_text() == "the old file"


def test_a_failing_quantizer_leaves_nothing(tiny_base: Base, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from pilocal.llamacpp.quantize import quantize_gguf

    whole = export_fused(tiny_base, None, tmp_path / "whole.gguf", "f16")
    with (
        largest_file(1 << 20),
        pytest.raises(ExportError, match=r"llama\.cpp cannot quantize to q8_0; got .*failed") as refusal,
    ):
        quantize_gguf(whole, tmp_path / "model.gguf", "q8_0")
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]
    assert capfd.readouterr() == ("", "")


def test_the_quantizer_is_silent(tiny_base: Base, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_fused(tiny_base, None, tmp_path / "model.gguf", "q8_0")
    assert capfd.readouterr() == ("", "")


def test_an_unknown_type_is_refused_with_a_guess(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="did you mean q8_0"):
        export_fused(tiny_base, None, tmp_path / "model.gguf", "q8_O")
    assert not list(tmp_path.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Make every write of this process past `size` bytes of a file fail, as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_what_cannot_be_exported_is_refused_before_the_training(tiny_base: Base, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base.folder, base)
    check_exportable(Base.at(base))
    tokenizer = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(tokenizer.replace("{1,3}", "{1,2}"))
    with pytest.raises(ExportError, match="cannot cut text as this tokenizer does"):
        check_exportable(Base.at(base))
    (base / "tokenizer.json").write_text(tokenizer)
    config = json.loads((base / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "dynamic", "factor": 2.0}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="this kind cannot be exported; got 'dynamic'"):
        check_exportable(Base.at(base))
