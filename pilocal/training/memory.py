"""What a training step will need, before it is taken: memory and time, from the model's sizes and the rows' lengths.

The memory formula counts what the gradient keeps, layer by layer, and the largest piece of work on top of it. Its
factors were fitted to the measured peaks of 104 random configurations of MLX's step (float32 on a CPU); `just bench
memory` compares it with configurations that it has not seen. A probe, one real step, corrects it for the machine at
hand. `torch_backend.memory` has the same for PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from statistics import mean
from typing import Any, Generic, Protocol, TypeVar

from pilocal.base.architecture import head_dim, kv_heads
from pilocal.base.architectures import architecture_of
from pilocal.errors import InputError, did_you_mean
from pilocal.task import OPTIMIZERS, Lora, Training

SHARE_OF_MEMORY = 0.25
"""How much of the memory that the base leaves the rows' hidden states below the adapter may take; the rest is computed
again."""

KEPT = {"width": 5.92, "intermediate": 4.61, "scores": 1.10, "keys_values": 0.88}
"""Numbers that the gradient keeps, for each token and layer, in multiples of what the name says."""

AT_ONCE = {"logits": 3.7, "widths": 6.35, "scores": 2.31}
"""Numbers that live at the same time while one layer, or the head, is computed."""

KEPT_RECOMPUTED = {"width": 1.0, "keys_values": 1.0}
AT_ONCE_RECOMPUTED = {"logits": 4.0, "width": 20.0, "intermediate": 10.79, "scores": 2.88, "keys_values": 2.85}
"""The same with `recompute`: a whole layer's activations live while its gradient is computed."""

KEYS = {"self_attn.k_proj", "self_attn.qkv_proj"}
"""What makes keys; a layer without takes an earlier one's."""

GIB = 2**30

ADAPTER = {False: 1.01, True: 0.66}
"""Numbers for each adapter weight beside the weight and the optimizer's state: the gradient and the update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A base's dimensions and the adapter's."""

    layers: int
    width: int
    intermediate: int
    heads: int
    queries: float
    """Numbers of a token's queries in a layer, on average."""
    keys: float
    """Those of its keys, and of its values."""
    vocabulary: int
    tables: int
    """Weights of what makes inputs of their own for the layers; 0 where these have none."""
    blocks: Sequence[Mapping[str, tuple[int, int]]]
    """Inputs and outputs of every linear layer that may be adapted, for each block."""
    weights: float
    """How many weights these have in a block, on average."""
    experts: int
    """Weights of a block's experts, with what scores them; 0 where it has one MLP for all tokens."""
    used: int
    """Those of them that a token meets."""
    adapted: int
    """How many of the last layers have an adapter."""
    adapter: int
    """The adapter's number of weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a step computes: P shared tokens, G groups of S, B rows of T own tokens, C completion tokens in each."""

    prefix: int
    groups: int
    shots: int
    rows: int
    own: int
    completion: int

    @property
    def tokens(self) -> int:
        """Number of tokens that run through the model."""
        return self.prefix + self.groups * self.shots + self.rows * self.own

    @property
    def reach(self) -> int:
        """How many tokens a row's last one sees."""
        return self.prefix + self.shots + self.own

    @property
    def scores(self) -> int:
        """How many pairs of tokens look at each other in one head, masked ones counted."""
        shots = self.groups * self.shots * (self.prefix + self.shots)
        return self.prefix**2 + shots + self.rows * self.own * self.reach

    @property
    def joined(self) -> int:
        """How many keys are laid out anew because something stands before them."""
        shots = self.groups * (self.prefix + self.shots) if self.prefix else 0
        return (self.rows * self.reach if self.prefix or self.groups else 0) + shots


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one stage needs."""

    peak: int
    """Bytes at the peak, weights included."""
    seconds: float | None
    """For the whole stage, without what is computed once below the adapter; None without a probe."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a training will need."""

    needs: tuple[Need, ...]
    """Each stage's."""
    memory: int
    """Bytes that the training may use."""
    advice: str | None
    """What to change when it does not fit; None when it does."""
    weights: str | None = None
    """How the numbers of a base in GGUF are held, in a sentence; None for any other base."""


