"""Every architecture and tokenizer from MLX to GGUF: the same logits, the same ids, the same ends."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.base import Base
from pilocal.base.tokenizer import load_tokenizer
from pilocal.errors import ExportError, ModelError
from pilocal.export.fused import export_fused
from pilocal.export.gguf import check_exportable, check_tokens
from pilocal.export.numbers import interleave
from pilocal.prompt.pre_tokenizers import QWEN2_SPLIT, SPACE
from pilocal.prompt.render import Record
from pilocal.prompt.tokens import end_tokens, prompt_tokens, tokenize
from tests import tiny, vocabularies
from tests.same_ids import differences, write_vocabulary
from tests.test_export import F16_TOLERANCE, LOGIT_TOLERANCE, NASTY, kl, llama, llama_logits, mlx_logits, read_field
from tests.texts import hard_texts
from tests.tiny import CONFIG, GEMMA3, GRANITE, MINISTRAL3, PHI3, QWEN3_MOE, make_adapter, make_base

ROWS = 2048

LLAMA_2 = {"num_key_value_heads": 8, "rope_scaling": None}
MISTRAL = {"model_type": "mistral", "rope_scaling": None, "rope_theta": 1e6, "sliding_window": None}
SMOLLM_3 = {"model_type": "smollm3", "num_hidden_layers": 4, "rope_scaling": None, "rope_theta": 5e6}
QWEN_2 = {"model_type": "qwen2", "rope_scaling": None, "rope_theta": 1e6, "use_sliding_window": False}
QWEN_3 = {"model_type": "qwen3", "rope_scaling": None, "rope_theta": 1e6, "head_dim": 64}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("llama 2", LLAMA_2),
    "llama with biases": ("llama 3", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear scaling": ("llama 2", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "mistral": ("llama 2, loaded as LlamaTokenizer", MISTRAL),
    "mistral, tekken": ("tekken", MISTRAL),
    "granite": ("smollm", {**GRANITE, "tie_word_embeddings": False}),
    "granite, tied": ("smollm", GRANITE),
    "smollm3": ("llama 3", SMOLLM_3),
    "smollm3, tied": ("llama 3", {**SMOLLM_3, "tie_word_embeddings": True}),
    "gemma3": ("gemma", {**GEMMA3, "tie_word_embeddings": False}),
    "gemma3, tied": ("gemma", GEMMA3),
    "gemma4, tied": ("gemma 4", tiny.GEMMA4),
    "gemma4, shared": ("gemma 4", {**tiny.GEMMA4_SHARED, "tie_word_embeddings": False}),
    "phi3": ("phi", {**PHI3, "tie_word_embeddings": False}),
    "phi3, tied": ("phi", PHI3),
    "phi3 without scaling": ("phi", {**PHI3, "rope_scaling": None, "partial_rotary_factor": 1.0}),
    "ministral3": ("tekken", MINISTRAL3),
    "ministral3, tied": ("tekken", {**MINISTRAL3, "tie_word_embeddings": True}),
    "qwen2": ("qwen", {**QWEN_2, "sliding_window": 64}),
    "qwen2, tied": ("qwen", {**QWEN_2, "tie_word_embeddings": True}),
    "qwen3": ("qwen", QWEN_3),
    "qwen3 moe": ("qwen", QWEN3_MOE),
    "qwen3 moe, tied": ("qwen", {**QWEN3_MOE, "tie_word_embeddings": True}),
    "qwen3, tied": ("qwen", {**QWEN_3, "tie_word_embeddings": True}),
}
"""Beside the Llamas 3, 3.1 and 3.2 of test_export.py."""


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Path]) -> Callable[[str], Base]:
    folder = tmp_path_factory.mktemp("bases")

    def base(name: str) -> Base:
        if not (folder / name).exists():
            tokenizer, changes = SHAPES[name]
            make_base(folder / name, tokenizers[tokenizer], **changes)
        return Base.at(folder / name)

    return base


def vocabulary(tokenizer: Path, folder: Path) -> Path:
    """Write a GGUF that holds a tokenizer alone, with ROWS rows."""
    folder.mkdir(exist_ok=True)
    return write_vocabulary(tokenizer, ROWS, folder / "vocabulary.gguf")


def test_every_architecture_is_tried_here() -> None:
    """Llama's own shapes are in test_export.py."""
    assert {changes.get("model_type", "llama") for _, changes in SHAPES.values()} == set(ARCHITECTURES)


