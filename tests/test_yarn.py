"""Yarn's rope, and Ministral 3's queries scaled by their position: the same in MLX, transformers and llama.cpp."""

from __future__ import annotations

import ctypes
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import llama_cpp
import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.base.yarn import stretched
from pilocal.errors import ExportError
from pilocal.export.fused import export_fused
from pilocal.export.gguf import check_exportable
from pilocal.export.lossless import export_lossless
from tests.gguf_models import write_model
from tests.test_architectures import edited
from tests.test_export import F16_TOLERANCE, kl, llama, llama_logits, mlx_logits, tokens_T
from tests.tiny import MINISTRAL3, make_base

ROPES: dict[str, Any] = MINISTRAL3["rope_parameters"]

CASES: dict[str, dict[str, Any]] = {
    "3B and 8B": {
        **ROPES,
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
    }
}
CASES["14B"] = {**CASES["3B and 8B"], "rope_theta": 1e9}
CASES["with a magnitude"] = {**CASES["3B and 8B"], "factor": 64.0, "beta_fast": 4.0, "mscale_all_dim": 0.0}
CASES["small"] = ROPES

POSITIONS = [0, 1, 2, 5, 17, 60]


class Arena(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@pytest.fixture(scope="module")
def ggml() -> Any:
    """ggml's functions, by name."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    base, cpu = (
        ctypes.CDLL(str(next(folder.glob(f"libggml-{part}.*"))), mode=ctypes.RTLD_GLOBAL) for part in ("base", "cpu")
    )
    pointer, count, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    kinds: dict[str, tuple[Any, ...]] = {
        "init": (Arena,),
        "free": (pointer,),
        "new_tensor_1d": (pointer, whole, count),
        "new_tensor_3d": (pointer, whole, count, count, count),
        "get_data": (pointer,),
        "rope_ext": (*[pointer] * 4, *[whole] * 3, *[real] * 6),
        "rope_yarn_corr_dims": (whole, whole, real, real, real, pointer),
        "new_graph": (pointer,),
        "build_forward_expand": (pointer, pointer),
    }
    functions = {name: getattr(base, f"ggml_{name}") for name in kinds} | {"compute": cpu.ggml_graph_compute_with_ctx}
    for name, function in functions.items():
        function.argtypes = kinds.get(name, (pointer, pointer, whole))
        function.restype = pointer
    return SimpleNamespace(**functions)


def rotated_by_ggml(ggml: Any, ropes: dict[str, Any], size: int) -> np.ndarray:
    """What llama.cpp makes of 1 in every pair of a head, as complex numbers, (positions, size / 2).

    The magnitude that it hands to ggml takes ggml's own out again (llama-context.cpp).
    """
    factor, beyond = ropes["factor"], ropes["mscale_all_dim"]
    magnitude = 1 / (0.1 * beyond * np.log(factor) + 1)
    context = ggml.init(Arena(2**24, None, False))
    ones = np.tile(np.array([1, 0], np.float32), (len(POSITIONS), size // 2))
    given, at = (
        ggml.new_tensor_3d(context, 0, size, 1, len(POSITIONS)),
        ggml.new_tensor_1d(context, 26, len(POSITIONS)),
    )
    for tensor, values in ((given, ones), (at, np.array(POSITIONS, np.int32))):
        ctypes.memmove(ggml.get_data(tensor), values.ctypes.data, values.nbytes)
    numbers = (ropes["rope_theta"], 1 / factor, 1.0, magnitude, ropes["beta_fast"], ropes["beta_slow"])
    original = ropes["original_max_position_embeddings"]
    made = ggml.rope_ext(context, given, at, None, size, 0, original, *numbers)
    graph = ggml.new_graph(context)
    ggml.build_forward_expand(graph, made)
    ggml.compute(context, graph, 1)
    found = np.empty_like(ones)
    ctypes.memmove(found.ctypes.data, ggml.get_data(made), found.nbytes)
    ggml.free(context)
    return found[:, 0::2] + 1j * found[:, 1::2]


def rotated_by_mlx(ropes: dict[str, Any], size: int) -> np.ndarray:
    import mlx.core as mx
    from mlx_lm.models.rope_utils import initialize_rope

    rope = initialize_rope(size, ropes["rope_theta"], False, ropes, 2**18)
    ones = mx.array([1.0] * (size // 2) + [0.0] * (size // 2))[None, None, None]
    found = np.array([np.array(rope(ones, offset=position))[0, 0, 0] for position in POSITIONS])
    return found[:, : size // 2] + 1j * found[:, size // 2 :]


def rotated_by_transformers(ropes: dict[str, Any], size: int) -> np.ndarray:
    from transformers import Ministral3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    context = int(ropes["factor"]) * ropes["original_max_position_embeddings"]
    config = Ministral3Config(head_dim=size, max_position_embeddings=context, rope_parameters=dict(ropes))
    frequencies, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config)
    return magnitude * np.exp(1j * np.outer(POSITIONS, frequencies.numpy()))


@pytest.mark.parametrize("name", CASES)
def test_every_frequency_and_the_magnitude_are_the_same_in_all_three(name: str, ggml: Any) -> None:
    ropes, size = CASES[name], 64 if name == "small" else 128
    assert stretched(ropes, ropes["rope_theta"], size) is not None
    in_mlx = rotated_by_mlx(ropes, size)
    for other in (rotated_by_ggml(ggml, ropes, size), rotated_by_transformers(ropes, size)):
        assert np.abs(other[1] / in_mlx[1] - 1).max() < 1e-6  # a frequency, and the magnitude
        assert np.abs(other - in_mlx).max() < 2e-5


def test_bounds_are_those_that_llama_cpp_rounds_to_or_none(ggml: Any) -> None:
    rng, none = Random(0), 0
    for _ in range(2000):
        size, theta = rng.choice((16, 64, 128)), 10 ** rng.uniform(1, 9)
        fast, slow = (2 ** rng.uniform(-1, 6) for _ in range(2))
        said = {"original_max_position_embeddings": rng.randint(16, 2**18), "beta_fast": fast, "beta_slow": slow}
        bounds = (ctypes.c_float * 2)()
        ggml.rope_yarn_corr_dims(size, said["original_max_position_embeddings"], theta, fast, slow, bounds)
        found = stretched(said, theta, size)
        assert found in (None, tuple(bounds))
        none += found is None and bounds[0] <= bounds[1]
    assert none < 50


@pytest.fixture(scope="module")
def base(starter: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("bases") / "ministral3", starter.folder, **MINISTRAL3)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mscale": 2.0}, "mscale: llama.cpp computes this model in another way; got 2.0; take a base"),
        ({"mscale": None}, "mscale: llama.cpp computes this model in another way; take"),
        ({"mscale_all_dim": -1}, "mscale_all_dim: .* got -1"),
        ({"attention_factor": 1.2}, "attention_factor: .* got 1.2"),
        ({"truncate": False}, "truncate: .* got False"),
        ({"factor": 0.5}, "factor: .* got 0.5"),
        ({"beta_slow": 0}, "beta_slow: .* got 0"),
        ({"beta_fast": 0.1}, "beta_fast: .* got 0.1"),
        ({"original_max_position_embeddings": 24.5}, "original_max_position_embeddings: .* got 24.5"),
        ({"llama_4_scaling_beta": None}, "llama_4_scaling_beta: llama.cpp computes this model in another way; take"),
        ({"rope_theta": 0.5}, "rope_theta: "),
        ({"rope_type": "linear"}, "rope_scaling: this kind cannot be exported; got 'linear'"),
        ({"type": "linear"}, "rope_scaling: this kind cannot be exported; got 'linear, yarn'"),
    ],
)
def test_what_is_not_read_alike_is_one_line(changes: dict[str, Any], line: str, base: Base, tmp_path: Path) -> None:
    check_exportable(base)
    other = edited(base, tmp_path / "base", rope_parameters={**ROPES, **changes})
    with pytest.raises(ExportError, match=line) as refusal:
        check_exportable(other)
    assert "\n" not in str(refusal.value)


def test_without_its_rope_settings_it_is_one_line(base: Base, tmp_path: Path) -> None:
    settings: tuple[Any, ...] = (None, [], "yarn")
    for number, said in enumerate(settings):
        other = edited(base, tmp_path / str(number), rope_parameters=said)
        with pytest.raises(ExportError, match=r"llama_4_scaling_beta: llama\.cpp computes this model in another way"):
            check_exportable(other)


def test_rope_parameters_count_wherever_else_a_setting_stands(base: Base, tmp_path: Path) -> None:
    """As in transformers and in mlx-lm's class, which reads nothing else."""
    theta: dict[str, Any] = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    short = {("type" if key == "rope_type" else key): value for key, value in ROPES.items()}
    for number, changes in enumerate((theta, {"rope_parameters": short})):
        other = edited(base, tmp_path / str(number), **changes)
        check_exportable(other)
        scaling = {**other.config["rope_scaling"], "rope_theta": other.config["rope_theta"]}
        for found in (other.config["rope_parameters"], scaling):
            assert {key: found[key] for key in ROPES} == ROPES
        (found, expected) = (load_base(each).layers[0].self_attn.rope for each in (other, base))
        assert np.array_equal(found._freqs, expected._freqs)


@pytest.mark.parametrize("windows", [{"layer_types": ["sliding_attention", *["full_attention"] * 2]}, {}])
def test_a_window_ends_the_context(windows: dict[str, Any], base: Base, tmp_path: Path) -> None:
    other = edited(base, tmp_path / "base", sliding_window=64, **windows)
    assert (base.context, other.context) == (1024, 64)


def test_a_file_without_yarn_and_scale_is_a_mistral(starter: Base, tmp_path: Path) -> None:
    """As files of Mistral Small are, of the same architecture."""
    write_model(tmp_path / "model.gguf", architecture="mistral3")
    base = Base.of_gguf(tmp_path / "model.gguf")
    base.check()
    said = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.0}
    assert base.config["rope_parameters"] == {**said, "original_max_position_embeddings": 128}
    plain = {**ROPES, **said, "original_max_position_embeddings": 24}
    folder = make_base(tmp_path / "base", starter.folder, **{**MINISTRAL3, "rope_parameters": plain})
    gguf = export_fused(folder, None, tmp_path / "plain.gguf", "f16")
    assert kl(mlx_logits(folder, None), llama_logits(gguf)).mean() < F16_TOLERANCE


