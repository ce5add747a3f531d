"""A nearest-neighbour index on disk (hnswlib), with a sidecar that records what the file does not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.packages import require_packages
from pilocal.run_folder.files import MISSHAPEN, disk_error, read_json, write_json
from pilocal.run_folder.hashes import sha256_file

SPACE = "cosine"
LINKS = 16
"""hnswlib's M: links per vector."""
EF_CONSTRUCTION = 200
"""Candidates considered while the index is built."""
EF = 200
"""Candidates considered in a search; at least the number of neighbours that are wanted."""
SEED = 0
RECALL_SAMPLE = 200
"""How many vectors are also searched exactly, to measure the recall."""

BLOCK = 512
"""Queries per block of an exact search, which bounds the memory."""


class NeighbourIndex:
    """Approximate nearest neighbours among vectors of length 1, by cosine; make it with `open_index`.

    It is built and searched in one thread, because with threads hnswlib is not deterministic.
    """

    def __init__(self, index: Any, count: int) -> None:
        self._index = index
        self.count = count
        self.recall = 1.0
        """Share of the true neighbours that the index finds, on the sample noted in the sidecar."""

    def neighbours(self, vectors: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the numbers of the k nearest to each of (N, D) `vectors`, nearest first: (N, min(k, count))."""
        k = min(k, self.count)
        self._index.set_ef(max(EF, k))
        labels, _ = self._index.knn_query(vectors, k=k, num_threads=1)
        return np.asarray(labels).astype(np.int64)


def open_index(vectors: NDArray[np.float32], path: Path, recall_k: int) -> NeighbourIndex:
    """Return the index of (N, D) `vectors` at `path`, built now unless the one there is exactly it.

    hnswlib stores neither the space nor ef, and silently loads a file of another dimension. So the sidecar (`path` with
    .json) holds space, dim, count, M, ef, seed and the SHA-256 of the vectors and of the file; any difference rebuilds
    the index. It also holds recall@`recall_k` against exact search. Raises InputError for vectors
    that are not finite, and RunError when the file cannot be written.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        fix = 'choose another, or set similarity = "bleu"'
        raise InputError(
            "[retrieval] embedding_model", f"{len(bad)} vectors hold NaN or infinity", got=f"vector {bad[0]}", fix=fix
        )
    count, dim = vectors.shape
    recall_k = min(recall_k, count)
    facts = {
        "space": SPACE,
        "dim": dim,
        "count": count,
        "M": LINKS,
        "ef_construction": EF_CONSTRUCTION,
        "ef": EF,
        "seed": SEED,
        "vectors_sha256": hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest(),
        "recall_k": recall_k,
        "recall_sample": min(RECALL_SAMPLE, count),
    }
    require_packages("[retrieval] similarity", "hnswlib")
    import hnswlib

    index = hnswlib.Index(space=SPACE, dim=dim)
    index.set_num_threads(1)
    sidecar = path.with_suffix(".json")
    found = _read_sidecar(sidecar)
    if {**facts, "recall": found.get("recall"), "file_sha256": _hash_or_none(path)} == found:
        index.load_index(str(path), max_elements=count)
        opened = NeighbourIndex(index, count)
        opened.recall = found["recall"]
        return opened
    index.init_index(max_elements=count, M=LINKS, ef_construction=EF_CONSTRUCTION, random_seed=SEED)
    index.add_items(vectors, np.arange(count), num_threads=1)
    opened = NeighbourIndex(index, count)
    opened.recall = recall(opened, vectors, recall_k)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sidecar.unlink(missing_ok=True)
        index.save_index(str(path))
        written = sha256_file(path)
    except (OSError, RuntimeError) as error:
        raise disk_error(path, error if isinstance(error, OSError) else OSError(str(error))) from error
    write_json(sidecar, {**facts, "recall": opened.recall, "file_sha256": written})
    return opened


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        facts = read_json(path)
    except MISSHAPEN:
        return {}
    return facts if isinstance(facts, dict) else {}


def _hash_or_none(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def exact_neighbours(vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the numbers of the k vectors of (N, D) nearest to each of (Q, D) queries, nearest first: (Q, min(k, N)).

    All rows have length 1. Ties (to six decimals) are ordered by number.
    """
    k = min(k, len(vectors))
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), BLOCK):
        cosines = np.round(queries[start : start + BLOCK] @ vectors.T, 6)
        found[start : start + BLOCK] = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return found


def recall(index: NeighbourIndex, vectors: NDArray[np.float32], k: int) -> float:
    """Return the share of the k nearest neighbours that the index finds, on an even sample of its own vectors.

    A neighbour that is as near as the k-th exact one counts as found, so ties do not lower the recall.
    """
    sample = vectors[np.linspace(0, len(vectors) - 1, min(RECALL_SAMPLE, len(vectors))).astype(int)]
    exact, found = exact_neighbours(vectors, sample, k), index.neighbours(sample, k)
    cosines = sample @ vectors.T
    worst = np.take_along_axis(cosines, exact[:, -1:], axis=1)
    return float(np.mean(np.take_along_axis(cosines, found, axis=1) >= worst - 1e-5))
