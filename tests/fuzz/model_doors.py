"""Doors of models: GGUF files, folders of a base, chat templates, schemas and grammars, names of bases."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from jinja2 import TemplateError

from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.base import Base, find_base
from pilocal.llamacpp.gbnf import GrammarError
from pilocal.llamacpp.gbnf_rules import read_grammar
from pilocal.llamacpp.json_schema import UnsupportedSchema, schema_grammar
from pilocal.prompt.bounded_jinja import ChatProgram
from pilocal.prompt.settle import settle
from pilocal.run_folder.gguf_header import read_header
from tests.fuzz import mutate
from tests.fuzz.door import Door, Files, door

PIECES = (
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "{{ 'a' * 10**9 }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set x = messages %}{% for i in range(40) %}{% set x = [x, x] %}{% endfor %}{{ x }}", "{{ messages }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "{{ '%9999999999d' % 1 }}", "{{ 1 // 0 }}", "{{ -1 }}",
    "{{ messages | tojson(indent=9**9) }}", "{{ messages[0].content | indent(9**9) }}", "{{ {}[[]] }}",
    "{{ none + 1 }}", "{{ raise_exception('no') }}", "{{ messages[0]['content'].format(messages) }}",
    "{{ ''.join(messages) }}", "{{ messages | map(attribute='role') | join('x' * 99) }}", "{{ self }}", "{{ loop }}",
    "{{ caller() }}", "{% break %}", "{{ messages.append(1) }}", "{{ strftime_now('%Q%n') }}", "{{ '\\ud800' }}",
    "{{ cycler() }}", "{{ dict(messages) }}", "{% for a, b in messages[0].items() %}{{ a ~ b }}{% endfor %}",
    "{{ namespace(_x=1) }}", "{{ messages | sum }}", "{% include messages %}", "{% set messages = 1 %}",
    "{{ messages | sort }}", "{{ [1, 'a'] | sort }}", "{{ messages | groupby('role') | list }}", "{{ 'x'.encode() }}",
    "{{ x.y.z }}", "{{ messages[::0] }}", "{{ 2**0.5 }}", "{{ messages | batch(2) | list }}",
    "{{ 'a'.zfill(2**40) }}", "{{ 10**400 }}", "{{ 1e999 | int }}", "{{ ~ }}",
    "{% block a %}{{ self.a() }}{% endblock %}", "{% filter upper %}{{ x }}{% endfilter %}", "{{ messages is in 1 }}",
)  # fmt: skip
"""What a chat template may hold."""

GRAMMARS = (
    'root ::= "a" b* [a-z]{2,5} | (c | "\\n")+\nb ::= [^x-z\\]] . "q"?\nc ::= "\\u00e9" root # end\n',
    'root ::= object\nobject ::= "{" ws (pair ("," ws pair)*)? "}"\npair ::= "\\"" [a-z]+ "\\":" ws value\n'
    'value ::= object | [0-9]{1,16} | "true"\nws ::= [ \\t\\n]*\n',
)

SCHEMA: Any = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}(-\\d+)?$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "size": {"type": "number", "exclusiveMinimum": -1.5, "maximum": 10},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1, None]}, "minItems": 1, "maxItems": 4},
        "when": {"type": "string", "format": "date-time"},
        "kind": {"oneOf": [{"const": "x"}, {"type": "object", "properties": {"y": {"$ref": "#/$defs/t"}}}]},
        "pair": {"prefixItems": [{"type": "boolean"}, {"type": "null"}], "type": "array"},
        "text": {"type": "string", "minLength": 2, "maxLength": 9},
    },
    "required": ["name", "tags"],
    "additionalProperties": {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
    "allOf": [{"type": "object", "properties": {"age": {"type": "integer"}}}],
    "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
}

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello\n"}]


@cache
def _templates() -> tuple[str, ...]:
    from tests.layouts import LAYOUTS
    from tests.tool_layouts import LLAMA_TOOLS, QWEN_TOOLS

    return (*(kind.template for kind in LAYOUTS.values()), QWEN_TOOLS, LLAMA_TOOLS)


def _make_template(random: Random) -> Files:
    return {"chat_template.jinja": random.choice(_templates()).encode()}


def _mutate_template(files: Files, random: Random) -> Files:
    text = files["chat_template.jinja"]
    if random.random() < 0.5:
        at = random.choice([0, len(text), *(i + 2 for i in range(len(text)) if text[i : i + 2] in (b"%}", b"}}"))])
        return {"chat_template.jinja": text[:at] + random.choice(PIECES).encode() + text[at:]}
    return {"chat_template.jinja": mutate.TEXT(text, random)}


def _knock_template(folder: Path, files: Files) -> None:
    text = files["chat_template.jinja"].decode("utf-8", "replace")
    try:
        settled = settle(text, bos="<s>", eos=None)
        ChatProgram(settled).render(messages=MESSAGES, bos_token="<s>", add_generation_prompt=True, tools=None).encode()
    except (TemplateError, ValueError, TypeError):
        return


door(
    Door(
        name="chat-template",
        make=_make_template,
        mutate=_mutate_template,
        knock=_knock_template,
        lay=False,
        short=40,
    )
)


def _knock_schema(folder: Path, files: Files) -> None:
    try:
        schema = json.loads(files["schema.json"])
    except (ValueError, RecursionError):
        return
    try:
        grammar = schema_grammar(schema)
    except UnsupportedSchema as error:
        str(error).encode("utf-8", "surrogatepass")
        return
    _walk(grammar)


def _walk(grammar: str) -> None:
    """Follow a grammar for some bytes, always the first that fits."""
    from pilocal.llamacpp.automaton import Automaton

    automaton = Automaton(read_grammar(grammar))
    state: Any = automaton.start
    for _ in range(40):
        following = [found for one in range(automaton.classes) if (found := automaton.step(state, one)) is not None]
        if not following:
            return
        state = following[-1]


def _knock_grammar(folder: Path, files: Files) -> None:
    try:
        text = files["answer.gbnf"].decode("utf-8", "surrogateescape")
        read_grammar(text)
    except GrammarError:
        return
    _walk(text)


door(
    Door(
        name="json-schema",
        make=lambda random: {"schema.json": json.dumps(SCHEMA).encode()},
        mutate=mutate.files_by(lambda name: mutate.JSON),
        knock=_knock_schema,
        lay=False,
        short=40,
    )
)
door(
    Door(
        name="grammar",
        make=lambda random: {"answer.gbnf": random.choice(GRAMMARS).encode()},
        mutate=mutate.files_by(lambda name: mutate.TEXT),
        knock=_knock_grammar,
        lay=False,
        short=40,
    )
)


@cache
def _gguf(kind: str) -> bytes:
    """Return a small model in GGUF with a tokenizer of each kind."""
    from gguf import GGMLQuantizationType, GGUFWriter

    from pilocal.base.architectures import ARCHITECTURES
    from tests.gguf_models import SIZES, random_bytes

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab"]
    if kind == "gpt2":
        from tokenizers.pre_tokenizers import ByteLevel

        tokens = [*sorted(ByteLevel.alphabet()), "ab", "<s>", "</s>"]
    sizes = {
        **SIZES,
        "hidden_size": 32,
        "intermediate_size": 32,
        "vocab_size": len(tokens),
        "tie_word_embeddings": True,
    }
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_context_length(128)
        writer.add_block_count(1)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(32)
        writer.add_head_count(1)
        writer.add_head_count_kv(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in tokens])
        if kind == "llama":
            writer.add_token_scores([float(-n) for n in range(len(tokens))])
        else:
            writer.add_token_merges(["a b"])
        writer.add_bos_token_id(tokens.index("<s>"))
        writer.add_eos_token_id(tokens.index("</s>"))
        writer.add_chat_template(_templates()[0])
        for number, (source, shape) in enumerate(ARCHITECTURES["llama"].shapes(sizes).items()):
            own = "F16" if len(shape) > 1 else "F32"
            raw = random_bytes(own, shape, number)
            name = ARCHITECTURES["llama"].tensor(source)
            writer.add_tensor(name, raw if len(shape) > 1 else raw[0], raw_dtype=GGMLQuantizationType[own])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 12, 13, 31, 32, 255, 2**16, 2**21, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def _mutate_gguf(files: Files, random: Random) -> Files:
    """Put a number where the header has one, or change any bytes; rarely those of the tensors."""
    data = files["model.gguf"]
    header = data.find(b"general.alignment") + 1 or min(len(data), 20_000)
    if random.random() < 0.75 and len(data) > 64:
        size = random.choice((4, 8, 8))
        at = random.randrange(4, max(5, min(header, len(data) - 8)))
        if random.random() < 0.5:  # where a key ends stand its type and its value
            keys = [data.find(word) + len(word) for word in KEYS if word in data]
            at = random.choice([8, 16, *keys, *(each + 4 for each in keys)])
        number = random.choice(NUMBERS) % 256**size
        return {"model.gguf": data[:at] + number.to_bytes(size, "little") + data[at + size :]}
    if random.random() < 0.3:
        return {"model.gguf": data.replace(random.choice(KEYS), random.choice(KEYS), 1)}
    return {"model.gguf": mutate.any_bytes(data[:20_000], random) + data[20_000:]}


KEYS = tuple(
    word.encode()
    for word in (
        "general.architecture", "llama.context_length", "llama.block_count", "llama.embedding_length", "llama",
        "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon",
        "llama.rope.freq_base", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "gpt2",
        "tokenizer.ggml.token_type", "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.chat_template",
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "token_embd.weight", "blk.0.attn_q.weight",
        "blk.0.ffn_down.weight", "output_norm.weight", "general.alignment", "split.count",
    )
)  # fmt: skip
"""Names in the header, each followed by a type, or by dimensions."""


def _knock_gguf(folder: Path, files: Files) -> None:
    from pilocal.export.finite import check_finite

    path = folder / "model.gguf"
    read_header(path)
    base = Base.of_gguf(path)
    base.check()
    check_finite(base)
    _ = base.layout.prompt([{"role": "user", "content": "ab"}])


door(
    Door(
        name="gguf",
        make=lambda random: {"model.gguf": _gguf(random.choice(("gpt2", "llama")))},
        mutate=_mutate_gguf,
        knock=_knock_gguf,
        short=40,
    )
)


@cache
def _folder(kind: str) -> Files:
    """Return the files of a small base of an architecture in Hugging Face's form."""
    import numpy as np
    from safetensors.numpy import save

    from tests.tiny import CONFIG, CONFIGS

    counts = {"num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    small = {**counts, "hidden_size": 64, "intermediate_size": 32, "vocab_size": 64}
    own = CONFIGS.get(kind, {"rope_scaling": None})
    own = CONFIG if kind == "llama" else own
    config = {**CONFIG, **own, **small, "model_type": kind, "tie_word_embeddings": True}
    config |= {"layer_types": own["layer_types"][:2]} if "layer_types" in own else {}
    config["architectures"] = [ARCHITECTURES[kind].causal]
    shapes = ARCHITECTURES[kind].shapes(config)
    tensors = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors)}


