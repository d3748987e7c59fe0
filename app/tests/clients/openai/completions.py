"""Completions: prompts of every form, and scores as evaluation harnesses ask for them."""

from common import client, close, complete, tokenize, MODEL

TEXT = "To be, or not to be, that is the question"
ids = tokenize(TEXT)
assert len(ids) > 5 and all(isinstance(id, int) for id in ids)

# One text, its ids, several of each: the same continuations.
answer = complete(TEXT)
text = answer.choices[0].text
assert text and answer.usage.prompt_tokens == len(ids) and answer.object == "text_completion"
assert complete(ids).choices[0].text == text
other = "Shall I compare thee to"
several = complete([TEXT, other, TEXT])
assert [choice.index for choice in several.choices] == [0, 1, 2]
assert [choice.text for choice in several.choices] == [text, complete(other).choices[0].text, text]
assert several.usage.prompt_tokens == 2 * len(ids) + len(tokenize(other))
assert [c.text for c in complete([ids, tokenize(other)]).choices] == [c.text for c in several.choices[:2]]
pairs = complete([TEXT, other], n=2, temperature=1, seed=3, extra_body={"ignore_eos": True})
assert [c.index for c in pairs.choices] == [0, 1, 2, 3]
chunks = list(complete(TEXT, stream=True, stream_options={"include_usage": True}))
assert "".join(c.text for chunk in chunks for c in chunk.choices) == text
assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens

# Log probabilities of what is written, in the order and form of the older API.
scored = complete(TEXT, logprobs=2, max_tokens=8, extra_body={"ignore_eos": True}).choices[0]
logprobs = scored.logprobs
assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 8
for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
    assert close(top[token], logprob) and logprob == max(top.values()) <= 0 and len(top) >= 2

# Scoring: the prompt is told back with the score of each token but the first; nothing is written.
whole = complete(TEXT, echo=True, logprobs=1, max_tokens=0).choices[0]
scores = whole.logprobs.token_logprobs
assert whole.text == TEXT and len(scores) == len(ids) and scores[0] is None
assert "".join(whole.logprobs.tokens) == TEXT
offsets = whole.logprobs.text_offset
assert all(TEXT[at:].startswith(token) for at, token in zip(offsets, whole.logprobs.tokens))
def last_score(ids):
    return complete(ids, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs.token_logprobs[-1]

stepwise = [last_score(ids[: n + 1]) for n in range(1, len(ids))]
assert close(sum(stepwise), sum(scores[1:])), (stepwise, scores)

# What was generated step by step is scored the same at once.
written = complete(TEXT, echo=True, logprobs=1, max_tokens=8).choices[0]
assert written.text.startswith(TEXT)
again = complete(written.text, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
if again.tokens == written.logprobs.tokens:
    pairs = zip(again.token_logprobs[1:], written.logprobs.token_logprobs[1:])
    assert all(close(a, b) for a, b in pairs)
