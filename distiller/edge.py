"""Owns serving one exported student on a CPU: llama.cpp's own server, and a door before it that asks as it was taught.

Must not know the log, a task's evidence, or how the file was made; torch is never loaded here. The door speaks OpenAI's
chat completions: of a request it keeps what a student can follow, leaves out the instructions that it has learned,
and asks greedily, as it was scored. llama.cpp's answer goes back as it is, streams too.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from proxy.errors import BadInput, StillroomError, Unavailable, envelope
from proxy.listening import bound
from proxy.supervisor import end_with_parent
from router.prompt import student_messages

CARD = "student.json"
HOST = "127.0.0.1"
INSTALL = "llama.cpp is not installed: pip install 'stillroom[edge]'"
# Of a request; the rest is for the teacher's kind of model, or would make the student answer otherwise than scored.
_KEPT = ("stream", "stream_options", "logprobs", "top_logprobs", "stop")
_NOT_TEXT = ("tools", "functions", "audio")
_SESSION = web.AppKey("session", aiohttp.ClientSession)


@dataclass(frozen=True, slots=True)
class Served:
    """What serving needs to know of one exported file; stands beside it as `student.json`.

    `adapter` is a second file, added to the first while it computes; empty where there is none. `sums` are the SHA-256
    (hex) of both. `static` are the instruction lines the student has learned (`router.prompt`), `max_tokens` bounds an
    answer.
    """

    student: str
    file: str
    adapter: str
    sums: Mapping[str, str]
    static: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Running:
    """How llama.cpp runs: context in tokens, prompt and answer together; threads, 0 for one a core."""

    context: int
    threads: int


def read_served(folder: Path) -> Served:
    """What is to be served from `folder`; BadInput where it is no exported student, or not as it was exported."""
    try:
        told = json.loads((folder / CARD).read_text(encoding="utf-8"))
        served = Served(**told | {"static": tuple(told["static"])})
        found = sums(folder, served.sums)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{folder} holds no exported student ({error}): make one with `stillroom export`") from None
    if found != served.sums:
        raise BadInput(f"a file in {folder} was changed: remove the folder and export it again")
    return served


def sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 (hex) of the files of these names."""
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def exported(exports: Path, student: str) -> Path:
    """The folder of the student's smallest file for llama.cpp; BadInput where none was exported."""
    found = [card.parent for card in (exports / student / "gguf").glob(f"[!.]*/{CARD}")]
    if not found:
        raise BadInput(f"no GGUF file of {student} is under {exports}: run `stillroom export TASK --gguf` first")
    return min(found, key=lambda folder: sum(path.stat().st_size for path in folder.iterdir()))


def serve(folder: Path, port: int, running: Running) -> None:
    """Serve the student in `folder` on loopback until SIGINT or SIGTERM, which end the process with exit code 0.

    Unavailable when that is not possible.
    """
    served = read_served(folder)
    with bound(HOST, port) as listener:
        engine = start_llama(served, folder, running)
        app = create_door(served, engine.listening_address)
        print(f"{served.student} answers on http://{HOST}:{listener.getsockname()[1]}/v1 (Ctrl-C stops it)", flush=True)
        web.run_app(app, sock=listener, print=None, access_log=None)
        # Let go of, llama.cpp's server on a busy machine now and then waits for ever. There is nothing of it to keep.
        sys.stdout.flush()
        os._exit(0)


def start_llama(served: Served, folder: Path, running: Running) -> Any:
    """llama.cpp's server with this file, on a free port of loopback, up; it stops when it is let go of."""
    try:
        import xllamacpp
    except ImportError:
        raise Unavailable(INSTALL) from None
    asked = xllamacpp.CommonParams()
    asked.model.path = str(folder / served.file)
    asked.model_alias = {served.student}
    if served.adapter:
        added = xllamacpp.CommonAdapterLoraInfo()
        added.path, added.scale = str(folder / served.adapter), 1.0
        asked.lora_adapters = [added]
    asked.hostnames, asked.port = [HOST], 0
    asked.n_ctx, asked.n_parallel = running.context, 1
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = running.threads or os.cpu_count() or 1
    asked.use_jinja, asked.warmup, asked.verbosity = True, False, 1
    asked.cache_ram_mib = 0  # It would keep up to 8 GiB of prompts.
    asked.ui = asked.endpoint_slots = False  # A slot shows the prompt of whoever is being answered.
    asked.cors_origins = ""
    try:
        return xllamacpp.Server(asked)
    except RuntimeError as error:
        raise Unavailable(f"llama.cpp does not load {folder / served.file}: {error}") from None


def create_door(served: Served, engine: str) -> web.Application:
    """The OpenAI wire before llama.cpp's server at `engine`."""

    async def chat(request: web.Request) -> web.StreamResponse:
        try:
            payload = student_request(served, json.loads(await request.read()))
        except (BadInput, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            return _refusal(str(error) if isinstance(error, BadInput) else "the body is not a chat completion request")
        return await _passed_on(request, f"{engine}/v1/chat/completions", payload)

    async def models(_: web.Request) -> web.Response:
        entry = {"id": served.student, "object": "model", "created": 0, "owned_by": "stillroom"}
        return web.json_response({"object": "list", "data": [entry]})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "engine": engine})

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as app[_SESSION]:
            yield

    app = web.Application(client_max_size=16 * 2**20)
    app.cleanup_ctx.append(session)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    return app


def student_request(served: Served, body: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp is asked for this request; BadInput for what a text student cannot do."""
    if unfit := next((key for key in _NOT_TEXT if body.get(key)), None):
        raise BadInput(f"the request asks for {unfit}, and this student answers in text")
    if body.get("n") not in (None, 1):
        raise BadInput("the request asks for several choices, and a student answers greedily: ask for one")
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or served.max_tokens
    if not isinstance(limit, int) or limit < 1:  # llama.cpp takes -1 as no limit at all
        raise BadInput(f"the request sets a limit of {limit} tokens, which is none")
    return {key: body[key] for key in _KEPT if body.get(key) is not None} | {
        "model": served.student,
        "messages": student_messages(body["messages"], frozenset(served.static)),
        "temperature": 0,
        "max_tokens": min(limit, served.max_tokens),
        # A prompt read in other pieces gives other last digits, and so now and then another answer.
        "cache_prompt": False,
    }


async def _passed_on(request: web.Request, url: str, payload: Mapping[str, Any]) -> web.StreamResponse:
    async with request.app[_SESSION].post(url, json=payload) as answer:
        reply = web.StreamResponse(status=answer.status, headers={"content-type": answer.headers["content-type"]})
        await reply.prepare(request)
        with contextlib.suppress(ConnectionResetError):  # The client went; leaving stops llama.cpp too.
            async for chunk in answer.content.iter_any():
                await reply.write(chunk)
            await reply.write_eof()
        return reply


def _refusal(message: str) -> web.Response:
    body = envelope(message, "invalid_request_error")
    return web.Response(body=body, status=400, content_type="application/json")


def main() -> int:
    """`python -m distiller.edge FOLDER PORT CONTEXT THREADS`: started by `stillroom export`, and ends with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name in ("port", "context", "threads"):
        parser.add_argument(name, type=int)
    told = parser.parse_args()
    end_with_parent()
    try:
        serve(told.folder, told.port, Running(told.context, told.threads))
    except StillroomError as error:
        print(f"stillroom: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
