"""Owns what the replay teacher answers to the prompts of LangChain's standard tests. Must not know who asks.

Messages and tools are those the tests send; a prompt that is not here is refused, through a proxy as without one.
"""

import json
from typing import Any

from proxy.traffic_file import Row

_JOKE = '{"setup":"Why did the cat sit on the press?","punchline":"It wanted to be in the mews."}'
_NOTE = "Tool that adds two integers.\n\n            Takes two integers, a and b, and returns their sum."
_CUSTOMER = (
    "Tool for creating a customer with Unicode name.\n\n    Args:\n        customer_name: The customer's name in their "
    "native language.\n        description: Description of the customer.\n\n    Returns:\n        A confirmation "
    "message about the customer creation."
)
_BOUNDED = {"input": {"exclusiveMaximum": 1000, "exclusiveMinimum": -1000, "type": "integer"}}


def langchain_rows() -> list[Row]:
    """The rows, one a prompt."""
    return [*_texts(), *_calls(), *_histories()]


def _texts() -> list[Row]:
    hello, how = {"role": "assistant", "content": "hello"}, _user("how are you")
    system = {"role": "system", "content": "hello"}
    joke = "Tell me a joke about cats."
    in_json = " Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing other than JSON."
    answers = {
        "Hello": "Hello, how can I help?",
        "Hey": "Hey there.",
        "hello": "Good day.",
        "hi": "Hi, how are you?",
        "Write me 2 haikus. Only include the haikus.": "Drops fall in the dark,\nand the copper slowly cools,\nclear.",
        "Write a story about a cat.": "There was a cat, and it slept.",
        joke: _JOKE,
        joke + in_json: _JOKE,
        "Give me the setup to a joke about cats, no punchline.": '{"setup":"Why?","punchline":null}',
        "Give me a joke about cats, include the punchline.": _JOKE,
    }
    rows = [_row([_user(text)], answer) for text, answer in answers.items()]
    rows.append(_row([_user("hello"), hello, how], "I am well."))
    rows.append(_row([system, system, _user("hello"), _user("hello"), hello, hello, how], "Very well."))
    return rows


def _calls() -> list[Row]:
    integer = _tool("magic_function", "Apply a magic function to an input.", _BOUNDED)
    nothing = _tool("magic_function_no_args", "Calculate a magic function.", {})
    greeting = _tool(
        "greeting_generator", "Generate a greeting in a particular style of speaking.", _text("answer_style")
    )
    customer = _tool("unicode_customer", _CUSTOMER, _text("customer_name", "description"))
    weather = _tool("get_weather", "Get weather at a location.", _text("location"))
    joke = _tool("Joke", "Joke to tell user.", {**_said("setup", "question"), **_said("punchline", "answer")})
    chinese = "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company"
    japanese = "Create a customer named 'こんにちは株式会社' (Hello Corporation) - a Japanese company"
    joke_told = [("Joke", json.loads(_JOKE))]
    use = "What is the value of {}? Use the tool."
    return [
        _row([_user("Tell me a joke about cats.")], joke_told, [joke]),
        _row([_user(use.format("magic_function(3)"))], [("magic_function", {"input": 3})], [integer]),
        _row([_user(use.format("magic_function_no_args()"))], [("magic_function_no_args", {})], [nothing]),
        _row(
            [_user("Using the tool, generate a Pirate greeting.")],
            [("greeting_generator", {"answer_style": "pirate"})],
            [greeting],
        ),
        _row([_user("Hello!")], [("magic_function", {"input": 1})], [integer, weather]),
        _row(
            [_user(chinese)],
            [("unicode_customer", {"customer_name": "你好啊集团", "description": "technology"})],
            [customer],
        ),
        _row(
            [_user(japanese)],
            [("unicode_customer", {"customer_name": "こんにちは株式会社", "description": "a company"})],
            [customer],
        ),
    ]


def _histories() -> list[Row]:
    adder = _tool("my_adder_tool", _NOTE, {"a": {"type": "integer"}, "b": {"type": "integer"}})
    weather = _tool("get_weather", "Get the weather at a location.", _text("location"))
    asked, place = _user("What is 1 + 2"), {"location": "San Francisco, CA"}
    both, failed = _assistant("my_adder_tool", {"a": 1, "b": 2}), _assistant("my_adder_tool", {"a": 1})
    three = {"role": "tool", "tool_call_id": "abc123", "content": '{"result": 3}'}
    error = {"role": "tool", "tool_call_id": "abc123", "content": "Error: Missing required argument 'b'."}
    example = [asked, both, three, {"role": "assistant", "content": '{"result": 3}'}, _user("What is 3 + 4")]
    outside, sunny = _user("What is the weather in San Francisco, CA?"), {"role": "tool", "content": "It's sunny."}
    answered = _assistant("get_weather", place)
    return [
        _row([asked, both, three], "It is 3.", [adder]),
        _row([asked, {**both, "content": "some text"}, three], "It is 3.", [adder]),
        _row([asked, failed, error], "I need both numbers.", [adder]),
        _row(example, [("my_adder_tool", {"a": 3, "b": 4})], [adder]),
        _row([outside], [("get_weather", place)], [weather]),
        _row([outside, answered, sunny], "It is sunny.", [weather]),
    ]


def _row(messages: list[dict[str, Any]], answer: str | list[tuple[str, Any]], tools: Any = None) -> Row:
    text = answer if isinstance(answer, str) else None
    calls = None if isinstance(answer, str) else tuple({"name": name, "arguments": given} for name, given in answer)
    return Row(tuple(messages), text, calls, "gpt-4o", tuple(tools) if tools else None)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(name: str, given: dict[str, Any]) -> dict[str, Any]:
    call = {"id": "abc123", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _text(*names: str) -> dict[str, Any]:
    return {name: {"type": "string"} for name in names}


def _said(name: str, part: str) -> dict[str, Any]:
    purpose = "to set up a joke" if part == "question" else "to resolve the joke"
    return {name: {"description": f"{part} {purpose}", "type": "string"}}


def _tool(name: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"properties": properties, "required": list(properties), "type": "object"}
    if not properties:
        del parameters["required"]
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
