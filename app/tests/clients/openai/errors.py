"""Refusals arrive as the client's own exceptions, with what is wrong and in which field."""

import re

import openai
from common import MODEL, URL, chat, client, complete


def fails(error, call, *parts):
    try:
        call()
    except error as found:
        for part in parts:
            assert re.search(part, found.message), (part, found.message)
        return found
    raise AssertionError(f"{error.__name__} did not come")


def ask(content="Who?", **options):
    return lambda: chat(content, **options)


def as_user(key):
    return openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0)


found = fails(openai.NotFoundError, ask(model="no-such-model"), "no-such-model")
assert found.status_code == 404 and found.type, found
fails(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"), "no-such-model")
fails(openai.AuthenticationError, lambda: as_user("wrong").models.list(), "key")

# Longer than the context, by little and by much: both numbers are told.
context = client.models.retrieve(MODEL).max_model_len
for long in ("to be or not to be " * (context // 5), "to be or not to be " * context):
    for call in (ask(long), lambda: complete(long)):
        message = fails(openai.BadRequestError, call).message
        numbers = {int(number) for number in re.findall(r"\d+", message)}
        assert context in numbers and max(numbers) > context, message

for options, part in [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 7}, "top_p"),
    ({"n": 0}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"stop": [""]}, "stop"),
    ({"logprobs": True, "top_logprobs": 1000}, "logprobs"),
    ({"tool_choice": "required"}, "tool"),
    ({"response_format": {"type": "xml"}}, "xml|response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no type"}}}}, "."),
    ({"extra_body": {"guided_regex": "("}}, "."),
]:
    found = fails(openai.BadRequestError, ask(**options), part)
    assert found.status_code == 400 and found.type == "invalid_request_error", (options, found.body)
fails(openai.BadRequestError, lambda: complete([4294967295]), "4294967295")
fails(openai.BadRequestError, lambda: complete([]), "prompt")
# Nothing of this hurt anybody.
assert chat("Who goes there?").choices[0].message.content
