"""Files of models that lie about lengths, offsets, counts and types, and names that are none: one line each."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pilocal.base.base import Base, find_base
from pilocal.base.gguf_file import open_gguf
from pilocal.base.tokenizer import load_tokenizer
from pilocal.errors import ModelError
from pilocal.run_folder.gguf_header import read_gguf
from pilocal.run_folder.tensors import stored_in
from tests.gguf_models import write_model

WHOLE: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "F16", "shape": [2], "data_offsets": [16, 20]},
}
REST = bytes(20)
ODD: tuple[Any, ...] = ([], [1], 1, None, "x", {"a": 1}, {"a": []}, {"a": {}})


def tensors(header: Any, rest: bytes = REST, said: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if said is None else said).to_bytes(8, "little") + text + rest


def changed(**changes: Any) -> dict[str, Any]:
    return {**WHOLE, "b": {**WHOLE["b"], **changes}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        *(tensors(WHOLE, said=said) for said in (0, 1, 2**31, 2**62, 2**64 - 1)),
        *map(tensors, ODD),
        tensors(b"[" * 90_000 + b"]" * 90_000),
        tensors(b'{"a": ' + b"9" * 5_000 + b"}"),
        tensors(b"\xff\xfe"),
        tensors(WHOLE, REST[:-1]),
        tensors(WHOLE, REST + b"\0"),
        tensors(changed(data_offsets=[0, 4]), REST[:16]),
        tensors(changed(data_offsets=[14, 18]), REST[:18]),
        tensors(changed(data_offsets=[20, 16])),
        tensors(changed(data_offsets=["16", "20"])),
        tensors(changed(data_offsets=[16.0, 20.0])),
        tensors(changed(data_offsets=[-4, 20])),
        tensors(changed(data_offsets=[16])),
        tensors(changed(data_offsets=[16, 2**70])),
        tensors(changed(shape=[3])),
        tensors(changed(shape=[2**40, 2**40])),
        tensors(changed(shape=[-1, -2])),
        tensors(changed(shape=[True, 2])),
        tensors(changed(shape=2)),
        tensors(changed(shape=[1] * 100_000)),
        tensors(changed(dtype="F64")),
        tensors(changed(dtype=["F16"])),
    ],
)
def test_tensors_that_lie_are_damaged_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^(the header|unreadable|two tensors|\d+ bytes promised)"):
        stored_in(path)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    with pytest.raises(ModelError, match="damaged: ") as found:
        Base.at(tmp_path).check()
    assert "\n" not in str(found.value)


def test_tensors_that_do_not_lie_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    arrays: dict[str, np.ndarray[Any, Any]] = {"a": np.ones((2, 3), np.float16), "one": np.array(1, np.uint32)}
    arrays["empty"] = np.ones((0, 4), np.float32)
    path.write_bytes(save(arrays, {"format": "np"}))
    found = stored_in(path)
    assert {name: (each.shape, each.nbytes) for name, each in found.items()} == {
        name: (each.shape, each.nbytes) for name, each in arrays.items()
    }


def config() -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    return {"model_type": "llama", "rms_norm_eps": 1e-5, **dict.fromkeys(names, 2)}


@pytest.mark.parametrize(
    "text", ["[" * 90_000, '{"a": ' + "9" * 5_000 + "}", "\ufeff", "[]", "nan", '{"model_type": ["llama"]}', "{}"]
)
def test_a_config_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError) as found:
        Base.at(tmp_path).check()
    assert "\n" not in str(found.value)


def test_files_longer_than_any_tokenizer_s_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilocal.base.tokenizer.MOST_BYTES", 2**20)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text('{"model": {"merges": [' + '"a b",' * 200_000)
    with pytest.raises(ModelError, match="more than 1 MiB"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr("pilocal.base.base.MOST_JSON", 1)
    with pytest.raises(ModelError, match="more than 0 MiB"):
        Base.at(tmp_path).check()


def test_code_from_a_tokenizer_s_folder_is_neither_run_nor_asked_about(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "other", "auto_map": {"AutoConfig": "code.C"}}')
    said = {"tokenizer_class": "Other", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass T: pass\nclass C: pass\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "run").exists()


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def gguf(pairs: bytes = b"", tensors: bytes = b"", *, counts: tuple[int, int] = (0, 0), version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + pairs + tensors


def array(kind: int, count: int, rest: bytes = b"") -> bytes:
    return gguf(text("k") + struct.pack("<IIQ", 9, kind, count) + rest, counts=(0, 1))


MUCH = 2**64 - 1
LYING: dict[str, bytes] = {
    "nothing": b"",
    "half a number": b"GGUF\x03",
    "endless tensors": gguf(counts=(MUCH, 0)),
    "endless metadata": gguf(counts=(0, MUCH)),
    "an endless key": gguf(struct.pack("<Q", MUCH), counts=(0, 1)),
    "an unknown type": gguf(text("k") + struct.pack("<I", 99), counts=(0, 1)),
    "a list of lists": array(9, 3, bytes(99)),
    "a billion merges": array(8, 10**9, text("a b") * 3),
    "endless merges": array(8, MUCH, text("a b") * 3),
    "a billion scores": array(6, 10**9, bytes(99)),
    "endless scores": array(6, MUCH, bytes(99)),
    "bytes that are no text": gguf(text("k") + struct.pack("<I", 8) + text(b"\xff\xff"), counts=(0, 1)),
    "many dimensions": gguf(tensors=text("t") + struct.pack("<I", 2**32 - 1), counts=(1, 0)),
    "an odd alignment": gguf(text("general.alignment") + struct.pack("<I", 8) + text("x") + b"", b"", counts=(0, 1)),
    "an infinite alignment": gguf(text("general.alignment") + struct.pack("<If", 6, float("inf")), b"", counts=(0, 1)),
}


@pytest.mark.parametrize("name", LYING)
def test_a_header_that_lies_is_damaged_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(LYING[name])
    for arrays in (True, False):
        with pytest.raises(ModelError, match="damaged") as found:
            read_gguf(path, arrays=arrays)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("shape", "kind", "begin"),
    [((2**62, 2**62), 0, 0), ((32,), 0, 2**63), ((32,), 77, 0), ((2**64 - 1,), 8, 0), ((), 0, 0), ((31,), 8, 0)],
)
def test_a_tensor_that_lies_is_refused(tmp_path: Path, shape: tuple[int, ...], kind: int, begin: int) -> None:
    path = tmp_path / "x.gguf"
    one = text("t") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, begin)
    architecture = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    path.write_bytes(gguf(architecture, one, counts=(1, 1)) + bytes(300))
    with pytest.raises(ModelError, match=r"cut off|damaged|cannot be read"):
        open_gguf(path)


@pytest.mark.parametrize(("count", "number"), [(10**9, 0), (99_999, 0), (2, 2), (2, 70_000), (3, 0)])
def test_a_part_is_believed_only_if_its_name_says_the_same(tmp_path: Path, count: int, number: int) -> None:
    path = tmp_path / "x-00001-of-00002.gguf"
    write_model(path, "F16", metadata={"general.x": 1})
    said = [(b"split.count", count), (b"split.no", number)]
    pairs = b"".join(text(key) + struct.pack("<II", 4, value) for key, value in said)
    path.write_bytes(gguf(pairs, counts=(0, 2)))
    with pytest.raises(ModelError, match="says otherwise"):
        open_gguf(path)


@pytest.mark.parametrize(
    "name",
    [
        "x" * 300,
        f"a/{'y' * 300}",
        "a\0b/c",
        "../../etc/passwd",
        "a/..",
        "ollama:../../x",
        "/dev/null/x",
        "a/b/c",
        "a//b",
    ],
)
def test_a_base_by_a_name_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    with pytest.raises(ModelError) as found:
        find_base(name, tmp_path)
    assert "\n" not in str(found.value)
