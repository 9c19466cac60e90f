"""Owns the checks of ports: free, or answered by this very Stillroom, and who may reach them from elsewhere.

Must not change anything; to a port that answers, a connection is made and closed.
"""

import socket
from collections.abc import Iterator

from distiller.finding import FIX, OK, WARN, Finding
from distiller.running import controlled
from distiller.settings import Settings
from proxy.admin import LOOPBACK, admin_tokens
from proxy.errors import BadInput

SECONDS = 1.0  # A port of this machine answers at once, or is shut off.
SHORT_TOKEN = 16  # characters


def check_ports(settings: Settings) -> Iterator[Finding]:
    """The four ports, and what guards those that others can reach."""
    running = controlled(settings.folder)
    for name, host, port in (
        ("proxy", settings.proxy.host, settings.proxy.port),
        ("admin", settings.admin.host, settings.admin.port),
        ("serving", "127.0.0.1", settings.serving.port),
        ("serving.small", "127.0.0.1", settings.serving.small_port),
    ):
        yield _port(name, host, port, running)
    yield _clients(settings)
    yield _operators(settings)


def _port(name: str, host: str, port: int, running: bool) -> Finding:
    place = "serving.small_port" if name == "serving.small" else f"{name}.port"
    if not _answers(host, port):
        return Finding(place, OK, f"{port} is free")
    if running:
        return Finding(place, OK, f"{port} is answered, and Stillroom runs on this home")
    return Finding(place, FIX, f"{port} is taken by something else: stop that, or set {place} to another")


def _answers(host: str, port: int) -> bool:
    there = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    try:
        socket.create_connection((there, port), SECONDS).close()
    except OSError:
        return False
    return True


def _clients(settings: Settings) -> Finding:
    if settings.proxy.host in LOOPBACK:
        return Finding("clients", OK, "only this machine reaches proxy.port")
    if settings.teacher.key_env and not settings.proxy.keys:
        return Finding(
            "clients", WARN,
            f"whoever reaches {settings.proxy.host}:{settings.proxy.port} uses the key in {settings.teacher.key_env}: "
            "set proxy.keys = true and give each client a key",
        )  # fmt: skip
    return Finding("clients", OK, "they need a key" if settings.proxy.keys else "they bring the teacher's keys")


def _operators(settings: Settings) -> Finding:
    try:
        token = admin_tokens(settings.admin).operator
    except BadInput as error:
        return Finding("admin token", FIX, str(error))
    if not token:
        return Finding("admin token", OK, "not needed: only this machine reaches admin.port")
    if len(token) < SHORT_TOKEN:
        return Finding(
            "admin token", WARN, f"{settings.admin.token_env} holds {len(token)} characters: take more, for example "
            "from openssl rand -hex 32",
        )  # fmt: skip
    return Finding("admin token", OK, f"in {settings.admin.token_env}")
