"""Vectors of texts from a sentence-transformers model, which is imported and loaded only when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.packages import keep_torch_apart, quiet_bitsandbytes, require_packages
from pilocal.run_folder.hashes import fingerprint, sha256_file
from pilocal.task.hub import split_hub_id


class EmbeddingVectors:
    """Sentence embeddings of length 1 from a Hub id or a local directory."""

    def __init__(self, model: str, relative_to: Path, asked_by: str = "[retrieval] similarity") -> None:
        """Load the model; a directory may be relative to `relative_to`.

        `asked_by` is the setting that wants it. Raises InputError when it cannot be loaded.
        """
        require_packages(asked_by, "sentence_transformers", "hnswlib")
        quiet_bitsandbytes()
        keep_torch_apart()
        from sentence_transformers import SentenceTransformer

        folder = relative_to / model
        name, revision = (str(folder), None) if folder.is_dir() else split_hub_id(model)
        try:
            self._model = SentenceTransformer(name, revision=revision, trust_remote_code=False)
        except Exception as error:  # whatever the folder or the network makes the libraries raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            fix = 'check embedding_model and the network, give a local directory, or set similarity = "bleu"'
            raise InputError("[retrieval] embedding_model", f"cannot be loaded: {reason}", got=model, fix=fix) from None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector of length 1 per text: (N, D) float32."""
        vectors = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)


def model_hash(model: str, relative_to: Path) -> str:
    """Return one SHA-256 over the files of a model's directory, or the Hub id itself."""
    folder = relative_to / model
    if not folder.is_dir():
        return model
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint([(str(path.relative_to(folder)), sha256_file(path)) for path in files])
