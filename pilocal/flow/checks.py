"""What can be checked about a run before any work starts: every fault is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pilocal
from pilocal.base.base import Base
from pilocal.errors import InputError, PilocalError, raise_all
from pilocal.flow.answer_form import answer_grammar, warn_of_misfits
from pilocal.flow.context import Context
from pilocal.flow.listeners import Listeners
from pilocal.flow.mixing import mix_prompts
from pilocal.flow.setups import base_for
from pilocal.flow.start import Start, check_start, start_of
from pilocal.packages import is_installed, require_packages
from pilocal.retrieve import Question, check_bank, contradictions
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.shipped import check_name
from pilocal.task import AUTO, LOSSLESS, Evaluation, Task
from pilocal.task.schedule import Schedule
from pilocal.task.text import uncollected
from pilocal.task.working import KEY, working_of
from pilocal.training.backend import NF4, PACKED, TORCH, Backend, backend_of, shards

UNMADE = frozenset({"iq1_m", "iq1_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq3_xs", "iq3_xxs", "nvfp4", "q2_k_s"})
"""Types that llama.cpp knows and does not make of weights alone: most need an importance matrix."""


def checked_context(
    task: Task,
    schedule: Schedule,
    run: RunDir,
    listeners: Listeners,
    backend: Backend | None = None,
    *,
    to_export: bool = False,
    start: Start | None = None,
    weights: bool = True,
) -> Context:
    """Return what the steps work with, once everything that can be checked without work is right.

    Without a `backend` it is the one that the run was trained with so far; so is the `start`, which must fit. With
    `to_export` the base is looked through for what the export would refuse, unless the run was trained on it already.
    Without `weights` the base's are not looked at. Raises InputError, ModelError, or Faults with all that is wrong.
    """
    from pilocal.evaluate.scoring.metrics import make_metric
    from pilocal.training.memory import read_sizes
    from pilocal.training.tracker import check_tracker

    chosen = backend or backend_of(run.state, run.file)
    faults = _settings_faults(task, schedule)
    with _collecting(faults):
        _check_packages(task, schedule)
    with _collecting(faults):
        shots = max(stage.shots for stage in schedule.stages)
        check_bank(task.train, task.retrieval, shots, task.training.seed, task.files["train"])
    if listeners.report_to:
        with _collecting(faults):
            check_tracker(listeners.report_to)
    with _collecting(faults):
        metric = make_metric(task.metric, task.scoring, task.folder)
    with _collecting(faults):
        check_name(task.name, f"{task.files['task']} name")
    base: Base | None = None
    listeners.progress(f"base {task.model}", 0, 1)  # it may be downloaded
    with _collecting(faults):
        base = base_for(task, weights=weights)
        read_sizes(base.config, task.lora)
    listeners.progress(f"base {task.model}", 1, 1)
    if base is not None:
        found = _base_faults(task, base, to_export=to_export and not _was_trained(run, base))
        faults += found or _rows_faults(task, base, start)
    with _collecting(faults):
        _check_strength(task)
    with _collecting(faults):
        check_quant(task, task.export.quant, f"{task.files['task']} [export] quant")
    if chosen.name == TORCH and base is not None:
        with _collecting(faults):
            chosen = _checked_backend(task, base, chosen, find=backend is not None)
    raise_all(faults)
    assert base is not None
    said = [*task.warnings, *_moved(run, base)]
    _warn_of_examples(task, schedule, said.append)
    for warning in said:
        listeners.warn(warning)
    begun = start or start_of(run.state, run.file)
    known: dict[str, Any] = {"task": task, "schedule": schedule, "run": run, "base": base, "backend": chosen}
    return Context(**known, metric=metric, listeners=listeners, start=begun, warnings=said)


def _moved(run: RunDir, base: Base) -> list[str]:
    """Return a warning where a run began with other files of the base that the task still names alike."""
    state = run.state
    if state.get("model") != base.model or state.get("base_sha256") in (None, base.sha256):
        return []
    was, now = state.get("base_revision"), base.revision
    moved = f" (revision {was[:12]}, now {now[:12]})" if was and now and was != now else ""
    return [
        f"{base.path}: not the files of {base.model} that this run began with{moved}; what depends on them is redone"
    ]


def _base_faults(task: Task, base: Base, *, to_export: bool) -> list[PilocalError]:
    """Return what is wrong with a base: what the export would refuse, if it comes to that, and what its chat takes."""
    found = _export_faults(task, base) if to_export else []
    if not found:
        with _collecting(found):
            _check_prompts(task, base)
    return found


def _rows_faults(task: Task, base: Base, start: Start | None) -> list[PilocalError]:
    """Return the faults of what is trained on beside the task's own rows, and of the run that is gone on from."""
    faults: list[PilocalError] = []
    if task.training.mix:
        with _collecting(faults):
            mix_prompts(task, base)
    if start is not None:
        with _collecting(faults):
            check_start(task, base, start)
    return faults