def edited(base: Base, folder: Path, **changes: Any) -> Base:
    """Copy a base with other keys in config.json."""
    shutil.copytree(base.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return Base.at(folder)


@pytest.mark.parametrize("kind", ["gemma2", "mixtral", None])
def test_an_unknown_architecture_is_refused_by_name(
    kind: str | None, bases: Callable[[str], Base], tmp_path: Path
) -> None:
    line = f"not supported; got {kind!r}; take a base of one of these types: {', '.join(ARCHITECTURES)}"
    with pytest.raises(ModelError, match=line if kind else "not supported; take a base"):
        edited(bases("qwen2"), tmp_path / "base", model_type=kind).check()


@pytest.mark.parametrize(
    ("name", "scaling", "kind"),
    [
        ("llama 2", {"rope_type": "yarn", "factor": 2.0}, "yarn"),
        ("mistral", {"type": "dynamic", "factor": 2.0}, "dynamic"),
        ("gemma3", {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, "yarn"),
        ("qwen3", CONFIG["rope_scaling"], "llama3"),
    ],
)
def test_a_scaling_that_llama_cpp_does_not_compute_is_refused_by_name(
    name: str, scaling: dict[str, Any], kind: str, bases: Callable[[str], Base], tmp_path: Path
) -> None:
    check_exportable(bases(name))
    with pytest.raises(ExportError, match=f"this kind cannot be exported; got '{kind}'"):
        check_exportable(edited(bases(name), tmp_path / "base", rope_scaling=scaling))


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, 32768),
        ({"model_type": "llama", "max_position_embeddings": None}, 2048),
        ({"model_type": "mistral", "sliding_window": 65536}, 32768),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, 32768),
        ({"model_type": "qwen2", "sliding_window": 4096}, 32768),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, 4096),
        ({"model_type": "qwen3", "sliding_window": 4096, "layer_types": ["full_attention"] * 2}, 32768),
        ({"model_type": "llama", "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}, 16),
    ],
)
def test_a_sequence_is_never_longer_than_a_window(changes: dict[str, Any], context: int, tmp_path: Path) -> None:
    config = {"max_position_embeddings": 32768, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Base.at(tmp_path).context == context


def test_stock_mlx_lm_reads_the_rope_settings_of_qwen3_as_pilocal_does(
    bases: Callable[[str], Base], tmp_path: Path
) -> None:
    from mlx_lm.models.qwen3 import ModelArgs

    base = edited(bases("qwen3"), tmp_path / "base", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    config = dict(base.file)
    del config["rope_theta"], config["rope_scaling"]
    (base.folder / "config.json").write_text(json.dumps(config))
    base = Base.at(base.folder)
    assert base.stock_reads_rope
    assert ModelArgs.from_dict(config).rope_theta == base.config["rope_theta"] == 5e5


def test_gemma_s_two_ropes_are_the_same_in_both_spellings(bases: Callable[[str], Base], tmp_path: Path) -> None:
    plain = bases("gemma3, tied")
    old = ("rope_theta", "rope_local_base_freq", "rope_scaling")
    near = {"rope_type": "default", "rope_theta": 1e4}
    ropes = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, "sliding_attention": near}
    new = edited(plain, tmp_path / "new", rope_parameters=ropes)
    config = {key: value for key, value in new.file.items() if key not in old}
    (new.folder / "config.json").write_text(json.dumps(config))
    new = Base.at(new.folder)
    check_exportable(new)
    assert not new.stock_reads_rope
    assert np.array_equal(mlx_logits(new, None), mlx_logits(plain, None))
    gguf = export_fused(new, None, tmp_path / "model.gguf", "f16")
    assert (read_field(gguf, "gemma3.rope.freq_base"), read_field(gguf, "gemma3.rope.freq_base_swa")) == (1e6, 1e4)


def test_a_rope_that_config_json_leaves_out_is_exported_as_mlx_lm_takes_it(
    bases: Callable[[str], Base], tmp_path: Path
) -> None:
    base = edited(bases("qwen2"), tmp_path / "base")
    config = {key: value for key, value in base.file.items() if key != "rope_theta"}
    (base.folder / "config.json").write_text(json.dumps(config))
    gguf = export_fused(Base.at(base.folder), None, tmp_path / "model.gguf", "f16")
    assert read_field(gguf, "qwen2.rope.freq_base") == bases("qwen2").config["rope_theta"] == 1e6


def test_an_unknown_tensor_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"layers\.0\.self_attn\.q_norm\.weight: GGUF's llama has no such tensor"):
        ARCHITECTURES["mistral"].tensor("model.layers.0.self_attn.q_norm.weight")
    with pytest.raises(ExportError, match="GGUF's qwen2 has no such tensor"):
        ARCHITECTURES["qwen2"].tensor("model.layers.0.mlp.up_proj.bias")


