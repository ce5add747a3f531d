"""A tokenizer rebuilt from a GGUF file's metadata gives llama.cpp's ids; what cannot be followed is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter, TokenType

from pilocal.base.gguf_tokenizer import load_gguf_tokenizer
from pilocal.base.tokenizer import load_tokenizer
from pilocal.errors import InputError, ModelError
from pilocal.llamacpp.model import Model
from pilocal.prompt.pre_tokenizers import PRE_TOKENIZERS, SPACE
from pilocal.prompt.render import Record
from pilocal.prompt.tokens import end_tokens, layout_of, prompt_tokens, tokenize
from tests import vocabularies
from tests.gguf_models import add_values
from tests.layouts import LAYOUTS, write_layout
from tests.same_ids import write_vocabulary
from tests.test_export import NASTY
from tests.test_layouts import chats
from tests.texts import NEW_LETTERS, hard_texts

ROWS = vocabularies.SIZE + 300
WHERE = Path("base.gguf")

Metadata = dict[str, Any]


def read_metadata(path: Path) -> Metadata:
    """Return what a GGUF file says of itself, as plain Python."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def written(tokenizer: Path, folder: Path) -> tuple[Path, Metadata]:
    """Return a file that holds a tokenizer alone, and its metadata."""
    path = write_vocabulary(tokenizer, ROWS, folder / "vocabulary.gguf")
    return path, read_metadata(path)


def rewritten(metadata: Metadata, path: Path) -> Path:
    """Write a file of a tokenizer's metadata alone."""
    writer = GGUFWriter(str(path), "llama")
    add_values(writer, {name: value for name, value in metadata.items() if name.startswith("tokenizer")})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def same_ids(metadata: Metadata, path: Path, texts: list[str], *, begin: str = "") -> None:
    """Compare a rebuilt tokenizer with llama.cpp's on texts, but for letters that llama.cpp's tables do not have."""
    tokenizer = load_gguf_tokenizer(metadata, path)
    with Model(path, vocabulary_only=True) as model:
        cut = model.tokenizer.tokens
        texts = [begin + text for text in texts]
        differing = [
            text for text in texts if tokenizer.encode(text, add_special_tokens=False) != cut(text, special=True)
        ]
        assert cut("", special=True, bos=True) == tokenizer.encode("")
    assert [text for text in differing if NEW_LETTERS.isdisjoint(text)] == []
    assert len(differing) < 0.002 * len(texts)


@pytest.mark.parametrize("name", vocabularies.KINDS)
def test_it_gives_llama_cpp_s_ids_on_any_text(name: str, tmp_path: Path) -> None:
    path, metadata = written(vocabularies.KINDS[name](tmp_path / "base"), tmp_path)
    texts, again = [*NASTY, *hard_texts(0, 1000 if name == "phi" else 3000)], hard_texts(5, 300)
    if name in ("tekken", "phi"):  # which llama.cpp follows for ASCII
        texts, again = (["".join(filter(str.isascii, text)) for text in some] for some in (texts, again))
    same_ids(metadata, path, texts)
    same_ids(metadata, path, again, begin="<s>")


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_is_the_tokenizer_that_was_written(name: str, tmp_path: Path) -> None:
    folder = write_layout(LAYOUTS[name], tmp_path / "base")
    path, metadata = written(folder, tmp_path)
    rebuilt, first = load_gguf_tokenizer(metadata, path), load_tokenizer(folder)
    for chat in chats(first, 60):
        assert prompt_tokens(chat, rebuilt) == prompt_tokens(chat, first), chat
    assert end_tokens(rebuilt) == end_tokens(first)
    for answer in ("say it", " a\n", "é日本😀", "a<|eot_id|>b", "x  y"):
        record: Record = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": answer}]}
        row = tokenize(record, rebuilt)
        assert row == tokenize(record, first)
        assert layout_of(rebuilt).keeps(row, answer) == layout_of(first).keeps(row, answer)


@pytest.mark.parametrize("alias", [alias for known in PRE_TOKENIZERS for alias in known.aliases])
def test_every_other_name_of_a_pre_tokenizer_is_the_same_to_llama_cpp(alias: str, tmp_path: Path) -> None:
    make = vocabularies.qwen_like if "qwen" in alias else vocabularies.llama3
    _, metadata = written(make(tmp_path / "base"), tmp_path)
    metadata = {**metadata, "tokenizer.ggml.pre": alias, "pilocal.tokenizer.nfc": False}
    del metadata["tokenizer.ggml.add_bos_token"]
    same_ids(metadata, rewritten(metadata, tmp_path / "renamed.gguf"), hard_texts(2, 1000))


@pytest.mark.parametrize("name", ["llama 2", "spaces never", "llama 3", "smollm"])
def test_what_a_file_does_not_say_is_what_llama_cpp_takes(name: str, tmp_path: Path) -> None:
    _, metadata = written(vocabularies.KINDS[name](tmp_path / "base"), tmp_path)
    silent = ("add_bos_token", "add_eos_token", "add_space_prefix", "unknown_token_id", "padding_token_id")
    metadata = {key: value for key, value in metadata.items() if key.removeprefix("tokenizer.ggml.") not in silent}
    same_ids(metadata, rewritten(metadata, tmp_path / "silent.gguf"), hard_texts(3, 500))


