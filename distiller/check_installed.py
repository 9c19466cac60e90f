"""Owns the checks of what is installed: libraries the settings ask for, models students grow from, the pages' files.

Must not import what it looks for, nor fetch anything.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from distiller import dashboard
from distiller.base import DEFAULT_BASE, packaged_file
from distiller.embedding import DEFAULT_ENCODER, packaged_folder
from distiller.finding import FIX, OK, WARN, Finding
from distiller.settings import Settings
from proxy.errors import BadInput, Unavailable
from proxy.names import require_names
from router.prices import PriceList

# Of an extra: what of it is imported, and what it is for.
_TRAINING = ("torch", "transformers", "peft", "accelerate", "sklearn")  # small students are also served by these
_OPTIONAL = {
    "edge": ("xllamacpp", "`stillroom edge`"),
    "languages": ("py3langid", "languages in `stillroom distill`"),
    "otel": ("opentelemetry.sdk", "spans"),
    "pdf": ("fpdf", "reports as PDF"),
    "top": ("textual", "`stillroom top`"),
}


def check_installed(settings: Settings) -> Iterator[Finding]:
    """Training, serving, extras, models, prices, pages."""
    yield _installed("training", _TRAINING, "distill", FIX if _by_itself(settings) else WARN)
    yield _installed("serving", ("vllm",), f"serve-{settings.serving.device}", WARN)
    yield from _extras(settings)
    small = {"head", "encoder", "cascade"} & set(settings.distiller.students)
    if small:
        yield _model(settings, "encoder", settings.distiller.encoder)
    if set(settings.distiller.students) - {"head", "encoder"}:
        for base in dict.fromkeys((settings.distiller.base, *settings.distiller.bases)):
            yield _model(settings, "base", base)
    yield _prices(settings)
    yield _pages()


def _by_itself(settings: Settings) -> bool:
    """Whether anything is distilled without being asked for."""
    usual = (settings.distiller.schedule, settings.distiller.new_exchanges)
    changes = (settings.schedule.drift, settings.schedule.teacher_change)
    single = ((one.cron, one.new_exchanges, one.drift, one.teacher_change) for one in settings.schedule.tasks.values())
    return any((*usual, *changes)) or any(map(any, single))


def _installed(what: str, modules: tuple[str, ...], extra: str, level: str) -> Finding:
    missing = [module for module in modules if not _found(module)]
    if missing:
        return Finding(what, level, f"missing {', '.join(missing)}: pip install 'stillroom[{extra}]'")
    return Finding(what, OK, "installed")


def _found(module: str) -> bool:
    """Whether it could be imported; a part of a package that is not there cannot."""
    package, _, _ = module.partition(".")
    return importlib.util.find_spec(package) is not None and (
        package == module or importlib.util.find_spec(module) is not None
    )


def _extras(settings: Settings) -> Iterator[Finding]:
    if settings.redaction.names:
        try:
            require_names()
            yield Finding("names", OK, "installed")
        except BadInput as error:
            yield Finding("names", FIX, str(error))
    if settings.telemetry.spans:
        yield _installed("spans", ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"), "otel", FIX)
    if settings.export.compressor and not os.access(settings.export.compressor, os.X_OK):
        yield Finding(
            "compressor", FIX,
            f"export.compressor = {settings.export.compressor!r} is no program: name the python of an environment with "
            "stillroom[compress]",
        )  # fmt: skip
    away = [f"{extra} ({use})" for extra, (module, use) in _OPTIONAL.items() if not _found(module)]
    told = f"not installed: {', '.join(away)}; pip install 'stillroom[NAME]' where wanted" if away else "all installed"
    yield Finding("extras", OK, told)


def _model(settings: Settings, kind: str, name: str) -> Finding:
    """A folder, the default from its package, or one of the hub, which a first distillation fetches."""
    what, folder = f"{kind} model", Path(name)
    if folder.is_dir():
        whole = (folder / "config.json").is_file()
        wrong = f"{folder} holds no config.json: give a model folder as written by save_pretrained"
        return Finding(what, OK if whole else FIX, str(folder) if whole else wrong)
    if name in (DEFAULT_BASE, DEFAULT_ENCODER):
        try:
            packaged_file() if name == DEFAULT_BASE else packaged_folder()
        except Unavailable as error:
            return Finding(what, WARN, str(error))
        return Finding(what, OK, name)
    cached = settings.folder / "bases" / f"models--{name.replace('/', '--')}"
    if cached.is_dir():
        return Finding(what, OK, f"{name}, fetched")
    return Finding(what, WARN, f"{name} is no folder here: the first distillation fetches it from the Hugging Face hub")


def _prices(settings: Settings) -> Finding:
    try:
        return Finding("prices", OK, f"{len(PriceList(settings.money)):,} models priced")
    except Unavailable as error:
        return Finding("prices", FIX, str(error))


def _pages() -> Finding:
    vendor = Path(str(dashboard.__file__)).parent / "static" / "vendor"
    if any(vendor.glob("*.js")):
        return Finding("pages", OK, "built")
    return Finding("pages", WARN, "the dashboard's scripts are not built, so it has no charts: make assets (needs npm)")