@pytest.mark.parametrize("name", ["llama with biases", "qwen2"])
def test_an_adapters_rows_are_reordered_as_its_weights(name: str, bases: Callable[[str], Base]) -> None:
    config, architecture, rng = bases(name).config, bases(name).architecture, np.random.default_rng(0)
    lora_a, lora_b = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 256), (64, 4)))
    for part, heads in (("q_proj", 8), ("k_proj", 2), ("v_proj", None)):
        found = architecture.permuted(f"model.layers.1.self_attn.{part}", config)
        assert found == architecture.permuted(f"model.layers.1.self_attn.{part}.weight", config)
        assert found == (heads if name != "qwen2" else None)
        if found:
            whole = interleave(lora_b @ lora_a, found)
            assert np.array_equal(interleave(lora_b, found) @ lora_a, whole)
            assert not np.array_equal(whole, lora_b @ lora_a)


@pytest.mark.parametrize("kind", ["base", "lora"])
@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_computes_what_mlx_computes(
    name: str, kind: str, bases: Callable[[str], Base], tmp_path: Path
) -> None:
    base = bases(name)
    base.check()
    adapter = make_adapter(tmp_path / "adapter", base) if kind == "lora" else None
    expected = mlx_logits(base, adapter)
    got = llama_logits(export_fused(base, adapter, tmp_path / "model.gguf", "f16"))
    assert expected.std() > 0.5
    off_T = np.abs(got - expected).max(axis=1)
    # Where experts are as good as each other, rounding picks others for a few tokens.
    kept_T = off_T <= np.quantile(off_T, 0.98 if base.architecture.experts else 1.0)
    assert off_T[kept_T].max() < LOGIT_TOLERANCE * expected.std()
    assert kl(expected, got)[kept_T].mean() < F16_TOLERANCE


