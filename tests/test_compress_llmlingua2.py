"""Claims about LLMLingua-2, through the real package, with a small BERT that really learned which words are filler."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.hub import download
from pilocal.compress import CompressedTemplate, Tools, compress_template, compression_facts
from pilocal.compress.llmlingua2 import LLMLingua2, word_levels
from pilocal.compress.outline import Outline
from pilocal.errors import ModelError, PilocalError
from pilocal.task import Compression

FILLER = ("please", "kindly", "really", "very", "just", "basically", "simply", "quite", "of", "course")
CONTENT = (
    *("sort", "mail", "open", "parcel", "never", "answer", "code", "comma", "between", "words", "lamp", "kitchen"),
    *("name", "line", "rule", "list", "every", "number", "red", "blue", "Write", "Greet"),
)
MARKS = (*".,:;-{}`()", "1", "2")
TEMPLATE = """\
Write basically every answer in quite just 1 line.

- red: really very simply KOD
- blue: just MIP, of course

Please never open very simply a parcel. Greet {user name} kindly.
"""
MEANT = """\
Write every answer in 1 line.

- red: KOD
- blue: MIP,

never open a parcel. Greet {user name}
"""


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Transformers says on stderr what it thinks of a new model."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers that classifies tokens, trained until it tells filler from content."""
    import torch
    from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast  # type: ignore[attr-defined]

    folder = tmp_path_factory.mktemp("checkpoints") / "filler"
    folder.mkdir()
    letters = [chr(code) for case in "aA" for code in range(ord(case), ord(case) + 26)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *MARKS, *FILLER, "Please", *CONTENT, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False)
    torch.manual_seed(0)
    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        num_labels=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForTokenClassification(config)
    filler = {tokenizer.convert_tokens_to_ids(word) for word in (*FILLER, "Please")}
    first = tokenizer.convert_tokens_to_ids(MARKS[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        ids = torch.randint(first, len(tokenizer), (16, 48))
        some = torch.rand(ids.shape) < 0.4
        ids[some] = torch.tensor(random.Random(0).choices(sorted(filler), k=int(some.sum())))
        labels = torch.tensor([[int(token not in filler) for token in row] for row in ids.tolist()])
        logits = model(input_ids=ids).logits
        # Smooth, so that no two probabilities are the same 1.0.
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert ((logits[..., 1] > logits[..., 0]) == labels).float().mean() > 0.99
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tools(folder: Path, count: Callable[[str], int] = words, fetch: Callable[[str], Path] = download) -> Tools:
    return Tools(count_tokens=count, base_id="words", folder=folder, load_model=NotImplemented, download=fetch)


def shorten(
    checkpoint: Path,
    folder: Path,
    taus: tuple[float, ...],
    template: str = TEMPLATE,
    count: Callable[[str], int] = words,
    **settings: Any,
) -> tuple[CompressedTemplate, ...]:
    config = Compression(method="llmlingua2", checkpoint=checkpoint.name, **{"device": "cpu"} | settings)
    return compress_template(template, taus, config, tools(checkpoint.parent, count), folder)


def test_filler_goes_first(checkpoint: Path, tmp_path: Path) -> None:
    (result,) = shorten(checkpoint, tmp_path, (words(MEANT) / words(TEMPLATE),))
    assert result.text.split() == MEANT.split()
    assert result.text == MEANT.strip("\n")
    assert result.compressor == "llmlingua2"


def test_the_budget_is_met_closely_and_texts_are_nested(checkpoint: Path, tmp_path: Path) -> None:
    results = shorten(checkpoint, tmp_path, (0.9, 0.7, 0.5, 0.3, 0.1))
    for result in results:
        assert result.tau - 2 / words(TEMPLATE) <= result.ratio <= result.tau
    for more, fewer in pairwise(results):
        outer = iter(more.text.split())
        assert all(word in outer for word in fewer.text.split())


@pytest.mark.parametrize("rate", [0.8, 0.6, 0.4, 0.2])
def test_what_the_package_keeps_outlives_what_it_drops(checkpoint: Path, tmp_path: Path, rate: float) -> None:
    from llmlingua import PromptCompressor

    plain = "please sort mail just very never open parcel of course answer code comma simply between words quite red"
    package = PromptCompressor.__new__(PromptCompressor)
    package.model_name, package.oai_tokenizer = "bert-base-multilingual-cased", Whitespace()
    package.load_model(str(checkpoint), "cpu", {"local_files_only": True, "trust_remote_code": False})
    package.init_llmlingua2()
    kept = package.compress_prompt_llmlingua2([plain], rate=rate)["compressed_prompt"].split()
    (result,) = shorten(checkpoint, tmp_path, (len(kept) / words(plain),), plain)
    assert 0 < len(kept) < words(plain)
    assert result.text.split() == kept


class Whitespace:
    def encode(self, text: str) -> list[str]:
        return text.split()


def test_what_is_to_be_kept_goes_last(checkpoint: Path, tmp_path: Path) -> None:
    for keep, whole in (("{", "{user name}"), ("kindly", "kindly"), ("Please", "Please")):
        (result,) = shorten(checkpoint, tmp_path / keep, (0.1,), keep=(keep,))
        assert whole in result.text


def test_code_stays_whole(checkpoint: Path, tmp_path: Path) -> None:
    fence = "```\nsort -r list\n```"
    template = f"please very just sort mail.\n\n{fence}\n\nnever open `really just` a parcel quite."
    texts = [result.text for result in shorten(checkpoint, tmp_path, (0.8, 0.6, 0.4, 0.2), template)]
    assert all(fence in text or "sort -r" not in text for text in texts)
    assert all("`really just`" in text or "really" not in text for text in texts)


def test_what_the_checkpoint_cannot_read_goes_last(checkpoint: Path, tmp_path: Path) -> None:
    template = "please sort 漢字 mail, never 🏠 open very parcel Ünïcödé red blue line"
    (result,) = shorten(checkpoint, tmp_path, (0.3,), template)
    assert result.text.split() == ["漢字", "🏠", "Ünïcödé"]


def test_a_long_template_is_read_in_parts(checkpoint: Path, tmp_path: Path) -> None:
    lines = [f"please {FILLER[n % 8]} sort mail {CONTENT[n % 20]} never open parcel." for n in range(150)]
    template = "\n".join(lines)
    (result,) = shorten(checkpoint, tmp_path, (0.7,), template)
    assert 0.69 <= result.ratio <= 0.7
    assert not set(result.text.split()) & set(FILLER)
    assert len(result.text.split("\n")) == 150


def test_an_xlm_roberta_is_read_as_well(tmp_path: Path) -> None:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForTokenClassification, XLMRobertaTokenizerFast  # type: ignore[attr-defined]

    plain = "please sort mail just very never open parcel of course answer code comma simply between words KOD"
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = [*(f"▁{word}" for word in (*FILLER, *CONTENT)), "▁", "K", "O", "D"]
    tokenizer = XLMRobertaTokenizerFast(vocab=special + [(piece, -1.0 - len(piece) % 2) for piece in pieces])
    torch.manual_seed(0)
    config = XLMRobertaConfig(  # type: ignore[call-arg]
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=514,
        num_labels=2,
    )
    XLMRobertaForTokenClassification(config).save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    compressor = LLMLingua2(Compression(method="llmlingua2", checkpoint="mine", device="cpu"), tools(tmp_path))
    try:
        judged = compressor.judge(plain)
    finally:
        compressor.close()
    assert [word for word, _ in judged if word] == plain.split()
    levels = word_levels(Outline(plain), judged)
    assert len(set(levels)) > 10
    assert max(levels) < 99


def test_a_word_is_worth_its_best_part_that_is_no_mark() -> None:
    judged = [("KO", 3), ("D", 6), (",", 90), ("[UNK]", 5), ("(", 2), ("red", 7), (")", 4)]
    assert word_levels(Outline("KOD, 漢字 (red) x"), judged) == [6.0, 99.0, 7.0, 99.0]


def test_a_template_without_spaces_is_cut_where_the_checkpoint_finds_filler(checkpoint: Path, tmp_path: Path) -> None:
    template = "please,sort,really,mail,quite,parcel,answer,simply,code,comma,basically,words,kitchen."
    (result,) = shorten(checkpoint, tmp_path, (0.62,), template, len)
    assert 0.52 <= result.ratio <= 0.62
    assert not {"please", "really", "quite", "simply", "basically"} & set(result.text.strip(".").split(","))


def test_the_process_is_as_it_was_afterwards(checkpoint: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    hash_seed = os.environ.get("PYTHONHASHSEED")
    benchmark = torch.backends.cudnn.deterministic
    shorten(checkpoint, tmp_path, (0.5,))
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert os.environ.get("PYTHONHASHSEED") == hash_seed
    assert torch.backends.cudnn.deterministic == benchmark


def test_the_checkpoint_is_freed(checkpoint: Path, tmp_path: Path) -> None:
    def loaded() -> int:
        gc.collect()
        return sum(type(thing).__name__ == "BertForTokenClassification" for thing in gc.get_objects())

    before = loaded()
    shorten(checkpoint, tmp_path, (0.5,))
    assert loaded() == before


def test_a_second_run_loads_no_checkpoint(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shorten(checkpoint, tmp_path, (0.7, 0.4))
    monkeypatch.setattr("pilocal.compress.llmlingua2._load", NotImplemented)
    assert shorten(checkpoint, tmp_path, (0.7, 0.4), device="auto") == before


def test_another_checkpoint_in_the_same_place_is_another_key(checkpoint: Path, tmp_path: Path) -> None:
    config = Compression(method="llmlingua2", checkpoint="mine")
    shutil.copytree(checkpoint, tmp_path / "mine")
    before = compression_facts((0.5,), config, tools(tmp_path))
    assert compression_facts((0.5,), config, tools(tmp_path)) == before
    assert compression_facts((0.5,), replace(config, device="cpu"), tools(tmp_path)) == before
    weights = tmp_path / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert compression_facts((0.5,), config, tools(tmp_path)) != before
    assert compression_facts((0.5,), replace(config, checkpoint="owner/name"), tools(tmp_path)) != before


def refusal(folder: Path, checkpoint: str, **settings: Any) -> str:
    config = Compression(method="llmlingua2", checkpoint=checkpoint, **settings)
    with pytest.raises(PilocalError) as caught:
        compress_template(TEMPLATE, (0.5,), config, tools(folder), folder / "templates")
    assert isinstance(caught.value, ModelError)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal(tmp_path, "./mine").startswith("./mine: no such checkpoint; set [compression] checkpoint to an")
    line = refusal(tmp_path, "owner/no-such-checkpoint")
    assert line.startswith("owner/no-such-checkpoint: cannot be downloaded: ")
    assert line.endswith("check the id and the network, or give a local directory")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "the wrong kind of model: it does not classify tokens; got 'BertForM"),
        ({"architectures": None}, "the wrong kind of model: it does not classify tokens; got 'no architecture'"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "it needs two labels, drop and keep; got 3"),
        ({"model_type": "roberta"}, "llmlingua reads only bert and xlm-roberta models; got 'roberta'"),
    ],
)
def test_the_wrong_kind_of_checkpoint_is_one_line(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "mine")
    config = tmp_path / "mine" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    assert line in refusal(tmp_path, "mine")


def test_a_damaged_checkpoint_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "mine")
    weights = tmp_path / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "mine: cannot be loaded: " in refusal(tmp_path, "mine")
    (tmp_path / "mine" / "config.json").write_text("{")
    assert "config.json: damaged: " in refusal(tmp_path, "mine")
    (tmp_path / "mine" / "config.json").unlink()
    assert "mine: no config.json: not a checkpoint" in refusal(tmp_path, "mine")


def test_a_device_that_is_not_there_is_one_line(checkpoint: Path) -> None:
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = next(name for name, holds in there.items() if not holds)
    line = refusal(checkpoint.parent, checkpoint.name, device=device)
    assert line.startswith(f"[compression] device: torch has no such device here; got '{device}'; available: ")
