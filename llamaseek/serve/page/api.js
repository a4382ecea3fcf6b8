// The server's OpenAI-compatible API: the list of models, and a chat as a stream.

import { key } from "./store.js";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached. What you wrote is kept.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  let message = told?.error?.message || `The server answered ${response.status}.`;
  if (response.status === 429) message = `The server is busy; try again in ${wait || 1} s.`;
  throw new ApiError(response.status, message);
}

export async function models() {
  const listed = await (await call("v1/models")).json();
  return listed.data.map((model) => model.id);
}

// Prompts as those that a model was trained on.
export async function examples(model) {
  const path = `examples?model=${encodeURIComponent(model)}`;
  return (await (await call(path)).json()).data;
}

// What the model does at a token of a conversation.
export async function internals(body, signal) {
  return (await call("internals", { method: "POST", body: JSON.stringify(body), signal })).json();
}

// Yields the parsed events of a streamed chat.
export async function* chat(body, signal) {
  const options = { method: "POST", body: JSON.stringify(body), signal };
  const response = await call("v1/chat/completions", options);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const told = JSON.parse(data);
    if (told.error) throw new ApiError(500, told.error.message);
    yield told;
  }
  throw new ApiError(0, "The answer broke off. What came of it is kept.");
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The connection broke off. What came of the answer is kept.");
    }
    if (read.done) return;
    rest += read.value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      for (const line of part.split("\n")) {
        if (line.startsWith("data: ")) yield line.slice(6);
      }
    }
  }
}
