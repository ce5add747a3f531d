"""Tokenizers of every kind that can be exported, trained in a second or rebuilt from a real vocabulary."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pilocal.prompt.pre_tokenizers import LLAMA3_SPLIT, O200K_SPLIT, QWEN2_SPLIT, SPACE, TEKKEN_SPLIT
from pilocal.starter.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, corpus

SIZE = 2040
INST_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ '[INST] ' + message['content'] + '\\n\\n[/INST]' }}{% endif %}{% endfor %}"
)
"""As Llama 2 and Mistral write chats."""

MINISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}"
    "{% else %}{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}{% endif %}{% endfor %}"
)
"""As Ministral 3 writes chats."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""As TinyLlama writes chats: no BOS, and plain text first."""

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}"
    "{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}"
    "{{ (first if loop.first else '') + turn['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""As Gemma 3 writes chats."""

GEMMA4_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}"
    "{{ '<|turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}"
    "{{ turn['content'] | trim + '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
    "{% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)
"""As Gemma 4 writes chats: an empty thought stands before the answer that is asked for, and before no other."""

PHI_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
"""As Phi-4-mini writes chats."""

QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
SMOLLM_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"),
    *("<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>"),
    *("<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"),
)
LLAMA3_SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in (0, 1))),
    *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{i}|>" for i in range(3, 248))),
)


@cache
def sample() -> tuple[str, ...]:
    """Return some English, some code and some of everything else."""
    return (
        *corpus(episodes=20),
        Path(__file__).read_text(encoding="utf-8"),
        "a b  c   d\te\n\n" * 9,
        "été 日本語 " * 9,
    )


@cache
def learned_merges(split: str | None) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of a small byte-level BPE; without a pattern text is cut as SmolLM2 does it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _bytes_after(split)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 10, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sample(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def byte_level(
    folder: Path,
    split: str | None,
    special: Sequence[str],
    config: Mapping[str, Any],
    *,
    learned: tuple[dict[str, int], list[tuple[str, str]]] | None = None,
    nfc: bool = False,
    whole_words: bool = False,
    bos: bool = False,
) -> Path:
    """Write a byte-level BPE, trained on the sample unless `learned` elsewhere; `bos` is the first special token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocabulary, merges = learned or learned_merges(split)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words))
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = _bytes_after(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos:
        pair = f"{special[0]} $A {special[0]} $B"
        ids = [(special[0], tokenizer.token_to_id(special[0]))]
        tokenizer.post_processor = processors.TemplateProcessing(f"{special[0]} $A", pair, ids)
    return _write(folder, tokenizer, config)


def _bytes_after(split: str | None) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if split is None:
        by_pattern = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_pattern])
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), behavior="isolated"), to_bytes])


def qwen_like(folder: Path, **options: Any) -> Path:
    """Write a tokenizer as Qwen 2 and 3 have it: NFC, every digit for itself, no BOS."""
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHATML_TEMPLATE,
    }
    return byte_level(folder, QWEN2_SPLIT, QWEN_SPECIAL, config, nfc=True, **options)


def tekken_like(folder: Path) -> Path:
    """Write a tokenizer as Mistral Nemo and Ministral 3 have it: Tekken's pattern, words that are tokens whole."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": MINISTRAL_TEMPLATE,
    }
    special = ("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    return byte_level(folder, TEKKEN_SPLIT, special, config, bos=True, whole_words=True)


def phi_like(folder: Path) -> Path:
    """Write a tokenizer as Phi-4-mini has it.

    Its pattern is GPT-4o's, and removes what it does not find: nothing. Its marks take the white space behind them.
    """
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "chat_template": PHI_TEMPLATE,
    }
    special = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>")
    byte_level(folder, O200K_SPLIT, special, config)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    described["added_tokens"] = [{**token, "rstrip": True} for token in described["added_tokens"]]
    path.write_text(json.dumps(described), encoding="utf-8")
    return folder


def smollm_like(folder: Path, **options: Any) -> Path:
    """Write a tokenizer as SmolLM2 has it: special tokens first, every digit for itself, no BOS."""
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "add_prefix_space": False,
        "chat_template": CHATML_TEMPLATE,
    }
    vocabulary, merges = learned_merges(None)
    first = {token: row for row, token in enumerate(SMOLLM_SPECIAL)}
    learned = first | {token: row + len(first) for token, row in vocabulary.items()}, merges
    return byte_level(folder, None, SMOLLM_SPECIAL, config, learned=learned, **options)


