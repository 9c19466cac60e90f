"""What can be said of the step without llm-compressor; with it, the whole is tested in `test_compress`."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller import compressor
from distiller.compressor import SIZES, group_size

FILE = Path(compressor.__file__)


@given(st.lists(st.integers(1, 400).map(lambda n: 32 * n), min_size=1))
def test_the_largest_group_that_divides_every_layer_is_taken(widths: list[int]) -> None:
    size = group_size(widths)
    assert all(width % size == 0 for width in widths)
    assert all(any(width % larger for width in widths) for larger in SIZES if larger > size)


def test_smollm2_has_groups_of_64_and_odd_layers_have_none() -> None:
    assert group_size([576, 1536, 576]) == 64
    with pytest.raises(ValueError, match="layers of 90, 96 inputs cannot be cut into groups of 32 weights"):
        group_size([96, 90, 96])


def test_it_runs_alone_and_loads_nothing_before_it_is_asked_to() -> None:
    """By path and isolated, as another Python runs it: no module of ours or of our environment is in reach."""
    done = subprocess.run([sys.executable, "-I", "-S", str(FILE), "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "{fp8,w4a16}" in done.stdout
