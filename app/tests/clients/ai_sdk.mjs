// The AI SDK against a running server: usage node ai_sdk.mjs FOLDER_WITH_NODE_MODULES URL KEY
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [folder, url, apiKey] = process.argv.slice(2);
const require = createRequire(join(folder, 'ai_sdk.mjs'));
const { embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } = require('ai');
const { createOpenAICompatible } = require('@ai-sdk/openai-compatible');
const { z } = require('zod');

const listed = await fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${apiKey}` } });
const name = (await listed.json()).data[0].id;
const provider = createOpenAICompatible({
  name: 'tread',
  baseURL: `${url}/v1`,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const common = { model: provider(name), temperature: 0, maxRetries: 0 };

const prompt = 'Who goes there?';
const whole = await generateText({ ...common, prompt, maxOutputTokens: 16 });
assert(whole.text.length > 0);
assert(whole.usage.inputTokens > 0 && whole.usage.outputTokens > 0);

const stream = streamText({ ...common, prompt, maxOutputTokens: 16 });
let text = '';
for await (const part of stream.textStream) text += part;
assert.equal(text, whole.text);
assert.equal(await stream.finishReason, whole.finishReason);
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);

const schema = z.object({ kind: z.enum(['comedy', 'tragedy']), acts: z.int().min(1).max(5) });
const play = { ...common, prompt: 'Describe a play.', schema, maxOutputTokens: 100 };
const { object } = await generateObject(play);
schema.parse(object);
let partial;
for await (partial of streamObject(play).partialObjectStream);
assert.deepEqual(partial, object);

// The tool is called once (small models that may make several calls find no end), and its result goes back to the model.
const once = { type: 'tool', toolName: 'weather' };
const asked = [];
const weather = tool({
  description: 'The weather in a city',
  inputSchema: z.object({ city: z.enum(['Paris', 'Venice']) }),
  execute: async ({ city }) => { asked.push(city); return { city, sky: 'clear' }; },
});
const called = await generateText({
  ...common,
  prompt: 'What is the weather in Paris?',
  tools: { weather },
  maxOutputTokens: 100,
  stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? once : 'none' }),
});
assert.equal(called.steps.length, 2);
assert(asked.length > 0 && asked.every((city) => ['Paris', 'Venice'].includes(city)));
assert.equal(called.steps[0].finishReason, 'tool-calls');
const inputs = [];
for await (const part of streamText({
  ...common, prompt, tools: { weather }, toolChoice: once, maxOutputTokens: 100,
}).fullStream) {
  assert.notEqual(part.type, 'error', String(part.error));
  if (part.type === 'tool-call') inputs.push(part.input);
}
assert(inputs.length > 0 && inputs.every(({ city }) => ['Paris', 'Venice'].includes(city)), JSON.stringify(inputs));

const { embeddings } = await embedMany({ model: provider.embeddingModel(name), values: [prompt, 'No.'], maxRetries: 0 });
assert(embeddings.length === 2 && embeddings[0].length === embeddings[1].length);

await assert.rejects(generateText({ ...common, model: provider('no-such-model'), prompt }), { statusCode: 404 });
