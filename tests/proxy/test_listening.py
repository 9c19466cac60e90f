import os
import socket

import pytest

from proxy.errors import Unavailable
from proxy.listening import bound, descriptor


def test_a_bound_socket_takes_connections_at_once() -> None:
    with bound("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, address = listener.accept()
        with accepted:
            assert address == client.getsockname()


def test_a_port_in_use_says_what_to_do() -> None:
    with bound("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(Unavailable) as raised:
            bound("127.0.0.1", port)
    assert str(raised.value) == (
        f"cannot listen on 127.0.0.1:{port}: it is in use; choose another port, or stop what holds it"
    )


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(Unavailable, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign"):  # TEST-NET-1
        bound("192.0.2.1", 0)


def test_a_host_that_does_not_resolve_is_named() -> None:
    with pytest.raises(Unavailable, match=r"cannot listen on nowhere\.invalid:0: "):
        bound("nowhere.invalid", 0)


def test_the_descriptor_is_inherited() -> None:
    listener = bound("127.0.0.1", 0)
    assert not os.get_inheritable(listener.fileno())
    number = descriptor(listener)
    del listener  # The object may go, the port stays.
    assert os.get_inheritable(number)
    socket.socket(fileno=number).close()