def _check_packages(task: Task, schedule: Schedule) -> None:
    """Raise InputError when a package that the settings ask for is not installed."""
    if task.compression.method == "llmlingua2" and any(0 < stage.tau < 1 for stage in schedule.stages):
        require_packages('[compression] method = "llmlingua2"', "llmlingua", "torch")
    if task.retrieval.similarity == "embedding" and any(stage.shots for stage in schedule.stages):
        require_packages('[retrieval] similarity = "embedding"', "sentence_transformers", "hnswlib")


def _check_prompts(task: Task, base: Base) -> None:
    """Raise InputError for a chat template that cannot be used, and for an unrelated prompt that does not fit."""
    _ = base.layout
    if task.evaluation != Evaluation():
        from pilocal.evaluate.retention import check_unrelated

        check_unrelated(task, base)


def _check_strength(task: Task) -> None:
    """Raise InputError for a strength that the adapter cannot have."""
    if task.export.strength != 1 and task.lora.kind == "dora":
        where, what = f"{task.files['task']} [export] strength", "a DoRA's magnitudes cannot be weighed"
        raise InputError(where, what, got=task.export.strength, fix='leave it out, or take [lora] kind = "lora"')


def check_quant(task: Task, quant: str, where: str) -> None:
    """Raise InputError or ExportError for a form that could not be served."""
    from pilocal.llamacpp.quantize import check_quant as check_type

    if quant == LOSSLESS and task.lora.kind == "dora":
        what, fix = "GGUF has no adapters with magnitudes (DoRA)", 'take "q8_0", which fuses it, or "auto"'
        raise InputError(where, what, got=quant, fix=fix)
    if quant not in (LOSSLESS, AUTO):
        check_type(quant, where)
    if quant.lower() in UNMADE:
        what, fix = "llama.cpp does not make this type of weights alone", "take q8_0, q4_k_m or another"
        raise InputError(where, what, got=quant, fix=fix)


def _export_faults(task: Task, base: Base) -> list[PilocalError]:
    """Return what the export would refuse of a base, and what no training could learn from."""
    from pilocal.export.finite import check_finite
    from pilocal.export.gguf import check_exportable, check_tokens

    faults: list[PilocalError] = []
    for check in (check_exportable, check_finite) if base.weights else (_check_config,):
        with _collecting(faults):
            check(base)
    if base.weights and not faults and is_installed("llama_cpp"):
        with _collecting(faults):
            check_tokens(base, _texts(task))
    return faults


def _check_config(base: Base) -> None:
    """Raise ExportError for what the export would refuse of a base by what config.json says."""
    from pilocal.export.numbers import check_settings, naming, rope_factors

    with naming(base.config_path):
        check_settings(base.config)
        rope_factors(base.config)


def _texts(task: Task) -> Iterator[tuple[str, str]]:
    """Yield every text of a task with where it is from."""
    yield str(task.files["template"]), task.template
    for name, pool in (("train", task.train), ("valid", task.valid), ("test", task.test)):
        for example in pool:
            where = f"{task.files[name]}:{example.line}"
            turns = (text for _, text in example.history)
            yield from ((where, text) for text in (*turns, *example.slots.values(), example.query, example.answer))


def _was_trained(run: RunDir, base: Base) -> bool:
    """Tell whether this version has trained the run on this base, which it had looked through before."""
    state, known = run.state, run.state.get("versions", {}).get("pilocal")
    return "train" in state["steps"] and known == pilocal.__version__ and state.get("base_sha256") == base.sha256


def _settings_faults(task: Task, schedule: Schedule) -> list[PilocalError]:
    """Return the faults between the task's own settings and the schedule."""
    faults: list[PilocalError] = []
    trained = len(schedule.trained)
    if task.training.steps < trained:
        what, fix = f"{trained} stages need at least as many steps", "raise steps or take fewer stages"
        faults.append(InputError(f"{task.files['task']} [training] steps", what, got=task.training.steps, fix=fix))
    if task.training.recompute and task.lora.dropout:
        what = "what is computed again would be dropped out anew"
        fix = "set [lora] dropout = 0 or recompute = false"
        faults.append(InputError(f"{task.files['task']} [training] recompute", what, fix=fix))
    with _collecting(faults):
        answer_grammar(task)
    return faults + (_working_faults(task) if any(schedule.workings) else [])


