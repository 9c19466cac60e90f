"""Makes the calls with OpenAI's Python SDK: `python openai_python.py URL CALLS`, results as JSON on stdout.

Owns what a result is on this SDK. Imports the SDK and the standard library only: it runs in an environment of its own.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import openai

Result = dict[str, Any]


def main(url: str, calls: str) -> None:
    results = {}
    for call in json.loads(Path(calls).read_text()):
        options = {"base_url": url, "api_key": call["options"].get("key", call["key"])}
        options |= {"timeout": call["options"].get("timeout", 120), "max_retries": call["options"].get("retries", 0)}
        if "at_once" in call["options"]:
            results[call["name"]] = asyncio.run(at_once(options, call))
        else:
            with openai.OpenAI(**options) as client:
                results[call["name"]] = one_by_one(client, call)
    json.dump(results, sys.stdout)


def one_by_one(client: openai.OpenAI, call: Mapping[str, Any]) -> Any:
    if "times" not in call["options"]:
        return ask(client, call, set())
    connections: set[Any] = set()
    results = [ask(client, call, connections) for _ in range(call["options"]["times"])]
    return {"results": results, "connections": len(connections)}


def ask(client: openai.OpenAI, call: Mapping[str, Any], connections: set[Any]) -> Result:
    result: Result = {}
    try:
        raw = method_of(client, call["method"])(*call["options"].get("positional", ()), **arguments_of(call))
        connections.add(raw.http_response.extensions["network_stream"].get_extra_info("client_addr"))
        result |= head_of(raw)
        parsed = raw.parse()
        if not isinstance(parsed, openai.Stream):
            return {**result, "returned": dumped(parsed)}
        chunks = result["chunks"] = []
        with parsed:
            for chunk in itertools.islice(parsed, call["options"].get("stop_after")):
                chunks.append(dumped(chunk))
    except Exception as error:  # Whatever it is, its class is compared.
        result |= raised(error)
    return result


async def at_once(options: Mapping[str, Any], call: Mapping[str, Any]) -> list[Result]:
    async with openai.AsyncOpenAI(**options) as client:
        return await asyncio.gather(*[ask_async(client, call) for _ in range(call["options"]["at_once"])])


async def ask_async(client: openai.AsyncOpenAI, call: Mapping[str, Any]) -> Result:
    result: Result = {}
    try:
        raw = await method_of(client, call["method"])(**arguments_of(call))
        result |= head_of(raw)
        parsed = raw.parse()
        if isinstance(parsed, openai.AsyncStream):
            result["chunks"] = [dumped(chunk) async for chunk in parsed]
        else:
            result["returned"] = dumped(parsed)
    except Exception as error:  # Whatever it is, its class is compared.
        result |= raised(error)
    return result


def method_of(client: Any, path: str) -> Any:
    resource, _, name = path.rpartition(".")
    return getattr(attrgetter(resource)(client).with_raw_response, name)


def arguments_of(call: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: read(value) for name, value in call["arguments"].items()}
    headers = call["options"].get("headers")
    return {**given, "extra_headers": headers} if headers else given


def read(value: Any) -> Any:
    """The value, or the file it stands for."""
    if isinstance(value, dict) and "$file" in value:
        name, text = value["$file"]
        return name, text.encode()
    return value


def dumped(value: Any) -> Any:
    """What was sent, unknown fields too, and nothing the SDK fills in."""
    return value.model_dump(mode="json", exclude_unset=True, warnings=False) if hasattr(value, "model_dump") else value


def head_of(raw: Any) -> Result:
    return {"status": raw.status_code, "headers": dict(raw.headers), "retries": raw.retries_taken}


def raised(error: Exception) -> Result:
    result: Result = {"raised": type(error).__name__, "message": str(error)}
    if isinstance(error, openai.APIError):
        result |= {"body": error.body, "code": error.code, "param": error.param, "type": error.type}
    if isinstance(error, openai.APIStatusError):
        result |= {"status": error.status_code, "headers": dict(error.response.headers)}
        result["attempt"] = error.response.request.headers.get("x-stainless-retry-count")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