def _mutate_folder(files: Files, random: Random) -> Files:
    name = random.choice(sorted(files))
    change = mutate.any_safetensors if name.endswith(".safetensors") else mutate.JSON
    return files | {name: change(files[name], random)}


def _knock_folder(folder: Path, files: Files) -> None:
    from pilocal.export.finite import check_finite
    from pilocal.export.numbers import check_settings, rope_factors
    from pilocal.export.weights import BaseWeights
    from pilocal.task import Lora
    from pilocal.training.memory import read_sizes

    (folder / "tokenizer.json").write_text("{}")
    base = Base.at(folder)
    base.check()
    _ = (base.context, base.quantized, base.stock_reads_rope, read_sizes(base.config, Lora()))
    check_settings(base.config)
    rope_factors(base.config)
    check_finite(base)
    weights = BaseWeights(base)
    for name in weights.shapes:
        weights.read(name)


door(
    Door(
        name="base-folder",
        make=lambda random: dict(_folder(random.choice(sorted(ARCHITECTURES)))),
        mutate=_mutate_folder,
        knock=_knock_folder,
        short=40,
    )
)


@cache
def _tokenizer() -> Files:
    """Return the files of a small tokenizer."""
    from tests.layouts import LAYOUTS, write_layout

    with TemporaryDirectory() as folder:
        write_layout(LAYOUTS["llama 3"], Path(folder))
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    described = json.loads(found["tokenizer.json"])
    vocabulary = dict(list(described["model"]["vocab"].items())[:300])
    described["model"] |= {"vocab": vocabulary, "merges": []}
    return found | {"tokenizer.json": json.dumps(described).encode(), "config.json": b'{"model_type": "llama"}'}


