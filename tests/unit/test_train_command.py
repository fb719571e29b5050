"""What `worldmodel train` decides before it trains."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.commands.material import labelled
from worldmodel.errors import ConfigError

IDS = np.arange(0, 200, 2)


def test_fewer_labels_are_a_subset_of_more() -> None:
    few, some = labelled(IDS, 10, 0), labelled(IDS, 50, 0)
    assert (len(few), len(some)) == (10, 50)
    assert set(few) < set(some) < set(IDS)
    assert np.array_equal(few, np.sort(few))
    assert not np.array_equal(few, labelled(IDS, 10, 1))
    assert labelled(IDS, None, 0) is IDS


@pytest.mark.parametrize("count", [0, 101])
def test_labels_that_do_not_exist_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=r"\[1, 100\]"):
        labelled(IDS, count, 0)
