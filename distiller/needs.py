"""Owns what of a frame needs somebody, in words, the most urgent first. Must not know how a frame is made or shown."""

from collections.abc import Iterator

from distiller.frame import Frame
from proxy.vitals import DISK_BYTES, SPOOL_SECONDS


def needs(frame: Frame) -> list[str]:
    """A sentence each, with what to do; none where all is well."""
    return [*_capture(frame), *_engines(frame), *_evidence(frame), *_money(frame), *_later(frame)]


def _capture(frame: Frame) -> Iterator[str]:
    if frame.counted is not None and (dropped := frame.counted.of("dropped")):
        yield f"{dropped:,} exchanges were dropped since the start: look at the disk and at the messages of serve"
    if frame.free < DISK_BYTES:
        yield f"only {frame.free / 1e9:.2f} GB are free under {frame.home}"
    if not frame.running:
        yield "no controller runs on this home: stillroom serve"
    if frame.running and frame.spool.since is not None and frame.at.timestamp() - frame.spool.since > SPOOL_SECONDS:
        yield "the log does not take what is recorded: the messages of serve say why; nothing is lost meanwhile"
    if frame.no_log:
        yield frame.no_log
    if frame.running and frame.no_admin:
        yield frame.no_admin


def _engines(frame: Frame) -> Iterator[str]:
    for engine in frame.engines if frame.running else ():
        if engine.state == "down":
            yield f"{engine.name} is down: {engine.reason}"
        for student, reason in engine.failed.items():
            yield f"{student} is not served: {reason}"


def _evidence(frame: Frame) -> Iterator[str]:
    for one in frame.logged.retired:
        yield f"{one.task} went back to the teacher: {one.reason}"
    for run in frame.logged.failed:
        yield f"{run.kind}{f' of {run.task}' if run.task else ''} failed: {run.detail}"


def _money(frame: Frame) -> Iterator[str]:
    unpriced = sum(task.unpriced for task in frame.logged.tasks)
    if unpriced:
        yield f"{unpriced:,} charges of the last day have no price: set [money.prices]"


def _later(frame: Frame) -> Iterator[str]:
    yield from frame.logged.sunsets
    for task, reason in (frame.logged.frozen or {}).items():
        yield f"{task} is frozen: {reason}"
