"""Routes each row of a batch to the teacher whose label a column of its prompt holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ...teachers import Mixture
from ..config import TRBConfig


def check_routing(teacher: Any, args: TRBConfig, *, tools: bool) -> None:
    """Checks that a run can route its rows, if it is to.

    Args:
        teacher: A path or a model, or paths of several by their labels.
        args: Its `teacher_column` names the column.
        tools: Conversations call tools.

    Raises:
        ValueError: The teachers have no labels, or the column would not reach the trainer.
    """
    if args.teacher_column is None:
        return
    if not isinstance(teacher, dict) and not (isinstance(teacher, Mixture) and teacher.labels is not None):
        raise ValueError(
            "teacher_column needs several teachers with labels: set teachers, or pass trbext.mixture({label: model}), "
            f"got {teacher if isinstance(teacher, str) else type(teacher).__name__}"
        )
    if args.remove_unused_columns:
        raise ValueError("teacher_column is a column of the dataset: set remove_unused_columns=False")
    if tools:
        raise ValueError("teacher_column routes rollouts of one turn: no tools")


def check_labels(dataset: Any, column: str | None, teacher: Mixture) -> None:
    """Checks that every row of a dataset, or of several by name, names a teacher; rows of a stream are checked when
    they come.

    Raises:
        ValueError: One does not.
    """
    for each in dataset.values() if isinstance(dataset, dict) else ():
        check_labels(each, column, teacher)
    if column is None or not isinstance(dataset, Dataset):
        return
    if column not in dataset.column_names:
        raise ValueError(f"teacher_column {column!r} is not among the columns {', '.join(dataset.column_names)}")
    for label in dataset.unique(column):
        _number(label, column, teacher)


def weights_of_rows(rows: Sequence[Mapping[str, Any]], column: str, teacher: Mixture) -> Tensor:
    """Returns the weights [B, n] that route each row to one of the n teachers.

    Raises:
        ValueError: A row does not name a teacher.
    """
    numbers = [_number(row.get(column), column, teacher) for row in rows]
    return torch.eye(len(teacher.teachers))[numbers]


def _number(label: Any, column: str, teacher: Mixture) -> int:
    assert teacher.labels is not None
    if label not in teacher.labels:
        raise ValueError(
            f"the column {column} must hold the label of a teacher, {', '.join(teacher.labels)}, got {label!r}"
        )
    return teacher.labels.index(label)