def read_sizes(config: Mapping[str, Any], lora: Lora) -> Sizes:
    """Return the sizes that config.json and `[lora]` say; raises InputError when the two do not fit."""
    architecture, heads = architecture_of(config), int(config["num_attention_heads"])
    each = architecture.settings_of_layers(config)
    blocks = architecture.linears(config)
    names, adapted = check_lora(lora, blocks), blocks[-(lora.layers or 0) :]
    chosen = [size for block in adapted for name, size in block.items() if name in names]
    return Sizes(
        layers=len(blocks),
        width=int(config["hidden_size"]),
        intermediate=round(mean(map(architecture.inner_width, each))),
        heads=heads,
        queries=mean(heads * head_dim(own) for own in each),
        keys=mean(
            kv_heads(own) * head_dim(own) * bool(KEYS.intersection(block))
            for own, block in zip(each, blocks, strict=True)
        ),
        vocabulary=int(config["vocab_size"]),
        tables=sum(map(math.prod, architecture.tables(config).values())),
        blocks=blocks,
        weights=mean(sum(a * b for a, b in block.values()) for block in blocks),
        experts=architecture.expert_weights(config),
        used=architecture.expert_weights(config, used=True),
        adapted=len(adapted),
        adapter=sum(lora.rank * (a + b) + b * (lora.kind == "dora") for a, b in chosen),
    )


def check_lora(lora: Lora, blocks: Sequence[Iterable[str]]) -> list[str]:
    """Return the names of the linear layers that are adapted, sorted; `blocks` are the names in each of the model's.

    Raises InputError when the model has fewer layers than are asked for, or no such linear layer.
    """
    if lora.layers is not None and lora.layers > len(blocks):
        fix = "lower it or leave it out"
        raise InputError("[lora] layers", f"the model has {len(blocks)} layers", got=lora.layers, fix=fix)
    known, adapted = (sorted({*chain(*some)}) for some in (blocks, blocks[-(lora.layers or 0) :]))
    for name in lora.linears:
        if name not in known:
            raise InputError("[lora] linears", "no such linear layer", got=name, fix=did_you_mean(name, known))
    if lora.linears and not {*lora.linears}.intersection(adapted):
        fix = f"take some of {', '.join(adapted)}, or raise [lora] layers"
        raise InputError("[lora] linears", "none of them is in a layer that is adapted", got=lora.linears[0], fix=fix)
    return sorted(lora.linears) or adapted


def activations(sizes: Sizes, load: Load, *, recompute: bool) -> float:
    """Return how many numbers live at a step's peak beside the weights and the optimizer's state."""
    lower, predicting = sizes.adapted - 1, load.rows * load.completion
    keys_values = 2 * sizes.keys
    largest = max(load.prefix, load.groups * load.shots, load.rows * load.own)
    scores = sizes.heads * max(load.prefix**2, load.rows * load.own * load.reach)
    logits = predicting * sizes.vocabulary
    if recompute:
        kept = KEPT_RECOMPUTED["width"] * lower * load.tokens * sizes.width
        kept += KEPT_RECOMPUTED["keys_values"] * sizes.adapted * load.tokens * keys_values
        layer = AT_ONCE_RECOMPUTED["width"] * largest * sizes.width
        layer += AT_ONCE_RECOMPUTED["intermediate"] * largest * sizes.intermediate
        layer += AT_ONCE_RECOMPUTED["scores"] * scores + AT_ONCE_RECOMPUTED["keys_values"] * load.joined * keys_values
        head = AT_ONCE_RECOMPUTED["logits"] * logits
    else:
        whole = lower * load.tokens + predicting
        all_scores = sizes.heads * (lower * load.scores + predicting * load.reach)
        kept = KEPT["width"] * whole * sizes.width + KEPT["intermediate"] * whole * sizes.intermediate
        kept += KEPT["scores"] * all_scores
        kept += KEPT["keys_values"] * sizes.adapted * (load.tokens + load.joined) * keys_values
        layer = AT_ONCE["widths"] * largest * (sizes.width + sizes.intermediate) + AT_ONCE["scores"] * scores
        head = AT_ONCE["logits"] * logits
    return kept + max(layer, head) + ADAPTER[recompute] * sizes.adapter


