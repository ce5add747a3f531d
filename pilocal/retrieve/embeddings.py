"""Vectors of texts from a sentence-transformers model, which is imported and loaded only when asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError


class EmbeddingVectors:
    """Sentence embeddings of length 1 from a Hub id or a local directory."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        try:
            self._model = SentenceTransformer(model)
        except Exception as error:  # whatever the folder or the network makes the libraries raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            fix = 'check embedding_model and the network, give a local directory, or set vectors = "ngrams"'
            raise InputError("[retrieval] embedding_model", f"cannot be loaded: {reason}", got=model, fix=fix) from None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector of length 1 per text: (N, D) float32."""
        vectors = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)
