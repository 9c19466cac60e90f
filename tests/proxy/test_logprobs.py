from dataclasses import FrozenInstanceError

import pytest

from proxy.logprobs import Position


def test_a_position_is_a_value():
    one = Position(b"\xf0\x9f", -0.5, ((b"\xf0\x9f", -0.5), (b"a", -1.5)))
    assert one == Position(b"\xf0\x9f", -0.5, ((b"\xf0\x9f", -0.5), (b"a", -1.5)))
    assert len({one, one}) == 1
    with pytest.raises(FrozenInstanceError):
        one.logprob = 0.0