def operations(sizes: Sizes, load: Load, *, recompute: bool) -> float:
    """Return a step's floating-point operations, forwards and back to the activations, in the adapted layers."""
    lower, predicting = sizes.adapted - 1, load.rows * load.completion
    weights, shared = sizes.weights + sizes.used, 2 * sizes.width * sizes.keys
    matrices = lower * load.tokens * weights + load.tokens * shared
    matrices += predicting * (weights - shared + sizes.vocabulary * sizes.width)
    scores = lower * load.scores + predicting * load.reach
    attention = 2 * scores * sizes.queries
    passes = 3 if recompute else 2
    return 2.0 * passes * (matrices + 1.5 * attention)


class Step(Protocol):
    """The rows of a step, as a backend lays them out."""

    def loads(self, count: int) -> list[Load]:
        """Return what they compute when they are dealt into at most `count` parts, the largest first."""


S = TypeVar("S", bound=Step)


@dataclass(frozen=True, slots=True)
class Work(Generic[S]):
    """What a stage computes."""

    steps: tuple[tuple[Load, ...], ...]
    """The parts of every step of its first epoch."""
    heaviest: S
    """The step that takes the most memory."""
    own: int
    """Number of tokens that the training rows have behind what all begin with."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one real step took."""

    seconds: float
    bytes: int
    """The peak, without what was there before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a prediction knows of the machine."""

    memory: int
    """Bytes that the training may use."""
    base: int
    """Bytes of the base's weights."""
    probe: Probe | None = None
    """A step on the heaviest rows of the first stage, with the task's settings."""


def weigh(sizes: Sizes, steps: Sequence[S], training: Training, own: int) -> Work[S]:
    """Return a stage's work from all its steps, with the heaviest found; `own` is as in `Work`."""
    loads = tuple(tuple(step.loads(training.accumulate)) for step in steps)
    floats = [activations(sizes, parts[0], recompute=training.recompute) for parts in loads]
    return Work(loads, steps[floats.index(max(floats))], own)


def predict(
    machine: Machine, sizes: Sizes, works: Sequence[Work[S]], steps: Sequence[int], training: Training
) -> list[Need]:
    """Return what each stage needs; `steps` are each stage's optimizer steps."""
    probe = machine.probe

    def floats(step: Step) -> float:
        return activations(sizes, step.loads(training.accumulate)[0], recompute=training.recompute)

    def computed(parts: Iterable[Load]) -> float:
        return sum(operations(sizes, part, recompute=training.recompute) for part in parts)

    def kept(work: Work[S]) -> int:
        """Bytes of what is kept from below the adapter."""
        if sizes.adapted == sizes.layers:
            return 0
        prefix = sizes.width + 2 * (sizes.layers - sizes.adapted) * sizes.keys
        rows = min(4 * work.own * sizes.width, free_share(machine.memory, machine.base))
        return round(4 * work.steps[0][0].prefix * prefix) + rows

    fixed = machine.base + 4 * sizes.adapter * (1 + OPTIMIZERS[training.optimizer].remembered)
    per_float, per_operation = 4.0, None
    if probe:
        first = works[0].heaviest
        per_float = probe.bytes / floats(first)
        per_operation = probe.seconds / computed(first.loads(training.accumulate))
    return [
        Need(
            peak=round(fixed + kept(work) + per_float * floats(work.heaviest)),
            seconds=None if per_operation is None else count * per_operation * mean(map(computed, work.steps)),
        )
        for work, count in zip(works, steps, strict=True)
    ]


