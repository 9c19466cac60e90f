"""Owns the server of all small students: the part of vLLM's wire that Stillroom uses, on loopback, adapters by name.

    python -m distiller.small_server --port 8101 --encoder FOLDER

Must not know any kind of student, nor tasks or stages. Requests that come while others are answered are answered
together; models run in one thread of their own, so that the event loop is never held up.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from distiller.embedding import Encoders
from distiller.generate import Generated
from distiller.head import MOST_TOLD
from distiller.predict import Predict, Prompt
from distiller.small import load_sealed
from distiller.small_wire import completion, events
from proxy.errors import BadInput, envelope

GATHER_S = 0.002  # that the first request of a batch waits for others
MOST_AT_ONCE = 64
MOST_ERRORS = 3  # told of one request


class Part(BaseModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message; a small student reads text only."""

    role: str
    content: str | list[Part] | None = None

    def plain(self) -> dict[str, str]:
        """As students are taught it."""
        parts = self.content or ""
        return {"role": self.role, "content": parts if isinstance(parts, str) else "".join(part.text for part in parts)}


class StreamOptions(BaseModel):
    """What a stream tells besides."""

    include_usage: bool = False


class Asked(BaseModel):
    """A request for an answer; what has no meaning here, such as the temperature, is ignored: the likeliest is told."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    n: Literal[1] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOLD)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class Adapter(BaseModel):
    """A student to load, and its folder."""

    lora_name: Annotated[str, Field(min_length=1)]
    lora_path: str


class AdapterName(BaseModel):
    """A student to let go."""

    lora_name: str


class Worker:
    """One thread that loads students and lets them answer, a batch at a time, all of one student."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._thread = ThreadPoolExecutor(1)
        self._turn = asyncio.Lock()
        self._open: dict[Predict, _Batch] = {}

    async def load(self, load: Callable[[Path], Predict], folder: Path) -> Predict:
        """What `load` gives; it may take its time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, load, folder)

    async def ask(self, predict: Predict, prompt: Prompt) -> Generated:
        """The answer to one prompt; raises what `predict` raises, for all that were asked together."""
        batch = self._open.get(predict)
        if batch is None or len(batch.prompts) >= MOST_AT_ONCE:
            batch = self._open[predict] = _Batch()
            batch.answers = asyncio.create_task(self._answer(predict, batch))
        batch.prompts.append(prompt)
        place = len(batch.prompts) - 1
        return (await asyncio.shield(batch.answers))[place]  # a client that hangs up takes nobody along

    async def _answer(self, predict: Predict, batch: "_Batch") -> list[Generated]:
        await asyncio.sleep(GATHER_S)
        async with self._turn:  # in the order of arrival; until its turn has come a batch takes more in
            if self._open.get(predict) is batch:
                del self._open[predict]
            return await asyncio.get_running_loop().run_in_executor(self._thread, predict, batch.prompts)


class _Batch:
    answers: "asyncio.Task[list[Generated]]"

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []


def create_app(load: Callable[[Path], Predict]) -> FastAPI:
    """Build the app; `load` gives the student in a folder, or BadInput."""
    app = FastAPI(title="Stillroom small students", openapi_url=None, docs_url=None, redoc_url=None)
    worker, students = Worker(), dict[str, Predict]()
    _explain(app)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        told = [{"id": name, "object": "model", "created": 0, "owned_by": "stillroom"} for name in sorted(students)]
        return {"object": "list", "data": told}

    @app.post("/v1/load_lora_adapter")
    async def load_adapter(adapter: Adapter) -> Response:
        if adapter.lora_name in students:
            raise BadInput(f"{adapter.lora_name} is loaded already: a name means one student")
        folder = Path(adapter.lora_path)
        if not folder.is_dir():
            raise HTTPException(404, f"there is no folder {folder} for {adapter.lora_name}")
        students[adapter.lora_name] = await worker.load(load, folder)
        return PlainTextResponse(f"{adapter.lora_name} is loaded")

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(adapter: AdapterName) -> Response:
        if students.pop(adapter.lora_name, None) is None:
            raise HTTPException(404, f"there is no student {adapter.lora_name}")
        return PlainTextResponse(f"{adapter.lora_name} is let go")

    @app.post("/v1/chat/completions")
    async def chat(asked: Asked) -> Response:
        if asked.model not in students:
            raise HTTPException(404, f"The model `{asked.model}` does not exist.")
        if asked.top_logprobs and not asked.logprobs:
            raise BadInput("top_logprobs needs logprobs: true")
        answer = await worker.ask(students[asked.model], [message.plain() for message in asked.messages])
        told = (asked.top_logprobs or 0) if asked.logprobs else None
        if not asked.stream:
            return JSONResponse(completion(asked.model, answer, told))
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(_flow(events(asked.model, answer, told, with_usage)), media_type="text/event-stream")

    return app


async def _flow(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _explain(app: FastAPI) -> None:
    """Every error in OpenAI's envelope."""

    @app.exception_handler(BadInput)
    async def bad_input(_: Request, error: BadInput) -> Response:
        return _error(400, str(error), "invalid_request_error")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        told = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return _error(400, "; ".join(told[:MOST_ERRORS]), "invalid_request_error")

    @app.exception_handler(HTTPException)
    async def not_found(_: Request, error: HTTPException) -> Response:
        code = "model_not_found" if error.status_code == 404 else None
        return _error(error.status_code, str(error.detail), "invalid_request_error", code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _error(500, f"the student failed: {type(error).__name__}", "server_error")


def _error(status: int, message: str, kind: str, code: str | None = None) -> Response:
    return Response(envelope(message, kind, code), status, media_type="application/json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal comes."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="on loopback")
    parser.add_argument("--threads", type=int, default=1, help="of the models")
    parser.add_argument("--encoder", type=Path, action="append", default=[], help="folder; for each that is read")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    encoders = Encoders(options.encoder)
    app = create_app(lambda folder: load_sealed(folder, encoders))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
