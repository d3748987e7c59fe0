"""Tools and structured output, whole and streamed."""

import json
import re
from typing import Literal

from common import MODEL, chat, client
from pydantic import BaseModel, ConfigDict, Field

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Venice", "Elsinore"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["CET", "UTC"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
TOOLS = [WEATHER, TIME]


def ask(**options):
    """One call: small models that may make several find no end."""
    options = {"tools": TOOLS, "parallel_tool_calls": False, "max_tokens": 200} | options
    return chat("What is the weather in Paris?", **options)


def check(name, arguments):
    arguments = json.loads(arguments)
    if name == "get_weather":
        assert arguments.keys() == {"city", "days"} and 1 <= arguments["days"] <= 9, arguments
        assert arguments["city"] in ("Paris", "Venice", "Elsinore"), arguments
    else:
        assert name == "get_time" and arguments in ({"zone": "CET"}, {"zone": "UTC"}), (name, arguments)


for choose, names in [
    ("required", {"get_weather", "get_time"}),
    ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"}),
    ({"type": "function", "function": {"name": "get_time"}}, {"get_time"}),
]:
    (choice,) = ask(tool_choice=choose).choices
    (call,) = choice.message.tool_calls
    assert call.id and call.type == "function" and not choice.message.content, choice
    assert choice.finish_reason == "tool_calls", choice.finish_reason
    assert call.function.name in names, call
    check(call.function.name, call.function.arguments)

    # A stream gives the call's name once and its arguments in pieces.
    deltas, ends = [], []
    for chunk in ask(tool_choice=choose, stream=True):
        for part in chunk.choices:
            assert not part.delta.content, part
            deltas += part.delta.tool_calls or []
            ends += [part.finish_reason] if part.finish_reason else []
    assert ends == ["tool_calls"] and all(delta.index == 0 for delta in deltas), deltas
    assert [delta.function.name for delta in deltas if delta.function.name] == [call.function.name]
    assert deltas[0].id and "".join(d.function.arguments or "" for d in deltas) == call.function.arguments

# Several calls have ids of their own.
several = ask(tool_choice="required", parallel_tool_calls=True).choices[0].message.tool_calls
assert len({call.id for call in several}) == len(several) > 0

# The call and its result go back.
history = [
    {"role": "user", "content": "What is the time?"},
    {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
    {"role": "tool", "tool_call_id": call.id, "content": "noon"},
]
answer = client.chat.completions.create(model=MODEL, messages=history, tools=TOOLS, max_tokens=8, temperature=0)
assert answer.usage.completion_tokens > 0

refused = ask(tool_choice="none", max_tokens=8).choices[0].message
assert not refused.tool_calls and refused.content


class Strict(BaseModel):
    # Without it a schema admits any further fields.
    model_config = ConfigDict(extra="forbid")


class Scene(Strict):
    act: int = Field(ge=1, le=5)
    place: Literal["castle", "wood", "street"]


class Play(Strict):
    kind: Literal["comedy", "tragedy"]
    scenes: list[Scene] = Field(min_length=1, max_length=2)


# A schema, by the client's own helper and by hand; at any temperature.
for temperature in (0, 1.5):
    parsed = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe a play."}],
        response_format=Play,
        temperature=temperature,
        seed=1,
        max_tokens=600,
    ).choices[0]
    assert isinstance(parsed.message.parsed, Play) and parsed.finish_reason == "stop", parsed
format = {"type": "json_schema", "json_schema": {"name": "scene", "schema": Scene.model_json_schema()}}
whole = chat("Describe a scene.", response_format=format, max_tokens=200).choices[0]
scene = Scene.model_validate_json(whole.message.content)
streamed = chat("Describe a scene.", response_format=format, max_tokens=200, stream=True)
assert Scene.model_validate_json("".join(c.choices[0].delta.content or "" for c in streamed)) == scene

# Any JSON object, if a small model comes to an end.
question = 'Your name as JSON, like {"name": "Tom"}'
found = chat(question, response_format={"type": "json_object"}, max_tokens=60).choices[0]
if found.finish_reason == "stop":
    assert isinstance(json.loads(found.message.content), dict), found
else:
    assert found.message.content.lstrip().startswith("{"), found

# vLLM's own field.
found = chat("Your number?", extra_body={"guided_regex": "[0-9]{3}-[a-f]{2}"}).choices[0]
assert re.fullmatch("[0-9]{3}-[a-f]{2}", found.message.content) and found.finish_reason == "stop", found
