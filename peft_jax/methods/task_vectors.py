"""Rules that make one task vector of several: sums, trimming, sign election, random drops.

A task vector is an adapter minus the point at which its method changes nothing (Ilharco et al.
2022). Here it is a flat dict, path -> array [N, ...] of the N adapters, and a rule knows nothing of
the methods. Everything runs in NumPy on the host: it is done once, and nothing is compiled.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Vectors = dict[str, np.ndarray]
Scope = Literal["matrix", "adapter"]


def trim(vectors: Vectors, density: float, scope: Scope) -> Vectors:
    """Keeps the entries of largest magnitude, and sets the others to 0.

    Args:
      vectors: path -> [N, ...]; below ``layers`` the first axis after N is that of the layers.
      density: the share that is kept, above 0 and at most 1; of n entries, floor(density n).
      scope: "matrix": in every matrix (or vector) of every layer by itself, as Hugging Face PEFT
        does; "adapter": over all entries of an adapter together, as Yadav et al. 2023, section 3.1,
        write it.
    """
    if density >= 1:
        return vectors
    if scope == "matrix":
        return {path: _trim_matrices(path, x, density) for path, x in vectors.items()}
    sizes = [x[0].size for x in vectors.values()]
    together = np.concatenate([x.reshape(len(x), -1) for x in vectors.values()], axis=1)
    parts = np.split(_largest(together, density), np.cumsum(sizes)[:-1], axis=1)
    shaped = zip(vectors.items(), parts, strict=True)
    return {path: part.reshape(x.shape) for (path, x), part in shaped}


def _trim_matrices(path: str, x: np.ndarray, density: float) -> np.ndarray:
    matrices = x.shape[0] * (x.shape[1] if "/layers/" in path else 1)
    return _largest(x.reshape(matrices, -1), density).reshape(x.shape)


def _largest(rows: np.ndarray, density: float) -> np.ndarray:
    """[M, n] with all but the floor(density n) largest entries of each row set to 0."""
    kept = int(density * rows.shape[1])
    out = np.zeros_like(rows)
    if kept:
        places = np.argpartition(np.abs(rows), -kept, axis=1)[:, -kept:]
        np.put_along_axis(out, places, np.take_along_axis(rows, places, axis=1), axis=1)
    return out


def drop(vectors: Vectors, density: float, generator: np.random.Generator) -> Vectors:
    """Keeps every entry with probability ``density`` and divides it by that; the others become 0.

    Yu et al. 2023, "Language Models are Super Mario", section 3.1: the expected vector is the same.
    """
    if density >= 1:
        return vectors
    return {
        path: np.where(generator.random(x.shape) < density, x / density, 0).astype(x.dtype)
        for path, x in vectors.items()
    }


def add(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sum over N adapters of weight times vector: [N, ...], [N] -> [...]."""
    return np.tensordot(weights.astype(x.dtype), x, axes=1)


def elect_and_average(
    x: np.ndarray, weights: np.ndarray, election: Literal["total", "frequency"] = "total"
) -> np.ndarray:
    """TIES (Yadav et al. 2023, section 3.1): elect a sign for every entry, then average who agrees.

    Args:
      x: [N, ...], trimmed.
      weights: [N], times the vectors that are averaged; the election is held without them, as in
        Hugging Face PEFT.
      election: "total": the sign of the sum; "frequency": of the count of signs. A tie is positive.

    Returns:
      [...], for every entry the mean over the adapters whose sign is the elected one; 0 for none.
    """
    votes = x if election == "total" else np.sign(x)
    elected = np.where(votes.sum(axis=0) >= 0, 1, -1)
    agrees = np.sign(x) == elected
    total = add(x * agrees, weights)
    return total / np.maximum(agrees.sum(axis=0), 1).astype(x.dtype)
