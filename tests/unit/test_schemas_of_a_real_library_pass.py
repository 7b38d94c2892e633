"""Schemas that pydantic makes of the types of OpenAI's client, some large and recursive, pass as schemas of answers and of tools."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

import openai.types.chat
import openai.types.responses
import pydantic
from lupa.luajit21 import LuaRuntime

from controller.xds import scripts

_READ = b"""
function(request_limits)
  return function(text)
    local said, problem = request_limits.read('/v1/completions', text)
    return said and "" or problem.message or problem.code
  end
end
"""


def schemas() -> dict[str, Any]:
    found = {}
    for package in (openai.types.chat, openai.types.responses):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(module.name)).items():
                if (
                    isinstance(value, type)
                    and issubclass(value, pydantic.BaseModel)
                    # Not again where another module imports it.
                    and value.__module__ == module.name
                ):
                    try:
                        found[f"{module.name}.{name}"] = value.model_json_schema()
                    except pydantic.errors.PydanticUserError:
                        continue
    return found


def test_nearly_all_pass_as_schemas_of_answers_and_of_tools() -> None:
    lua = LuaRuntime(encoding=None)
    lua.execute(scripts.limits_modules({}).encode())
    read = lua.eval(_READ)(lua.eval(b"require('request_limits')"))
    found = schemas()
    refused = set()
    for name, schema in found.items():
        answer = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
        tool = {"tools": [{"type": "function", "function": {"name": "x", "parameters": schema}}]}
        for body in (answer, tool):
            if problem := read(json.dumps(body).encode()).decode():
                # A choice among all models of OpenAI at one place is too much at once for a default.
                assert "schema.alternatives" in problem, name
                refused.add(name)
    assert len(found) > 200
    assert len(refused) < len(found) / 20
