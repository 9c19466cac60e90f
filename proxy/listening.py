"""Owns the listening socket that workers share. Must not know what is served on it."""

import errno
import socket

from proxy.errors import Unavailable


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens; Unavailable, with what to change, when the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = {errno.EADDRINUSE: "it is in use", errno.EACCES: "it needs more rights"}
        raise Unavailable(
            f"cannot listen on {host}:{port}: {reason.get(error.errno or 0, error.strerror)}; "
            "choose another port, or stop what holds it"
        ) from None
    listener.listen(2048)
    return listener


def free_port() -> int:
    """One of loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def descriptor(listener: socket.socket) -> int:
    """The file descriptor, made inheritable; the socket object lets go of it, so that it stays open."""
    listener.set_inheritable(True)
    return listener.detach()
