"""What prepared examples of every kind share: which rows belong to which example and template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from peft_jax.errors import InputError


class ExampleRows:
    """Rows of examples under templates; a base of ``TextExamples``.

    Rows of one example need not stand together, and a template may skip an example.

    Attributes:
        task: the name of the task.
        template_names: the templates; ``template`` indexes this tuple.
        example: [R] int32, the example's position in its split, before any few-shot draw.
        template: [R] int32.
    """

    task: str
    template_names: tuple[str, ...]
    example: np.ndarray
    template: np.ndarray

    @property
    def example_ids(self) -> np.ndarray:
        """[num_examples] int32: the distinct values of ``example``, in order of appearance."""
        ids, first = np.unique(self.example, return_index=True)
        return ids[np.argsort(first)]

    @property
    def num_examples(self) -> int:
        """The number of distinct examples."""
        return len(np.unique(self.example))

    @property
    def num_templates(self) -> int:
        """The number of templates."""
        return len(self.template_names)

    def select(
        self,
        examples: Sequence[int] | slice | None,
        templates: Sequence[int | str] | None,
    ) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
        """The rows of some examples under some templates.

        Args:
            examples: positions among `example_ids` (0 ... num_examples - 1), or a slice of them.
            templates: names or indices of templates, renumbered in this order.

        Returns the rows' indices in their present order [r] int64, the templates' names, and the
        rows' new ``template`` [r] int32. Raises InputError for a position, name or index that is
        not there, and for a template named twice.
        """
        keep = np.ones(len(self.example), bool)
        if examples is not None:
            keep &= np.isin(self.example, self._ids_at(examples))
        names, column = self.template_names, np.asarray(self.template)
        if templates is not None:
            chosen = [self._template_index(t) for t in templates]
            if len(set(chosen)) != len(chosen):
                raise InputError(f"{self.task}: a template is named twice in {list(templates)}")
            keep &= np.isin(self.template, chosen)
            renumber = np.full(self.num_templates, -1, np.int32)
            renumber[chosen] = np.arange(len(chosen), dtype=np.int32)
            names, column = tuple(self.template_names[i] for i in chosen), renumber[column]
        rows = np.flatnonzero(keep)
        return rows, names, column[rows]

    def _ids_at(self, positions: Sequence[int] | slice) -> np.ndarray:
        ids = self.example_ids
        if isinstance(positions, slice):
            return ids[positions]
        wanted = np.asarray(positions, np.int64)
        outside = wanted[(wanted < 0) | (wanted >= len(ids))]
        if outside.size:
            raise InputError(
                f"{self.task}: example {outside[0]} was asked for, there are {len(ids)} "
                f"(0 to {len(ids) - 1})"
            )
        return ids[wanted]

    def _template_index(self, template: int | str) -> int:
        if isinstance(template, str):
            if template in self.template_names:
                return self.template_names.index(template)
        elif 0 <= template < self.num_templates:
            return int(template)
        names = ", ".join(f"{i}: {name}" for i, name in enumerate(self.template_names))
        raise InputError(f"{self.task} has no template {template!r}; it has {names}")


def rows_of_examples(example: np.ndarray) -> list[np.ndarray]:
    """For each distinct example, in order of appearance, its rows [n] int64, in their order.

    Args:
        example: [R] int32.
    """
    order = np.argsort(example, kind="stable")
    borders = np.flatnonzero(np.diff(example[order])) + 1
    rows = np.split(order, borders)
    return sorted(rows, key=lambda own: own[0])


def some_of(count: int, limit: int, *, grouped: bool) -> list[int]:
    """At most so many of ``count`` positions, evenly spaced, since data may be sorted by class.

    Args:
        grouped: rows belong to groups (MultiRC's answers to a question), which would be torn apart:
            the first positions are taken instead.
    """
    if limit >= count or grouped:
        return list(range(min(limit, count)))
    return np.linspace(0, count - 1, limit).astype(int).tolist()


# A shorter input length is worth compiling for from this many batches on.
_WORTH_A_SHAPE = 8


def length_groups(
    lengths: np.ndarray, longest: int, batch_size: int, multiple: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """(tokens, rows in order) of at most three groups of rows, those of short inputs first.

    A quarter, half and the whole of the longest input; a group too small to be worth a compiled
    shape of its own joins the next.

    Args:
        lengths: [R] tokens of every row's input.
        longest: places of the longest input.
        multiple: the groups' widths are rounded up to a multiple of this.
    """
    done = np.zeros(len(lengths), bool)
    for width in sorted({round_up(-(-longest // n), multiple) for n in (4, 2, 1)}):
        waiting = (lengths <= width) & ~done
        if width < longest and waiting.sum() < _WORTH_A_SHAPE * batch_size:
            continue
        if waiting.any():
            yield width, np.flatnonzero(waiting)
        done |= waiting


def round_up(length: int, multiple: int) -> int:
    """The least multiple that is no less."""
    return -(-length // multiple) * multiple


def checked_places(rows: Sequence[int] | np.ndarray | None, batch_size: int) -> np.ndarray | slice:
    """What takes a process's places of a batch; raises InputError for one that is not there."""
    if rows is None:
        return slice(None)
    places = np.asarray(rows, np.int64)
    if places.ndim != 1 or ((places < 0) | (places >= batch_size)).any():
        raise InputError(f"rows {list(rows)} of a batch of {batch_size}: 0 to {batch_size - 1}")
    return places