def llama3(folder: Path, data: Path | None = None, *, whole_words: bool = True) -> Path:
    """Write a tokenizer as Llama 3 has it, from the real encoder.json and vocab.bpe in `data` or trained."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "chat_template": CHAT_TEMPLATE,
    }
    if data is None:
        return byte_level(folder, LLAMA3_SPLIT, SPECIAL_TOKENS, config, whole_words=whole_words, bos=True)
    lines = (data / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines) if left and right]
    learned = json.loads((data / "encoder.json").read_text(encoding="utf-8")), merges
    return byte_level(folder, LLAMA3_SPLIT, LLAMA3_SPECIAL, config, learned=learned, whole_words=True, bos=True)


@cache
def sentencepiece_model() -> bytes:
    """Return a small SentencePiece BPE with the settings that Llama 2's was trained with."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in sample() for line in text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=SIZE - 40,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return model.getvalue()


def pieces_of(model: bytes) -> dict[str, float]:
    """Return a SentencePiece model's pieces, in order, and their scores."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    return {processor.id_to_piece(i): processor.get_score(i) for i in ids}


SPM_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": INST_TEMPLATE,
    }
)


def sentencepiece_like(
    folder: Path,
    *,
    spaces: str = "each",
    pieces: Mapping[str, float] | None = None,
    special: Iterable[str] = ("<unk>", "<s>", "</s>"),
    bos: str = "<s>",
    **config: Any,
) -> Path:
    """Write a tokenizer as Llama 2 and Mistral up to 7B v0.3 have it, from pieces and their scores or trained.

    `spaces` says before which texts one is laid: "each", as in their own tokenizer.json, or as Metaspace calls it; with
    "none" it is Gemma's, which lays none and has a step that cuts at spaces when there are none left.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers.tokenization_utils_base import generate_merges

    scored = dict(pieces or pieces_of(sentencepiece_model()))
    vocabulary = {piece: row for row, piece in enumerate(scored)}
    merges = generate_merges(vocabulary, scored)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if spaces == "each":
        steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        tokenizer.normalizer = normalizers.Sequence(steps)
    elif spaces == "none":
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=spaces, split=False)
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if spaces != "none" else [])])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    ids = [(bos, tokenizer.token_to_id(bos))]
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", ids)
    return _write(folder, tokenizer, {**SPM_CONFIG, **config})


def gemma_like(folder: Path) -> Path:
    """Write a tokenizer as Gemma 3 has it: SentencePiece without a space before texts, and system in the first turn."""
    names = {"<s>": "<bos>", "</s>": "<eos>"}
    pieces = {names.get(piece, piece): score for piece, score in pieces_of(sentencepiece_model()).items()}
    return sentencepiece_like(
        folder,
        spaces="none",
        pieces=pieces,
        special=("<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
        bos="<bos>",
        tokenizer_class="GemmaTokenizer",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=GEMMA_TEMPLATE,
    )


def gemma4_like(folder: Path) -> Path:
    """Write a tokenizer as Gemma 4 has it.

    Its pairs are no scores' order, newlines are tokens of their own, and "</s>" is a plain one.
    """
    names = {"<s>": "<bos>", "</s>": "<eos>"}
    pieces = {names.get(piece, piece): score for piece, score in pieces_of(sentencepiece_model()).items()}
    least = min(pieces.values())
    more = ("\n", "\n\n", "\n\n\n", "</", "s>", "</s>")
    pieces |= {piece: least - rank for rank, piece in enumerate(more) if piece not in pieces}
    marks = ("<unk>", "<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_response>")
    sentencepiece_like(
        folder,
        spaces="none",
        pieces=pieces,
        special=marks,
        bos="<bos>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=GEMMA4_TEMPLATE,
    )
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    pairs = described["model"]["merges"]
    twice = next(i for i in range(1, len(pairs)) if "".join(pairs[i]) == "".join(pairs[i - 1]))
    del pairs[twice]
    path.write_text(json.dumps(described), encoding="utf-8")
    return folder


def _write(folder: Path, tokenizer: Any, config: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict(config)
    (folder / "chat_template.jinja").write_text(settings.pop("chat_template"), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


KINDS: Mapping[str, Callable[[Path], Path]] = {
    "llama 2": sentencepiece_like,
    "llama 2, loaded as LlamaTokenizer": lambda folder: sentencepiece_like(folder, tokenizer_class="LlamaTokenizer"),
    "spaces first, plain text first": lambda folder: sentencepiece_like(
        folder, spaces="first", chat_template=PLAIN_TEMPLATE
    ),
    "spaces always": lambda folder: sentencepiece_like(folder, tokenizer_class="LlamaTokenizer", legacy=True),
    "spaces never": lambda folder: sentencepiece_like(folder, spaces="never"),
    "llama 3": llama3,
    "llama 3, merged to the end": lambda folder: llama3(folder, whole_words=False),
    "gemma": gemma_like,
    "gemma 4": gemma4_like,
    "qwen": qwen_like,
    "smollm": smollm_like,
    "tekken": tekken_like,
    "phi": phi_like,
}
"""Every kind, and who writes it."""