def advise(
    machine: Machine, sizes: Sizes, works: Sequence[Work[S]], asked: Training, *, may_recompute: bool = True
) -> str | None:
    """Return which setting makes the training fit into the machine's memory, or None when it fits as it is.

    With dropout nothing may be recomputed.
    """
    blind = replace(machine, probe=None)

    def peak(machine: Machine, training: Training, sizes: Sizes = sizes) -> int:
        return max(need.peak for need in predict(machine, sizes, works, [1] * len(works), training))

    missed = peak(machine, asked) / peak(blind, asked)  # does not depend on the settings
    if missed * peak(blind, asked) <= machine.memory:
        return None
    changes = list(smaller(asked, may_recompute=may_recompute))
    for settings, changed in changes:
        if (needed := missed * peak(blind, changed)) <= machine.memory:
            return f"set [training] {settings}: {needed / GIB:.1f} GiB, the same gradient"
    if machine.base > machine.memory:
        return f"its weights alone take {machine.base / GIB:.1f} GiB: take a smaller base, or one in fewer bits"
    for fewer, (settings, changed) in product(fewer_layers(sizes), changes):
        if (needed := missed * peak(blind, changed, fewer)) <= machine.memory:
            layers = f"set [lora] layers = {fewer.adapted}" + (f", and [training] {settings}" if settings else "")
            return f"{layers}: {needed / GIB:.1f} GiB, an adapter on the last layers alone"
    return "shorten the template, lower shots, adapt fewer [lora] layers, or take a smaller base"


def free_share(memory: int, taken: int) -> int:
    """Return the bytes that the hidden states below the adapter may take where so many of the memory are taken."""
    return int(SHARE_OF_MEMORY * max(0, memory - taken))


def fewer_layers(sizes: Sizes) -> Iterator[Sizes]:
    """Yield the sizes with an adapter on seven eighths of the layers, on six, and so on down to a quarter."""
    for eighths in range(7, 1, -1):
        if layers := sizes.adapted * eighths // 8:
            yield replace(sizes, adapted=layers, adapter=sizes.adapter * layers // sizes.adapted)


def smaller(training: Training, *, may_recompute: bool) -> Iterator[tuple[str, Training]]:
    """Yield settings that need less and less memory for the same gradient, each with its text for task.toml."""
    for recompute in (False, True) if may_recompute else (False,):
        for accumulate in range(1, training.batch_size + 1):
            changed = replace(training, accumulate=accumulate, recompute=recompute or training.recompute)
            settings = [f"accumulate = {accumulate}"] * (accumulate > 1) + ["recompute = true"] * recompute
            yield " and ".join(settings), changed


def base_bytes(config: Mapping[str, Any], *, packed: bool, precision: str | None = None) -> int:
    """Return what the base's weights take in memory, by what config.json says.

    Unless they stay `packed`, all are floats of the `precision`, float32 by default; else those that are not packed
    are, by default as in the files. Raises InputError for a quantization without sizes.
    """
    said = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    size = 4 if (precision or (said if packed else "float32")) == "float32" else 2
    total = 0.0
    for name, shape in architecture_of(config).shapes(config).items():
        bytes_each = _packed_bytes(config, name.removesuffix(".weight"), shape[-1], size) if packed else None
        total += math.prod(shape) * (bytes_each if bytes_each and len(shape) > 1 else size)
    return round(total)


def _packed_bytes(config: Mapping[str, Any], module: str, inputs: int, size: int) -> float | None:
    """Return the bytes of a weight with its share of its group's scale and bias, as mlx-lm packs; None for floats."""
    every = config.get("quantization") or {}
    try:
        how = every.get(module, every)  # a module may have its own
        if not how or inputs % how["group_size"]:
            return None
        of_group = 2 * size if how.get("mode", "affine") == "affine" else 1  # the others have a byte for a scale
        return float(how["bits"] / 8 + of_group / how["group_size"])
    except (AttributeError, KeyError, TypeError, ZeroDivisionError):
        fix = "copy or download the model again"
        raise InputError("config.json quantization", "needs bits and a group_size", got=every, fix=fix) from None
