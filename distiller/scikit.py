"""Owns what scikit-learn needs of this process: a pandas that is missing must not look like one that is there.

`proxy.log` marks a missing pandas in `sys.modules`, so that DuckDB does not search the disk for it with each value;
scikit-learn takes whatever stands there for the library. Must not know what is fitted.
"""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def scikit_learn() -> Iterator[None]:
    """Around every call of scikit-learn; the mark is put back afterwards."""
    marked = "pandas" in sys.modules and sys.modules["pandas"] is None
    if marked:
        del sys.modules["pandas"]
    try:
        yield
    finally:
        if marked:
            sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]