def test_types_of_tokens_are_llama_cpp_s(tmp_path: Path) -> None:
    _, metadata = written(vocabularies.qwen_like(tmp_path / "base"), tmp_path)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    free = [row for row, kind in enumerate(types) if kind == TokenType.UNUSED]
    odd = {"<tool_call>": 4, "<|fim_prefix|>": 4, "</s>": 1, "[control]": 3, "[unused]": 5, "<odd one>": 4}
    for row, (token, kind) in zip(free, odd.items(), strict=False):
        tokens[row], types[row] = token, kind
    path = rewritten(metadata, tmp_path / "typed.gguf")
    texts = ["a<tool_call>b</tool_call>", "<|fim_prefix|> x", "a</s>", "[control] [unused]", "x <odd one>y", *odd]
    same_ids(metadata, path, texts)
    rebuilt = load_gguf_tokenizer(metadata, path)
    special = {token.content for token in rebuilt.added_tokens_decoder.values() if token.special}
    assert special.intersection(odd) == {"<|fim_prefix|>", "</s>", "[control]"}
    assert "<tool_call>" in rebuilt.decode(rebuilt.encode("a<tool_call>"), skip_special_tokens=True)


def test_bytes_without_a_token_are_left_out_and_nothing_merges_across_them(tmp_path: Path) -> None:
    path, metadata = written(vocabularies.smollm_like(tmp_path / "base"), tmp_path)
    tokens = metadata["tokenizer.ggml.tokens"]
    gone = ["\u0104", "\u0106", "\u0113", "\u00f1"]  # the bytes 4, 6, 19 and 241
    for byte in gone:
        tokens[tokens.index(byte)] = f"[gone {byte}]"
    metadata["tokenizer.ggml.merges"] = [
        pair for pair in metadata["tokenizer.ggml.merges"] if not set(gone) & set(pair)
    ]
    path = rewritten(metadata, tmp_path / "fewer.gguf")
    texts = [" \x04'", ")\x13>", ">\x06\\", "a\x04the\x06the", "\U0001f308\U00052e78", *hard_texts(4, 2000)]
    same_ids(metadata, path, texts)
    rebuilt = load_gguf_tokenizer(metadata, path)
    rebuilt.save_pretrained(tmp_path / "again")
    again = read_metadata(write_vocabulary(tmp_path / "again", ROWS, tmp_path / "again.gguf"))
    assert again["tokenizer.ggml.pre"] == "smollm"


def test_equal_scores_grow_from_the_left(tmp_path: Path) -> None:
    space = SPACE
    pieces = vocabularies.pieces_of(vocabularies.sentencepiece_model())
    lowest = min(pieces.values())
    pieces = {piece: score for piece, score in pieces.items() if set(piece) != {space} or len(piece) == 1}
    pieces |= {space * length: lowest - 1 for length in (5, 2, 16, 3, 4, 8, 7, 6, 9, 10, 11, 12, 13, 14, 15)}
    path, metadata = written(vocabularies.sentencepiece_like(tmp_path / "base", pieces=pieces), tmp_path)
    runs = [" " * length for length in range(1, 70)]
    same_ids(metadata, path, [*runs, *(f"x{run}y" for run in runs), *(f"\n{run}return" for run in runs)])


def test_a_file_without_a_chat_template_says_how_to_give_one(tmp_path: Path) -> None:
    _, metadata = written(vocabularies.smollm_like(tmp_path / "base"), tmp_path)
    del metadata["tokenizer.chat_template"]
    rebuilt = load_gguf_tokenizer(metadata, WHERE)
    with pytest.raises(InputError, match=r'no chat template.*chat_template = "FILE" in task\.toml'):
        layout_of(rebuilt)
    rebuilt.chat_template = vocabularies.CHATML_TEMPLATE
    assert layout_of(rebuilt).text([{"role": "user", "content": "x"}]).startswith("<|im_start|>user\nx<|im_end|>")


def changed(**changes: Any) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        for name, value in changes.items():
            if value is None:
                metadata.pop(f"tokenizer.ggml.{name}")
            else:
                metadata[f"tokenizer.ggml.{name}"] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "line"),
    [
        (
            "smollm",
            changed(pre="viking"),
            "got 'viking'; take a file with one of these: llama-bpe, smaug-bpe, qwen2, smo",
        ),
        ("smollm", changed(pre=None), r"pre-tokenizer \(tokenizer\.ggml\.pre\) is not supported; take a file"),
        ("smollm", changed(model="bert"), "kind of tokenizer is not supported; got 'bert'; .* one of gpt2, llama"),
        ("smollm", changed(model=None), "kind of tokenizer is not supported; take a file"),
        ("smollm", changed(tokens=None), "tokens is missing or damaged; got 'no list'"),
        ("smollm", changed(tokens=[]), "tokens is missing or damaged; got 'no tokens'"),
        ("smollm", changed(tokens=[1, 2]), "got 'values of another kind'"),
        ("smollm", changed(token_type=[1]), f"token_type is missing or damaged; got '1 values for {ROWS} tokens'"),
        ("smollm", changed(merges=None), "merges is missing or damaged"),
        ("smollm", changed(eos_token_id=10**6), f"eos_token_id is missing or damaged; got '1000000 of {ROWS} tokens'"),
        ("llama 2", changed(scores=[0.5]), "scores is missing or damaged"),
        ("llama 2", changed(tokens=[f"t{row}" for row in range(ROWS)]), "got 'no <0x00>'"),
    ],
)
def test_what_cannot_be_rebuilt_is_one_line(
    kind: str, change: Callable[[Metadata], None], line: str, tmp_path: Path
) -> None:
    _, metadata = written(vocabularies.KINDS[kind](tmp_path / "base"), tmp_path)
    change(metadata)
    with pytest.raises(ModelError, match=line) as refusal:
        load_gguf_tokenizer(metadata, WHERE)
    assert str(refusal.value).startswith("base.gguf: ")
    assert "\n" not in str(refusal.value)
