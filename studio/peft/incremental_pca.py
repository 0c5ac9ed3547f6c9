"""``IncrementalPCA``: the principal components of rows that come in batches, without keeping the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from studio.peft.terms.errors import Wrong

__all__ = ["IncrementalPCA"]


class IncrementalPCA:
    """Principal components by one singular value decomposition per batch.

    After ``n`` rows with the mean ``m`` and the components ``S V``, a batch ``X`` of ``k`` rows with the mean ``m'``
    gives the decomposition of ``[S V; X - m'; sqrt(n k / (n + k)) (m - m')]``.

    Args:
        n_components: how many are kept; None: as many as the first batch allows.
        copy: leave the rows that are handed in as they are. batch_size: rows per batch in :meth:`fit`; None: five
            times the number of features. svd_driver: of ``torch.linalg.svd``, on CUDA.
        lowrank: ``torch.svd_lowrank``, which is faster, with lowrank_q columns (None: twice n_components),
            lowrank_niter iterations and a seed lowrank_seed.

    Raises:
        Wrong: ``lowrank`` without a number of columns, or with fewer than components; batches of no rows.

    Example:
        >>> rows = torch.outer(torch.arange(6.0), torch.tensor([3.0, 4.0]))
        >>> found = IncrementalPCA(n_components=1, batch_size=3).fit(rows)
        >>> [round(one, 4) for one in found.components_[0].tolist()]
        [0.6, 0.8]

    References:
        | Incremental Learning for Robust Visual Tracking (Ross et al., 2008), https://doi.org/10.1007/s11263-007-0075-7
    """

    mean_: Tensor
    var_: Tensor
    components_: Tensor
    singular_values_: Tensor
    explained_variance_: Tensor
    explained_variance_ratio_: Tensor
    noise_variance_: Tensor

    def __init__(
        self,
        n_components: int | None = None,
        copy: bool | None = True,
        batch_size: int | None = None,
        svd_driver: str | None = None,
        lowrank: bool = False,
        lowrank_q: int | None = None,
        lowrank_niter: int = 4,
        lowrank_seed: int | None = None,
    ) -> None:
        self.n_components, self.copy, self.batch_size, self.svd_driver = n_components, copy, batch_size, svd_driver
        self.lowrank, self.lowrank_niter, self.lowrank_seed = lowrank, lowrank_niter, lowrank_seed
        if lowrank and n_components is None and lowrank_q is None:
            raise Wrong("n_components must be specified when using lowrank mode with lowrank_q=None.")
        self.lowrank_q = 2 * n_components if lowrank and lowrank_q is None and n_components else lowrank_q
        if lowrank and (self.lowrank_q or 0) < (n_components or 0):
            raise Wrong("lowrank_q must be greater than or equal to n_components.")
        if batch_size is not None and batch_size < 1:
            raise Wrong(f"batch_size={batch_size} must be at least 1")
        self.n_features_: int | None = None
        self.n_samples_seen_ = 0

    def fit(self, X: Any, check_input: bool = True) -> IncrementalPCA:
        """Takes rows in, batch by batch.

        Args:
            X: ``(rows, features)``. check_input: check and convert the rows.

        Raises:
            Wrong: more components than features or rows, or another number of features than before.
        """
        rows = self._checked(X) if check_input else X
        if self.batch_size is None:
            self.batch_size = 5 * rows.shape[1]
        for batch in self.gen_batches(len(rows), int(self.batch_size), self.n_components or 0):
            self.partial_fit(rows[batch], check_input=False)
        return self

    def partial_fit(self, X: Any, check_input: bool = True) -> IncrementalPCA:
        """Takes one batch in.

        Args:
            X: ``(rows, features)``. check_input: check and convert the rows.

        Raises:
            Wrong: more components than features or rows, or another number of features than before.
        """
        rows = self._checked(X) if check_input else X
        count, features = rows.shape
        if self.n_features_ is None:
            self.n_features_, self.n_components = features, self.n_components or min(count, features)
        if features != self.n_features_:
            raise Wrong(
                "Number of features of the new batch does not match the number of features of the first batch: "
                f"{features} instead of {self.n_features_}"
            )
        seen = self.n_samples_seen_
        total = seen + count
        mean, variance = rows.double().mean(dim=0), rows.double().var(dim=0, unbiased=False)
        stack = rows - mean
        if seen:
            apart = self.mean_ - mean
            held = self.singular_values_.unsqueeze(1) * self.components_
            stack = torch.vstack([held, stack, (seen * count / total) ** 0.5 * apart])
            variance = (seen * self.var_ + count * variance + seen * count / total * apart.square()) / total
            mean = (seen * self.mean_ + count * mean) / total
        self._take(self._decomposed(stack), variance, total)
        if self.n_components in (count, features):
            self.noise_variance_ = torch.zeros((), dtype=stack.dtype, device=stack.device)
        self.mean_, self.var_, self.n_samples_seen_ = mean, variance, total
        return self

    def transform(self, X: Tensor) -> Tensor:
        """Returns rows in the directions of the components, ``(rows, components)``.

        Args:
            X: ``(rows, features)``.
        """
        return ((X.double() - self.mean_) @ self.components_.double().T).to(X.dtype)

    @staticmethod
    def gen_batches(n: int, batch_size: int, min_batch_size: int = 0) -> Iterator[slice]:
        """Iterates over the batches of ``n`` rows; what would be too short at the end joins the last one."""
        start = 0
        while n - start >= batch_size + min_batch_size:
            yield slice(start, start + batch_size)
            start += batch_size
        if start < n:
            yield slice(start, n)

    def _checked(self, given: Any) -> Tensor:
        rows = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float32)
        rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
        count, features = rows.shape
        if (self.n_components or 0) > features:
            raise Wrong(
                f"n_components={self.n_components} invalid for n_features={features}, need more rows than columns for "
                "IncrementalPCA processing."
            )
        if (self.n_components or 0) > count:
            raise Wrong(
                f"n_components={self.n_components} must be less or equal to the batch number of samples {count}"
            )
        return rows

    def _decomposed(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """Singular values and right vectors, each with its largest entry above zero."""
        if self.lowrank:
            seeded = self.lowrank_seed is not None
            with torch.random.fork_rng(enabled=seeded):
                if seeded:
                    torch.manual_seed(int(self.lowrank_seed or 0))
                _, values, columns = torch.svd_lowrank(stack, q=self.lowrank_q, niter=self.lowrank_niter)
            vectors = columns.mH
        else:
            _, values, vectors = torch.linalg.svd(stack, full_matrices=False, driver=self.svd_driver)
        largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
        return values, vectors * largest.sign()

    def _take(self, found: tuple[Tensor, Tensor], variance: Tensor, total: int) -> None:
        values, vectors = found
        kept = self.n_components
        explained = values.square() / (total - 1)
        self.components_, self.singular_values_ = vectors[:kept], values[:kept]
        self.explained_variance_ = explained[:kept]
        self.explained_variance_ratio_ = (values.square() / (variance * total).sum())[:kept]
        self.noise_variance_ = explained[kept:].mean()
