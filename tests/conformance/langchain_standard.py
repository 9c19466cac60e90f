"""LangChain's standard integration tests of a chat model, on ChatOpenAI at OPENAI_BASE_URL.

Owns how the model under test is set up. Runs in an environment of its own: `pytest langchain_standard.py`.
"""

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestStandard(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        same = {"temperature": 0, "seed": 7, "max_tokens": 16, "max_retries": 0, "stream_usage": True}
        return {"model": os.environ["CONFORMANCE_MODEL"], **same}

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another-model"
