"""Numbers that the authors recorded in their public repository, with the digits given there."""

from __future__ import annotations

import math
from typing import NamedTuple

from deqlib.experiments.protocol import Record


class Recorded(NamedTuple):
    """One recorded number: the field of the record at this step, as given, to so many digits."""

    protocol: str
    variant: str
    step: int
    field: str
    value: float
    digits: int


RECORDED = (
    Recorded("linear", "exact", 0, "radius", 0.9325020508512407, 16),
    Recorded("linear", "exact", 200, "w", 0.8402616937669253, 16),
    Recorded("linear", "exact", 200, "a", 0.5798691531162682, 16),
    Recorded("linear", "exact", 200, "risk", 5.45e-25, 3),
    Recorded("linear-near-singular", "exact", 0, "radius", 0.07208147374701138, 16),
    Recorded("linear-near-singular", "exact", 200, "a", 1.1302, 5),
    Recorded("linear-near-singular", "exact", 200, "risk", 4.8e-9, 2),
    Recorded("sigmoid", "exact", 4000, "w", 1.6327588560755617, 16),
    Recorded("sigmoid", "exact", 4000, "a", 0.2359775365708395, 16),
    Recorded("linear-counter-example", "two terms", 5000, "a", -1.0, 1),
    Recorded("linear-counter-example", "two terms", 5000, "risk", 0.0160, 3),
)


def agreeing(recorded: Recorded, record: Record) -> int:
    """To how many significant digits a record of ours agrees, at most the digits given.

    Two numbers agree to k digits where they differ by at most half a unit in the k-th.
    """
    ours = getattr(record, recorded.field)
    leading = math.floor(math.log10(abs(recorded.value)))
    gap = abs(ours - recorded.value)
    digits = [
        k for k in range(recorded.digits + 1) if gap <= 0.5 * 10.0 ** (leading - k + 1) * (1 + 1e-9)
    ]
    return max(digits, default=0)