def _working_faults(task: Task) -> list[PilocalError]:
    """Return what is wrong with the working of examples, where a schedule fades it."""
    faults: list[PilocalError] = []
    for split, examples in (("train", task.train), ("valid", task.valid)):
        odd = [each for each in examples if not isinstance(each.extra.get(KEY, ""), str)]
        if odd:
            what = f"the working of {len(odd)} records is not text, the first being {odd[0].id}"
            faults.append(InputError(task.files[split], what, got=odd[0].extra[KEY], fix='write "working": "..."'))
    if not faults and not any(working_of(example) for example in task.train):
        fix = f'add "{KEY}": "..." to its records, or set fade = "prompt" in the schedule'
        faults.append(InputError(task.files["train"], "no record carries the working that the schedule fades", fix=fix))
    return faults


def _warn_of_no_working(task: Task, schedule: Schedule, warn: Callable[[str], None]) -> None:
    """Warn of training examples without the working that the schedule fades."""
    without = [example.id for example in task.train if not working_of(example)] if any(schedule.workings) else []
    if without:
        what = f"{len(without)} of {len(task.train)} records carry no working, the first being {without[0]}"
        warn(f"{task.files['train']}: {what}: their completions are the answers alone in every stage")


def _checked_backend(task: Task, base: Base, backend: Backend, *, find: bool) -> Backend:
    """Return the PyTorch backend with its device; with `find`, look whether a device that is named is there, too.

    Raises InputError, or Faults, for what it cannot do.
    """
    from pilocal.training.torch_backend.device import check_bitsandbytes, find_device, refusals

    if find or backend.device is None:
        backend = replace(backend, device=find_device(backend.device))
    if backend.weights == NF4:
        check_bitsandbytes()
    _check_shards(backend)
    if backend.weights == PACKED and not base.quantized:
        what, fix = "the weights of this base are not packed as MLX packs them", "leave --weights out, or take nf4"
        raise InputError("--weights packed", what, got=task.model, fix=fix)
    backend.facts(task.training.precision or "float32")  # the initial adapter has to be there
    raise_all(refusals(task.lora, task.training))
    return backend


def _check_shards(backend: Backend) -> None:
    """Raise InputError for a base that cannot be sharded as accelerate was asked to."""
    if shards() > 1 and backend.weights == NF4:
        fix = "leave --weights out, or take packed, which is as small"
        raise InputError("--weights nf4", "what bitsandbytes has rounded is not sharded", fix=fix)
    if shards() > 1 and backend.device == "mps":
        raise InputError("--device mps", "a base is sharded over CUDA devices or CPUs", fix="leave --use_fsdp out")


def _warn_of_examples(task: Task, schedule: Schedule, warn: Callable[[str], None]) -> None:
    """Warn of what is odd about the examples of a task without faults."""
    with uncollected():
        _warn_of_contradictions(task, warn)
    _warn_of_no_working(task, schedule, warn)
    warn_of_misfits(task, warn)


def _warn_of_contradictions(task: Task, warn: Callable[[str], None]) -> None:
    """Warn of questions that have different answers, for each split and for those that only differ between splits."""
    splits = {"train": task.train, "valid": task.valid, "test": task.test}
    known: set[Question] = set()
    for split, examples in splits.items():
        unclear = contradictions(examples)
        known |= unclear.keys()
        if unclear:
            first, other = next(iter(unclear.values()))
            such = f"such as {first.query!r}, first on line {first.line}"
            warn(f"{task.files[split]}:{other.line}: {_queries(unclear)} more than one answer, {such}")
    across = contradictions([example for examples in splits.values() for example in examples])
    across = {asked: pair for asked, pair in across.items() if asked not in known}
    if across:
        files = ", ".join(task.files[split].name for split in splits)
        pair = next(iter(across.values()))
        owner = {id(example): task.files[split].name for split, examples in splits.items() for example in examples}
        places = " and ".join(f"{owner[id(example)]}:{example.line}" for example in pair)
        such = f"such as {pair[0].query!r} in {places}"
        warn(f"{task.folder}: {_queries(across)} different answers in {files}, {such}")


def _queries(unclear: Mapping[Question, object]) -> str:
    return f"{len(unclear)} queries have" if len(unclear) > 1 else "a query has"


@contextmanager
def _collecting(faults: list[PilocalError]) -> Iterator[None]:
    """Add the faults that the block raises."""
    try:
        yield
    except PilocalError as fault:
        faults += getattr(fault, "faults", [fault])