def _knock_tokenizer(folder: Path, files: Files) -> None:
    _ = Base.at(folder).layout.prompt([{"role": "user", "content": "ab <|eot_id|>"}])


door(
    Door(
        name="tokenizer",
        make=lambda random: dict(_tokenizer()),
        mutate=mutate.files_by(lambda name: mutate.TEXT if name.endswith("jinja") else mutate.JSON),
        knock=_knock_tokenizer,
        short=15,
    )
)


def _knock_name(folder: Path, files: Files) -> None:
    with patch.dict(os.environ, {"OLLAMA_MODELS": str(folder)}):
        find_base(files.get("name", b"").decode("utf-8", "replace"), folder)


NAMES = (
    b"owner/name", b"../../etc/passwd", b"a/..", b"ollama:x", b"ollama:../../x", b"starter ", b"~/x", b"models--a--b/c",
    b"a/b.gguf", b"ollama:a/b/c/d:e", b"owner/name@main", b"hf://a/b", b"a\x00b/c", b"/dev/stdin", b"./x", b"smollm",
)  # fmt: skip

MANIFEST = {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:aa"}]}


def _make_name(random: Random) -> Files:
    manifest = json.dumps(MANIFEST).encode()
    return {"name": b"starter", "manifests/registry.ollama.ai/library/x/latest": manifest}


def _mutate_name(files: Files, random: Random) -> Files:
    if random.random() < 0.5:
        return files | {"name": random.choice(NAMES)}
    return mutate.files_by(lambda name: mutate.any_text if name == "name" else mutate.JSON)(files, random)


door(
    Door(
        name="base-name",
        make=_make_name,
        mutate=_mutate_name,
        knock=_knock_name,
        short=40,
    )
)
