"""Chat: whole and streamed answers, n, stop, seed, logprobs."""

from common import MODEL, chat, client

QUESTION = "Who goes there?"


def counts(usage):
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


models = client.models.list().data
assert [model.id for model in models] == [MODEL] and client.models.retrieve(MODEL).id == MODEL

answer = chat(QUESTION)
(choice,) = answer.choices
text = choice.message.content
assert text and choice.message.role == "assistant" and answer.model == MODEL and answer.id, answer
assert choice.finish_reason in ("stop", "length")
usage = answer.usage
assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24, usage
assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
assert chat(QUESTION, max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3

# A stream says the same.
chunks = list(chat(QUESTION, stream=True, stream_options={"include_usage": True}))
assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
assert chunks[0].choices[0].delta.role == "assistant"
assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
assert counts(chunks[-1].usage) == counts(usage)
deltas = [choice for chunk in chunks for choice in chunk.choices]
assert "".join(delta.delta.content or "" for delta in deltas) == text
assert [d.finish_reason for d in deltas if d.finish_reason] == [choice.finish_reason]
assert all(chunk.choices for chunk in chat(QUESTION, stream=True)), "usage comes only when asked for"

# A stop string inside a word ends the answer before it, streamed or not.
stop = text[6:10]
cut = text[: text.index(stop)]
found = chat(QUESTION, stop=[stop, "never said"]).choices[0]
assert (found.message.content, found.finish_reason) == (cut, "stop"), (text, found)
streamed = [c for chunk in chat(QUESTION, stop=stop, stream=True) for c in chunk.choices]
assert "".join(c.delta.content or "" for c in streamed) == cut
assert streamed[-1].finish_reason == "stop"

# A seed makes chance repeatable; choice i of n is what seed + i gives alone.
def told(seed, **options):
    extra = {"ignore_eos": True}
    answer = chat(QUESTION, seed=seed, temperature=1.2, max_tokens=16, extra_body=extra, **options)
    assert [c.index for c in answer.choices] == list(range(len(answer.choices)))
    return [c.message.content for c in answer.choices]

several = told(5, n=3)
assert len(set(several)) == 3, several
assert several == told(5) + told(6) + told(7)
chunks = [
    choice
    for chunk in chat(QUESTION, n=3, seed=5, temperature=1.2, max_tokens=16, stream=True,
                      extra_body={"ignore_eos": True})
    for choice in chunk.choices
]
for index, expected in enumerate(several):
    assert "".join(c.delta.content or "" for c in chunks if c.index == index) == expected

# Log probabilities: the likeliest tokens in order, a greedy choice first.
scores = chat(QUESTION, logprobs=True, top_logprobs=3).choices[0].logprobs.content
# The stop token is counted but not part of the message.
assert len(scores) == usage.completion_tokens - (choice.finish_reason == "stop")
for score in scores:
    tops = [top.logprob for top in score.top_logprobs]
    assert len(tops) == 3 and tops == sorted(tops, reverse=True) and tops[0] <= 0
    assert (score.token, score.logprob) == (score.top_logprobs[0].token, tops[0])
    assert bytes(score.bytes).decode(errors="replace") == score.token
assert text in b"".join(bytes(score.bytes) for score in scores).decode()
streamed = chat(QUESTION, logprobs=True, top_logprobs=3, stream=True)
streamed = [c.logprobs.content for chunk in streamed for c in chunk.choices if c.logprobs]
assert [s.token for part in streamed for s in part] == [s.token for s in scores]

# A conversation goes on, with content in parts too.
history = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text},
           {"role": "user", "content": [{"type": "text", "text": "Tell me of love."}]}]
longer = client.chat.completions.create(model=MODEL, messages=history, max_tokens=8, temperature=0)
assert longer.usage.prompt_tokens > usage.prompt_tokens and longer.choices[0].message.content
