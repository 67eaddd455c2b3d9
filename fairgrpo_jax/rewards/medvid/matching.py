"""Which of an answer's items stand for which of the reference's."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
import numpy as np


def best_sum(table: np.ndarray) -> float:
    """The largest sum over one-to-one pairs of rows and columns.

    >>> best_sum(np.array([[0.9, 0.8], [0.7, 0.0]]))
    1.5
    """
    from scipy.optimize import linear_sum_assignment  # half a second, and few rewards need it

    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum())
