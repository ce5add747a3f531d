"""The starter's tokenizer: byte-level BPE with Llama 3's pre-tokenizer, special tokens and chat layout."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from random import Random

from pilocal.prompt.pre_tokenizers import LLAMA3_SPLIT
from pilocal.starter.episodes import CODES, DOMAINS, OPENINGS, invent

VOCAB_SIZE = 2048

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)

ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

ENGLISH_MODULES = (
    *("argparse", "collections", "datetime", "decimal", "email.message", "json", "logging", "os", "random"),
    *("pathlib", "re", "shutil", "statistics", "subprocess", "tempfile", "textwrap", "threading", "zipfile"),
)
"""Standard-library modules whose docstrings lend the vocabulary some general English."""


def corpus(episodes: int = 1500) -> Iterator[str]:
    """Yield the text that the merges are learned from: invented tasks and standard-library docstrings."""
    for seed in range(episodes):
        episode, rng = invent(seed), Random(seed)
        yield episode.template
        yield from ROLES
        for _ in range(12):
            yield from episode.ask(rng)
    for name in ENGLISH_MODULES:
        for _, member in inspect.getmembers(import_module(name)):
            yield inspect.getdoc(member) or ""


def must_be_single() -> Iterator[str]:
    """Yield the strings that the starter's lessons need as one token each."""
    yield from (f" {code}" for code in CODES)
    yield from (f" {word}" for domain in DOMAINS for words in domain.words for word in words)
    yield from (*OPENINGS, *ROLES)


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Learn the merges from `texts` and write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Raises ValueError when a word or code of the lessons is not a single token.
    """
    import json

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    split = [text for text in must_be_single() if len(tokenizer.encode(text, add_special_tokens=False).ids) != 1]
    if split or tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"vocabulary of {tokenizer.get_vocab_size()}: not one token each: {split}")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n")
