from __future__ import annotations

import numpy as np
import pytest

DEPTHS = (np.uint8, np.uint16, np.float32)


@pytest.fixture
def noise():
    """Make noise of a shape and type that uses the whole range."""

    def make(*shape: int, dtype: type = np.uint8) -> np.ndarray:
        draw = np.random.default_rng(sum(shape))
        if dtype is np.float32:
            return draw.random(shape, dtype=np.float32)
        return draw.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)

    return make