@pytest.mark.parametrize("name", vocabularies.KINDS)
def test_both_tokenizers_give_the_same_ids(name: str, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    texts = [*NASTY, *hard_texts(0, 1000 if name == "phi" else 3000)]  # whose pattern llama.cpp is slow at
    with llama(vocabulary(tokenizers[name], tmp_path), vocab_only=True) as model:
        found = differences(load_tokenizer(tokenizers[name]), model, texts)
    assert found.texts == len(texts)
    # Texts that begin with a space are spared one by "always", and Tekken knows marks: llama.cpp follows neither.
    follows_not = dict.fromkeys(("tekken", "phi"), "[^\\x00-\\x7f]")
    follows_not["spaces always"] = rf"(^|<s>|</s>|<unk>)[ {SPACE}]"
    spared = re.compile(follows_not.get(name, "$^"))
    assert [text for text in found.unexplained if not spared.search(text)] == []
    assert len(found.new_letters) < 0.002 * len(texts)
    assert bool(found.unexplained) == (name in follows_not)
    assert bool(found.normalized) == (name == "qwen")


@pytest.mark.parametrize("name", vocabularies.KINDS)
def test_a_chat_has_the_same_ids_and_one_bos_at_most(name: str, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    tokenizer = load_tokenizer(tokenizers[name])
    gguf = vocabulary(tokenizers[name], tmp_path)
    texts = ["x", "Hello, world!", " two  spaces", "def f():\n\treturn 1\n", "été 日本語 😀"]
    with llama(gguf, vocab_only=True) as model:
        render = Jinja2ChatFormatter(
            template=read_field(gguf, "tokenizer.chat_template"),
            bos_token=model._model.token_get_text(model.token_bos()),
            eos_token=model._model.token_get_text(model.token_eos()),
        )
        for text in texts:
            chat: list[Any] = [{"role": role, "content": text} for role in ("system", "user", "assistant", "user")]
            expected = prompt_tokens(chat, tokenizer)
            # As llama-cpp-python's server does.
            assert model.tokenize(render(messages=chat).prompt.encode(), add_bos=False, special=True) == expected, text
            if name != "smollm":  # whose BOS begins every turn
                assert expected.count(tokenizer.bos_token_id) == ("bos_token" in tokenizer.chat_template)
        assert model.tokenize(b"", add_bos=True, special=True) == tokenizer.encode("")


@pytest.mark.parametrize("name", vocabularies.KINDS)
def test_llama_cpp_ends_an_answer_where_mlx_does(name: str, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    from llama_cpp import llama_vocab_eot, llama_vocab_is_eog

    tokenizer = load_tokenizer(tokenizers[name])
    ends = end_tokens(tokenizer)
    record: Record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    last = tokenize(record, tokenizer).completion[-1]
    with llama(vocabulary(tokenizers[name], tmp_path), vocab_only=True) as model:
        vocab = model._model.vocab
        assert {row for row in range(ROWS) if llama_vocab_is_eog(vocab, row)} == ends
        assert model.token_eos() in ends
        assert llama_vocab_eot(vocab) == last
    assert last in ends


def test_a_plain_token_that_looks_like_an_end_is_none(tmp_path: Path) -> None:
    learned = vocabularies.learned_merges(QWEN2_SPLIT)
    learned = ({**learned[0], "</s>": len(learned[0])}, learned[1])
    folder = vocabularies.qwen_like(tmp_path / "qwen", learned=learned)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.get_vocab()["</s>"] not in end_tokens(tokenizer)
    with llama(vocabulary(folder, tmp_path), vocab_only=True) as model:
        for text in ("</s>", "a <s>b</s> c", "x='</s>'</s>\n"):
            expected = tokenizer.encode(text, add_special_tokens=False)
            assert model.tokenize(text.encode(), add_bos=False, special=True) == expected


def test_token_types_and_scores_are_those_of_the_pieces(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    gguf = vocabulary(tokenizers["llama 2"], tmp_path)
    pieces = vocabularies.pieces_of(vocabularies.sentencepiece_model())
    types = read_field(gguf, "tokenizer.ggml.token_type")
    assert types[: len(pieces)] == [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    assert set(types[len(pieces) :]) == {5}
    scores = dict(zip(pieces, read_field(gguf, "tokenizer.ggml.scores"), strict=False))
    merged = [piece for piece in pieces if len(piece) > 1 and not piece.startswith("<")]
    assert len(merged) > 1000
    assert sorted(merged, key=scores.__getitem__) == sorted(merged, key=pieces.__getitem__)


def test_llama_cpp_cuts_as_sentencepiece_itself(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=vocabularies.sentencepiece_model())
    texts = hard_texts(1, 3000)
    with llama(vocabulary(tokenizers["llama 2"], tmp_path), vocab_only=True) as other:
        different = [t for t in texts if other.tokenize(t.encode(), add_bos=False, special=False) != model.encode(t)]
    assert different == []


def test_runs_of_spaces_of_one_score_grow_from_the_left(tmp_path: Path) -> None:
    pieces = vocabularies.pieces_of(vocabularies.sentencepiece_model())
    lowest = min(pieces.values())
    pieces = {piece: score for piece, score in pieces.items() if set(piece) != {SPACE} or len(piece) == 1}
    pieces |= {SPACE * length: lowest - 1 for length in (5, 2, 16, 3, 4, 8, 7, 6, 9, 10, 11, 12, 13, 14, 15)}
    folder = vocabularies.sentencepiece_like(tmp_path / "runs", pieces=pieces)
    tokenizer = load_tokenizer(folder)
    with llama(vocabulary(folder, tmp_path), vocab_only=True) as model:
        for length in range(1, 70):
            for text in (" " * length, "x" + " " * length + "y", "\n" + " " * length + "return"):
                expected = tokenizer.encode(text, add_special_tokens=False)
                assert model.tokenize(text.encode(), add_bos=False, special=True) == expected, length


def changed(tokenizer: Path, folder: Path, **changes: Any) -> Path:
    """Copy a tokenizer with changes to tokenizer.json; a change of "model" changes keys of it."""
    shutil.copytree(tokenizer, folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"] |= changes.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps({**described, **changes}))
    return folder


def test_of_tekken_every_text_of_a_task_is_compared(bases: Callable[[str], Base]) -> None:
    base = bases("mistral, tekken")
    check_tokens(base, [("a.jsonl:1", "caf\u00e9 \u00c9cole ABC abcDef"), ("a.jsonl:2", "\u65e5\u672c")])
    line = (
        "a.jsonl:3: llama.cpp cuts this text into other tokens than the base's tokenizer does; got \"\u064b't\"; leave"
    )
    with pytest.raises(ModelError, match=re.escape(line)):
        check_tokens(base, [("a.jsonl:3", "one \u064b't two")])


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("llama 3", {"normalizer": {"type": "NFKC"}}, "got 'BPE after NFKC and "),
        ("llama 3", {"model": {"end_of_word_suffix": "</w>"}}, "cannot cut text"),
        ("llama 3", {"pre_tokenizer": {"type": "Whitespace"}}, "got 'BPE after nothing and Whitespace'"),
        ("qwen", {"model": {"ignore_merges": True}}, "cannot cut text"),
        ("llama 2", {"normalizer": {"type": "NFKC"}}, r"cannot treat spaces as this tokenizer does; got \['NFKC'\]"),
        ("llama 2", {"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}}, r"got \['Whitespace'\]"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_follow_is_refused(
    name: str, changes: dict[str, Any], line: str, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(tokenizers[name], tmp_path / "changed", **changes)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # else the file's own pipeline is not what is loaded
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ExportError, match=line) as refusal:
        vocabulary(folder, tmp_path / "gguf")
    assert "\n" not in str(refusal.value)


def test_merges_that_no_scores_describe_are_refused(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    described = json.loads((tokenizers["llama 2"] / "tokenizer.json").read_text())
    vocabulary_of, merges = described["model"]["vocab"], described["model"]["merges"]
    twice = next(i for i in range(1, len(merges)) if "".join(merges[i]) == "".join(merges[i - 1]))
    torn = [*merges[: twice - 1], *merges[twice:], merges[twice - 1]]
    with pytest.raises(ExportError, match="no scores put these merges in their order"):
        vocabulary(changed(tokenizers["llama 2"], tmp_path / "torn", model={"merges": torn}), tmp_path)
    fewer = [*merges[: twice - 1], *merges[twice:]]
    with pytest.raises(ExportError, match="two parts that this tokenizer leaves apart"):
        vocabulary(changed(tokenizers["llama 2"], tmp_path / "fewer", model={"merges": fewer}), tmp_path)
    without = {token: row for token, row in vocabulary_of.items() if token != "<0x0A>"}
    without["<x>"] = vocabulary_of["<0x0A>"]
    with pytest.raises(ExportError, match="needs a token for every byte; got 'no <0x0A>'"):
        vocabulary(changed(tokenizers["llama 2"], tmp_path / "without", model={"vocab": without}), tmp_path)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_an_added_token_that_takes_spaces_is_refused(flag: str, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    described = json.loads((tokenizers["qwen"] / "tokenizer.json").read_text())
    described["added_tokens"][1] |= {flag: True, "special": False}
    folder = changed(tokenizers["qwen"], tmp_path / "changed", added_tokens=described["added_tokens"])
    with pytest.raises(ExportError, match=r"in other places; got '<\|im_start\|>'"):
        vocabulary(folder, tmp_path)


def test_a_template_that_needs_spaces_both_ways_is_refused(tmp_path: Path) -> None:
    template = vocabularies.INST_TEMPLATE.replace("+ eos_token", "+ eos_token + ' '")
    assert template != vocabularies.INST_TEMPLATE
    folder = vocabularies.sentencepiece_like(tmp_path / "mixed", spaces="always", chat_template=template)
    with pytest.raises(ExportError, match="cannot lay spaces before texts as this tokenizer does; got 'always'"):
        vocabulary(folder, tmp_path)
