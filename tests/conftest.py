"""Fixtures that several test files share; made once a session."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# One thread rounds alike on every machine, and is the faster beside other work; test_blas.py takes them out.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pilocal.base.base import Base, find_base
from pilocal.packages import is_installed
from pilocal.run_folder.shipped import Shipped
from tests import vocabularies
from tests.durations import Durations, name_of, slow_tests
from tests.reports import make_reported
from tests.served import make_run
from tests.tiny import GEMMA3, GEMMA4, GEMMA4_SHARED, GRANITE, MINISTRAL3, PHI3, QWEN3_MOE, make_adapter, make_base


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let pyproject.toml's timeout stand where the plugin that reads it is not installed."""
    parser.addoption("--write-slow", action="store_true", help="measure the tests and write tests/slow.txt")
    if not is_installed("pytest_timeout"):
        parser.addini("timeout", "seconds that a test may take")


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach the tests' processes in a shell's background, too, and measure where that is asked for."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if is_installed("hypothesis"):
        from hypothesis import HealthCheck, settings

        # A busy machine is no fault of the test.
        settings.register_profile("pilocal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("pilocal")
    if config.getoption("--write-slow"):
        config.pluginmanager.register(Durations())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that are known to be slow; files with most of them come first, so that two processes end alike."""
    slow, counts = slow_tests(), Counter[Path]()
    for item in items:
        if name_of(item) in slow:
            item.add_marker(pytest.mark.slow)
            counts[item.path] += 1
    items.sort(key=lambda item: -counts[item.path])


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, for their processes as well."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def starter() -> Base:
    return find_base("starter", Path())


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Two layers in MLX 4-bit, grouped heads, llama3 rope scaling, its own output matrix."""
    return make_base(tmp_path_factory.mktemp("bases") / "untied-4bit", starter.folder)


@pytest.fixture(scope="session")
def tiny_tied_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """The same with the embedding as output matrix."""
    return make_base(tmp_path_factory.mktemp("bases") / "tied-4bit", starter.folder, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_float_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Float16, heads that are wider together than the model, no rope scaling."""
    folder = tmp_path_factory.mktemp("bases") / "untied-float"
    return make_base(folder, starter.folder, quantized=False, head_dim=64, rope_scaling=None)


@pytest.fixture(scope="session")
def tiny_deep_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Three layers in MLX 4-bit, of which only the last are adapted."""
    folder = tmp_path_factory.mktemp("bases") / "deep-4bit"
    return make_base(folder, starter.folder, hidden_size=128, intermediate_size=192, num_hidden_layers=3)


@pytest.fixture(scope="session")
def tiny_biased_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """A Llama of which every linear layer has a bias."""
    folder = tmp_path_factory.mktemp("bases") / "biased-4bit"
    return make_base(folder, starter.folder, attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="session")
def tiny_mistral_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Mistral in MLX 4-bit."""
    folder = tmp_path_factory.mktemp("bases") / "mistral-4bit"
    return make_base(folder, starter.folder, model_type="mistral", rope_scaling=None, rope_theta=1e6)


@pytest.fixture(scope="session")
def tiny_granite_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Granite 3 in MLX 4-bit: embeddings, scores, residuals and logits are scaled."""
    folder = tmp_path_factory.mktemp("bases") / "granite-4bit"
    return make_base(folder, starter.folder, **GRANITE)


@pytest.fixture(scope="session")
def tiny_smollm3_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """SmolLM3 in MLX 4-bit: the last of four layers is not rotated."""
    folder = tmp_path_factory.mktemp("bases") / "smollm3-4bit"
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4}
    return make_base(folder, starter.folder, model_type="smollm3", rope_scaling=None, tie_word_embeddings=True, **sizes)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of every kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: make(folder / name) for name, make in vocabularies.KINDS.items()}


@pytest.fixture(scope="session")
def qwen_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vocabularies.qwen_like(tmp_path_factory.mktemp("tokenizers") / "qwen")


