# ruff: noqa: E501 - a table is read by its rows
"""Records what real clients send: each is pointed at a server that keeps the body of a request and answers it with an error.

Runs in the environment of requirements/clients.txt, by `make corpus`; writes recorded.jsonl beside this file. Invariant: a line is the path and the
body as they came over the wire, and who sent it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # It would ask the network for prices.

import anthropic
import litellm
import openai
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool as langchain_tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.corpus.samples import (
    ANTHROPIC_IMAGE,
    ANTHROPIC_TOOL,
    ANTHROPIC_TURNS,
    ARGUMENTS,
    IMAGE_TURN,
    MODEL,
    OPENAI_TOOL,
    OPENAI_TURNS,
    PARAMETERS,
    PNG,
    USER,
    WAV,
    Answer,
    Plan,
)

RECORDED = Path(__file__).with_name("recorded.jsonl")
_REFUSAL = b'{"error":{"message":"recorded","type":"invalid_request_error","param":null,"code":null}}'
Case = tuple[str, Callable[[], Any]]


def of_openai(address: str) -> Iterator[Case]:
    """The official client of OpenAI's API."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="sk-x", max_retries=0)
    chat, responses = client.chat.completions, client.responses
    yield "chat", lambda: chat.create(model=MODEL, messages=USER)
    yield (
        "stream with usage",
        lambda: chat.create(
            model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}, max_completion_tokens=16
        ),
    )
    yield "sampling", lambda: chat.create(
        model=MODEL, messages=USER, n=2, seed=7, stop=["\n\n", "END"], temperature=0.2, top_p=0.9, logit_bias={"15": -100},
        frequency_penalty=0.5, presence_penalty=0.1, max_tokens=16, user="me", metadata={"conversation_id": "c", "url": "http://x"},
    )  # fmt: skip
    yield "logprobs", lambda: chat.create(model=MODEL, messages=USER, logprobs=True, top_logprobs=5, max_tokens=16)
    yield (
        "tools",
        lambda: chat.create(model=MODEL, messages=USER, tools=[OPENAI_TOOL], tool_choice="auto", max_tokens=16),
    )
    yield (
        "result of a tool",
        lambda: chat.create(
            model=MODEL, messages=OPENAI_TURNS, tools=[OPENAI_TOOL], parallel_tool_calls=False, max_tokens=16
        ),
    )
    yield "structured answer", lambda: chat.parse(model=MODEL, messages=USER, response_format=Answer, max_tokens=16)
    yield "schema by hand", lambda: chat.create(
        model=MODEL, messages=USER, max_tokens=16,
        response_format={"type": "json_schema", "json_schema": {"name": "plan", "schema": Plan.model_json_schema()}},
    )  # fmt: skip
    yield (
        "any JSON",
        lambda: chat.create(model=MODEL, messages=USER, response_format={"type": "json_object"}, max_tokens=16),
    )
    yield "image", lambda: chat.create(model=MODEL, messages=IMAGE_TURN, max_tokens=16)
    yield "audio", lambda: chat.create(
        model=MODEL, max_tokens=16,
        messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}]}],
    )  # fmt: skip
    yield "fields of llama.cpp", lambda: chat.create(
        model=MODEL, messages=USER, max_tokens=16,
        extra_body={"min_p": 0.05, "cache_prompt": True, "chat_template_kwargs": {"enable_thinking": False}, "samplers": ["top_k", "temperature"],
                    "dry_sequence_breakers": ["\n", ":"], "repeat_last_n": 64, "timings_per_token": True},
    )  # fmt: skip
    yield (
        "grammar",
        lambda: client.completions.create(
            model=MODEL, prompt="Hi", max_tokens=8, extra_body={"grammar": 'root ::= "yes" | "no"'}
        ),
    )
    yield (
        "completion",
        lambda: client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=16, logprobs=3),
    )
    yield "completions", lambda: client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=8)
    yield "completion of tokens", lambda: client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=8)
    yield "embedding", lambda: client.embeddings.create(model=MODEL, input="text")
    yield (
        "embeddings",
        lambda: client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float", dimensions=64),
    )
    yield "embeddings of tokens", lambda: client.embeddings.create(model=MODEL, input=[[1, 2], [3]])
    yield "response", lambda: responses.create(
        model=MODEL, input="Hello!", instructions="Be brief.", max_output_tokens=16, reasoning={"effort": "low"},
        metadata={"conversation_id": "c"}, text={"verbosity": "low"}, store=False, include=["reasoning.encrypted_content"],
    )  # fmt: skip
    function: Any = {
        "type": "function",
        "name": "look",
        "strict": False,
        "parameters": PARAMETERS,
        "description": "Looks.",
    }
    yield "response with tools", lambda: responses.create(
        model=MODEL, max_output_tokens=16, stream=True,
        tools=[function, {"type": "web_search"}, {"type": "mcp", "server_label": "m", "server_url": "https://mcp.example/sse", "require_approval": "never"}],
        input=[
            {"role": "user", "content": "Look."},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": json.dumps(ARGUMENTS)},
            {"type": "function_call_output", "call_id": "c1", "output": json.dumps(ARGUMENTS)},
        ],
    )  # fmt: skip
    yield "response with an image", lambda: responses.create(
        model=MODEL, max_output_tokens=16,
        input=[{"role": "user", "content": [{"type": "input_text", "text": "What?"}, {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"}]}],
    )  # fmt: skip
    yield (
        "structured response",
        lambda: responses.parse(model=MODEL, input="Plan.", text_format=Answer, max_output_tokens=16),
    )
    yield "count of a response", lambda: responses.input_tokens.count(model=MODEL, input="Hello!", tools=[function])


def of_anthropic(address: str) -> Iterator[Case]:
    """The official client of Anthropic's API."""
    client = anthropic.Anthropic(base_url=address, api_key="sk-x", max_retries=0)
    messages = client.messages
    yield "message", lambda: messages.create(model=MODEL, max_tokens=16, messages=USER, system="Be brief.")
    yield (
        "stream",
        lambda: messages.create(model=MODEL, max_tokens=16, messages=USER, stream=True, stop_sequences=["END"]),
    )
    yield "tools", lambda: messages.create(
        model=MODEL, max_tokens=16, messages=USER, tools=[ANTHROPIC_TOOL], tool_choice={"type": "any"}, metadata={"user_id": "u"},
        system=[{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
    )  # fmt: skip
    yield (
        "result of a tool",
        lambda: messages.create(
            model=MODEL,
            max_tokens=2048,
            messages=ANTHROPIC_TURNS,
            tools=[ANTHROPIC_TOOL],
            thinking={"type": "enabled", "budget_tokens": 1024},
        ),
    )
    yield (
        "image",
        lambda: messages.create(
            model=MODEL,
            max_tokens=16,
            messages=[{"role": "user", "content": [ANTHROPIC_IMAGE, {"type": "text", "text": "What?"}]}],
        ),
    )
    yield "document", lambda: messages.create(
        model=MODEL, max_tokens=16,
        messages=[{"role": "user", "content": [
            {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}, "title": "A"},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQK" * 1000}},
            {"type": "search_result", "source": "https://example.org/b", "title": "B", "content": [{"type": "text", "text": "b"}]},
            {"type": "text", "text": "Compare."},
        ]}],
    )  # fmt: skip
    yield (
        "search by the provider",
        lambda: messages.create(
            model=MODEL,
            max_tokens=16,
            messages=USER,
            tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}],
        ),
    )
    yield (
        "count",
        lambda: messages.count_tokens(
            model=MODEL, messages=ANTHROPIC_TURNS, tools=[ANTHROPIC_TOOL], system="Be brief."
        ),
    )


@langchain_tool
def look(url: str, id_slot: int = 0, lora: list[str] | None = None, plan: Plan | None = None) -> str:
    """Looks at a place."""
    return url


def of_langchain(address: str) -> Iterator[Case]:
    """LangChain, by both APIs."""
    chat = ChatOpenAI(base_url=f"{address}/v1", api_key="sk-x", model=MODEL, max_retries=0, max_tokens=16)
    turns = [
        SystemMessage("You look."),
        HumanMessage("Look."),
        AIMessage("", tool_calls=[{"name": "look", "args": ARGUMENTS, "id": "c1"}]),
        ToolMessage(json.dumps(ARGUMENTS), tool_call_id="c1"),
    ]
    image = HumanMessage(
        [{"type": "text", "text": "What?"}, {"type": "image", "base64": PNG, "mime_type": "image/png"}]
    )
    yield "chat", lambda: chat.invoke("Hello!")
    yield "stream", lambda: list(chat.stream("Hello!"))
    yield "tools", lambda: chat.bind_tools([look]).invoke(turns)
    yield (
        "structured by a schema",
        lambda: chat.with_structured_output(Plan, method="json_schema", strict=False).invoke("Plan."),
    )
    yield (
        "structured by a function",
        lambda: chat.with_structured_output(Plan, method="function_calling").invoke("Plan."),
    )
    yield "image", lambda: chat.invoke([image])
    responses = ChatOpenAI(
        base_url=f"{address}/v1", api_key="sk-x", model=MODEL, max_retries=0, max_tokens=16, use_responses_api=True
    )
    yield "responses", lambda: responses.bind_tools([look]).invoke(turns)
    embeddings = OpenAIEmbeddings(
        base_url=f"{address}/v1", api_key="sk-x", model=MODEL, max_retries=0, check_embedding_ctx_length=False
    )
    yield "embeddings", lambda: embeddings.embed_documents(["a", "b"])
    claude = ChatAnthropic(base_url=address, api_key="sk-x", model_name=MODEL, max_retries=0, max_tokens=16)
    yield "Anthropic's tools", lambda: claude.bind_tools([look]).invoke(turns)
    yield "Anthropic's image", lambda: claude.invoke([image])


def of_litellm(address: str) -> Iterator[Case]:
    """LiteLLM, which speaks both APIs."""
    common: Any = {"api_base": f"{address}/v1", "api_key": "sk-x", "max_retries": 0, "num_retries": 0}
    name = f"openai/{MODEL}"
    yield "chat", lambda: litellm.completion(name, USER, max_tokens=16, **common)
    yield "stream", lambda: list(litellm.completion(name, USER, max_tokens=16, stream=True, **common))
    yield "tools", lambda: litellm.completion(name, OPENAI_TURNS, tools=[OPENAI_TOOL], max_tokens=16, **common)
    yield "structured answer", lambda: litellm.completion(name, USER, response_format=Answer, max_tokens=16, **common)
    yield "image", lambda: litellm.completion(name, IMAGE_TURN, max_tokens=16, **common)
    yield "embedding", lambda: litellm.embedding(name, input=["a"], **common)
    claude: Any = {"api_base": address, "api_key": "sk-x", "max_retries": 0, "num_retries": 0}
    yield (
        "Anthropic's tools",
        lambda: litellm.completion(f"anthropic/{MODEL}", OPENAI_TURNS, tools=[OPENAI_TOOL], max_tokens=16, **claude),
    )


CLIENTS: dict[str, Callable[[str], Iterator[Case]]] = {
    "openai": of_openai,
    "anthropic": of_anthropic,
    "langchain-openai": of_langchain,
    "litellm": of_litellm,
}


class _Keeper(BaseHTTPRequestHandler):
    """Keeps the path and the body of each request."""

    kept: list[tuple[str, str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.kept.append((self.path.partition("?")[0], body))
        self.send_response(400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(_REFUSAL)))
        self.end_headers()
        self.wfile.write(_REFUSAL)

    def log_message(self, *_: Any) -> None:
        """Be silent."""


def main() -> None:
    """Write the corpus."""
    kept: list[tuple[str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Keeper", (_Keeper,), {"kept": kept}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    litellm.suppress_debug_info = True
    lines = []
    for client, cases in CLIENTS.items():
        version = importlib.metadata.version(client)
        for name, send in cases(address):
            kept.clear()
            try:
                send()
            except Exception as error:  # Each is answered with an error; what counts is that it was sent.
                if not kept:
                    raise SystemExit(f"{client} sent nothing for {name!r}: {error!r}") from error
            path, body = kept[0]
            lines.append(json.dumps({"client": f"{client} {version}", "name": name, "path": path, "body": body}))
    RECORDED.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} requests in {RECORDED}")  # noqa: T201 - its output is for people


if __name__ == "__main__":
    main()
