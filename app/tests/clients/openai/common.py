"""What the scripts share: usage SCRIPT URL KEY."""

import sys

from openai import OpenAI

URL, KEY = sys.argv[1:3]
# Without retries: the first answer counts.
client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
MODEL = client.models.list().data[0].id


def chat(content, **options):
    """One answer to one message."""
    options = {"model": MODEL, "temperature": 0, "max_tokens": 24} | options
    return client.chat.completions.create(messages=[{"role": "user", "content": content}], **options)


def complete(prompt, **options):
    """A continuation of a prompt, greedy unless told otherwise."""
    options = {"temperature": 0, "max_tokens": 16} | options
    return client.completions.create(model=MODEL, prompt=prompt, **options)


def tokenize(text):
    """The text's token ids, by vLLM's endpoint."""
    body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    return client.with_options(base_url=URL).post("/tokenize", body=body, cast_to=object)["tokens"]


def close(a, b, tolerance=1e-3):
    """Two scores of the same token, computed in batches of different shapes."""
    return abs(a - b) <= tolerance * max(1, abs(a))