@pytest.fixture(scope="session")
def tiny_qwen2_base(tmp_path_factory: pytest.TempPathFactory, qwen_tokenizer: Path) -> Base:
    """Qwen 2.5 in MLX 4-bit: biases of queries, keys and values, the embedding as output matrix."""
    folder = tmp_path_factory.mktemp("bases") / "qwen2-4bit"
    return make_base(folder, qwen_tokenizer, model_type="qwen2", rope_scaling=None, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_qwen3_base(tmp_path_factory: pytest.TempPathFactory, qwen_tokenizer: Path) -> Base:
    """Qwen 3 in MLX 4-bit: norms of queries' and keys' heads, which are wider together than the model; three layers."""
    folder = tmp_path_factory.mktemp("bases") / "qwen3-4bit"
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "head_dim": 32}
    return make_base(folder, qwen_tokenizer, model_type="qwen3", rope_scaling=None, **sizes)


@pytest.fixture(scope="session")
def tiny_gemma3_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Gemma 3 in MLX 4-bit: windows, norms behind attention and MLP, scaled embeddings, two ropes."""
    return make_base(tmp_path_factory.mktemp("bases") / "gemma3-4bit", starter.folder, **GEMMA3)


@pytest.fixture(scope="session")
def tiny_gemma4_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Gemma 4 of 31B's kind in MLX 4-bit: layers that differ, values that are keys, partly rotated heads."""
    return make_base(tmp_path_factory.mktemp("bases") / "gemma4-4bit", starter.folder, **GEMMA4)


@pytest.fixture(scope="session")
def tiny_gemma4_shared_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Gemma 4 of E2B's kind in MLX 4-bit: shared keys and values, wider MLPs there, an input of each layer's own."""
    return make_base(tmp_path_factory.mktemp("bases") / "gemma4-shared-4bit", starter.folder, **GEMMA4_SHARED)


@pytest.fixture(scope="session")
def tiny_phi3_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Phi in MLX 4-bit: queries, keys and values in one matrix, gate and up in one, heads rotated in part."""
    return make_base(tmp_path_factory.mktemp("bases") / "phi3-4bit", starter.folder, **PHI3)


@pytest.fixture(scope="session")
def tiny_qwen3_moe_base(tmp_path_factory: pytest.TempPathFactory, qwen_tokenizer: Path) -> Base:
    """Qwen 3 in MLX 4-bit, with two of eight experts for each token; what scores them in 8 bits, as mlx-lm packs it."""
    eight = {f"model.layers.{layer}.mlp.gate": {"bits": 8, "group_size": 64} for layer in range(2)}
    return make_base(tmp_path_factory.mktemp("bases") / "qwen3-moe", qwen_tokenizer, exceptions=eight, **QWEN3_MOE)


@pytest.fixture(scope="session")
def tiny_ministral3_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Ministral 3 in MLX 4-bit: yarn's rope, queries scaled by their position, heads wider together than the model."""
    return make_base(tmp_path_factory.mktemp("bases") / "ministral3-4bit", starter.folder, **MINISTRAL3)


@pytest.fixture(scope="session")
def sliding_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """A Llama of which one layer sees only the last 16 tokens."""
    folder = tmp_path_factory.mktemp("bases") / "sliding"
    return make_base(folder, starter.folder, layer_types=["sliding_attention", "full_attention"], sliding_window=16)


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Path:
    """Rank 4, scale 2, on every linear layer of tiny_base and tiny_tied_base."""
    return make_adapter(tmp_path_factory.mktemp("adapters") / "random", tiny_base)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> list[Path]:
    """Two tasks with an adapter each on the starter, and one that is fused."""
    root = tmp_path_factory.mktemp("runs")
    made: list[Shipped] = []
    for seed, name in enumerate(("colours", "lights", "melted")):
        adapter = make_adapter(root / f"adapter-{name}", starter, rank=4, scale=2.0, seed=seed)
        gguf = made[0].folder / made[0].base if made else None
        made.append(make_run(root / name, starter, adapter, gguf=gguf, fused=name == "melted"))
    return [shipped.folder.parent for shipped in made]


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Path:
    """A task with a finished run and its report."""
    return make_reported(tmp_path_factory.mktemp("reported") / "task", tiny_base.folder)
