"""Loading a tokenizer: what AutoTokenizer would load, and no PyTorch where nothing needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pilocal.base import tokenizer
from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.tokenizer import load_tokenizer
from tests.texts import hard_texts
from tests.vocabularies import KINDS

STARTER = Path("pilocal/starter/model")

WITHOUT = """
import sys
from pathlib import Path
from pilocal.base.base import find_base
from pilocal.base.load import load_base
base = find_base("starter", Path())
print(base.tokenizer.decode(base.layout.prompt([{"role": "user", "content": "hello"}])))
load_base(base)
assert "torch" not in sys.modules
import mlx_lm
from transformers import AutoTokenizer
_, found = mlx_lm.load(str(base.folder))
assert found.encode("hello") == AutoTokenizer.from_pretrained(base.folder).encode("hello")
assert AutoTokenizer.__name__ == "AutoTokenizer"
"""


def test_tokenizer_and_base_are_loaded_without_pytorch_and_mlx_lm_still_loads_its_own() -> None:
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hello<|eot_id|>" in done.stdout


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["llama 2, loaded as LlamaTokenizer", "llama 3", "qwen", "smollm"])
def test_the_tokenizer_is_the_one_that_auto_tokenizer_finds(
    kind: str, model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = KINDS[kind](tmp_path / "base")
    config = json.loads((STARTER / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if not key.startswith("rope")}  # which are a Llama's
    config["model_type"] = model_type
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = load_tokenizer(folder)
    monkeypatch.setattr(tokenizer, "SETTLED", {})
    auto = load_tokenizer(folder)
    assert type(found) is type(auto)
    assert found.backend_tokenizer.to_str() == auto.backend_tokenizer.to_str()
    assert found.special_tokens_map == auto.special_tokens_map
    assert found.init_kwargs == auto.init_kwargs
    assert found.chat_template == auto.chat_template
    texts = hard_texts(17, 300)
    assert [found.encode(text) for text in texts] == [auto.encode(text) for text in texts]


def test_what_brings_its_own_code_or_declares_nothing_is_left_to_auto_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    declared = {"tokenizer_class": "PreTrainedTokenizerFast"}
    said = {"plain": declared, "code": declared | {"auto_map": {}}, "nothing": {}, "list": []}
    found = {}
    for name, settings in said.items():
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        found[name] = tokenizer._tokenizer_class(tmp_path).__name__ == "AutoTokenizer"
    assert found == {"plain": False, "code": True, "nothing": True, "list": True}
