// The `openai` package for JavaScript; usage and output as in steps.py.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import assert from "node:assert/strict";

const [url, model, kind] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const story = "The red fox chased the blue bird.";
const ask = [{ role: "user", content: "Weather in Bern?" }];
const Trip = z.object({ city: z.string(), days: z.number().int() });
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const named = { name: "get_weather", description: "The weather.", parameters, strict: true };
const tools = [{ type: "function", function: named }];
const flat = [{ type: "function", ...named }];

const steps = {
  async models() {
    const found = [];
    for await (const each of client.models.list()) found.push(each.id);
    assert.deepEqual(found, [model]);
  },
  async chat() {
    const answer = await client.chat.completions.create({ model, messages: ask });
    assert.equal(answer.choices[0].message.content, story);
  },
  async chat_stream() {
    const stream = client.chat.completions.stream({ model, messages: ask });
    let text = "";
    stream.on("content", (delta) => (text += delta));
    assert.equal(await stream.finalContent(), story);
    assert.equal(text, story);
  },
  async chat_structured() {
    const answer = await client.chat.completions.parse({
      model,
      messages: ask,
      response_format: zodResponseFormat(Trip, "trip"),
    });
    assert.deepEqual(answer.choices[0].message.parsed, { city: "Bern", days: 2 });
  },
  async chat_tools() {
    const first = await client.chat.completions.create({ model, messages: ask, tools });
    const { message } = first.choices[0];
    const [call] = message.tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Bern" });
    const result = { role: "tool", tool_call_id: call.id, content: "rain over Bern" };
    const messages = [...ask, message, result];
    const second = await client.chat.completions.create({ model, messages, tools });
    assert.equal(second.choices[0].message.content, story);
  },
  async responses() {
    const answer = await client.responses.create({ model, input: "Hello" });
    assert.equal(answer.output_text, story);
  },
  async responses_stream() {
    let text = "";
    const stream = client.responses.stream({ model, input: "Hello" });
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const final = await stream.finalResponse();
    assert.equal(final.output_text, story);
    assert.equal(text, story);
  },
  async responses_structured() {
    const text = { format: zodTextFormat(Trip, "trip") };
    const answer = await client.responses.parse({ model, input: "Hello", text });
    assert.deepEqual(answer.output_parsed, { city: "Bern", days: 2 });
  },
  async responses_tools() {
    const first = await client.responses.create({ model, input: ask, tools: flat });
    const [call] = first.output;
    assert.deepEqual(JSON.parse(call.arguments), { city: "Bern" });
    const output = { type: "function_call_output", call_id: call.call_id, output: "rain" };
    const input = [...ask, ...first.output, output];
    const second = await client.responses.create({ model, input, tools: flat });
    assert.equal(second.output_text, story);
  },
  async real_chat() {
    const messages = [{ role: "user", content: "What is the capital of France?" }];
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 40, temperature: 0 });
    assert.match(answer.choices[0].message.content, /Paris/);
  },
};

for (const [step, run] of Object.entries(steps)) {
  if (step.startsWith("real") !== (kind === "real")) continue;
  try {
    await run();
    console.log(JSON.stringify({ step, ok: true }));
  } catch (error) {
    console.log(JSON.stringify({ step, ok: false, seen: String(error).slice(0, 400) }));
  }
}
