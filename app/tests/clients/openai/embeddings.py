"""Embeddings: floats and base64, alone and together."""

import base64
import struct

from common import MODEL, client

TEXTS = ["Who goes there?", "A rose by any other name would smell as sweet.", "No."]


def embed(input, **options):
    return client.embeddings.create(model=MODEL, input=input, **options)


together = embed(TEXTS, encoding_format="float")
assert [item.index for item in together.data] == [0, 1, 2]
assert together.usage.prompt_tokens == together.usage.total_tokens > 3
vectors = [item.embedding for item in together.data]
for vector in vectors:
    assert len(vector) == len(vectors[0]) and abs(sum(x * x for x in vector) - 1) < 1e-4


def near(a, b):
    return len(a) == len(b) and all(abs(x - y) < 1e-4 for x, y in zip(a, b))


assert not near(vectors[0], vectors[1])
for text, vector in zip(TEXTS, vectors):
    alone = embed(text, encoding_format="float").data[0].embedding
    assert near(alone, vector), "the same text, the same vector, whatever stands beside it"
    (item,) = embed(text, encoding_format="base64").data
    raw = base64.b64decode(item.embedding)
    assert near(struct.unpack(f"<{len(raw) // 4}f", raw), vector)
    # Without a format the client asks for base64 and decodes it itself.
    assert near(embed(text).data[0].embedding, vector)