def test_a_file_s_numbers_are_read_as_llama_cpp_reads_them(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 16.0, "yarn_beta_fast": 4.0, "original_context_length": 64}
    metadata = {f"rope.scaling.{key}": value for key, value in yarn.items()}
    write_model(tmp_path / "model.gguf", architecture="mistral3", metadata=metadata)
    scaling = Base.of_gguf(tmp_path / "model.gguf").config["rope_scaling"]
    assert scaling["mscale_all_dim"] == scaling["llama_4_scaling_beta"] == 0.0  # 0 where the file names none
    assert (scaling["beta_fast"], scaling["beta_slow"], scaling["factor"]) == (4.0, 1.0, 16.0)
    assert scaling["original_max_position_embeddings"] == 64


USUAL = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "attn_factor": 0.9}
"""As DeepSeek's distilled Qwen 3 says it; nobody reads the last."""


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_other_kinds_with_yarn_are_the_same_in_all_three(kind: str, qwen_tokenizer: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from pilocal.training.torch_backend.model import load_model

    ropes: dict[str, Any] = {"rope_theta": 1e6, "rope_scaling": USUAL, "head_dim": 64, "num_attention_heads": 4}
    base = make_base(tmp_path / "base", qwen_tokenizer, quantized=False, dtype="float32", model_type=kind, **ropes)
    base.check()
    check_exportable(base)
    expected = mlx_logits(base, None)
    model = load_model(base, dtype=torch.float32, device=torch.device("cpu"))
    made = export_lossless(base, tmp_path / "made").path
    with llama(made, logits_all=True, type_k=0, type_v=0) as other, torch.no_grad():
        other.eval(tokens_T())
        found = other.scores[: len(tokens_T())].copy(), model(torch.tensor([tokens_T()])).logits[0].numpy()
    for logits in found:
        assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()
    assert {**Base.of_gguf(made).config["rope_scaling"], "attn_factor": 0.9} == USUAL


@pytest.mark.parametrize("changes", [{"beta_fast": 16.0}, {"mscale_all_dim": 1.0, "mscale": 1.0}, {"mscale": 0.7}])
def test_of_other_kinds_llama_cpp_reads_no_numbers_but_two(
    changes: dict[str, Any], tiny_qwen3_base: Base, tmp_path: Path
) -> None:
    other = edited(tiny_qwen3_base, tmp_path / "base", rope_scaling={**USUAL, **changes})
    with pytest.raises(ExportError, match=f"{next(iter(changes))}: llama.cpp computes this model in another way"):
        check_exportable(other)


def test_an_original_context_outside_of_the_scaling_has_to_be_the_same(tiny_qwen3_base: Base, tmp_path: Path) -> None:
    """Since transformers takes that one."""
    for number, outside in enumerate((512, 64)):
        other = edited(
            tiny_qwen3_base, tmp_path / str(number), rope_scaling=USUAL, original_max_position_embeddings=outside
        )
        if outside == 512:
            check_exportable(other)
            continue
        with pytest.raises(ExportError, match=r"original_max_position_embeddings: .* got 512"):
            check_exportable(other)
