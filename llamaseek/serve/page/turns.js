// What is asked of the server, and how an answer grows from what it sends.

const TOP = 10;

// The messages of a chat as the API wants them, with a model's own answers; exchanges that the guard
// refused are left out.
export function request(messages, settings, model) {
  const body = {
    model,
    messages: [],
    stream: true,
    stream_options: { include_usage: true },
    temperature: settings.temperature,
    top_p: settings.top_p,
    max_tokens: settings.max_tokens,
    presence_penalty: settings.presence_penalty,
    frequency_penalty: settings.frequency_penalty,
  };
  if (settings.top_k > 0) body.top_k = settings.top_k;
  if (settings.seed !== "") body.seed = Number(settings.seed);
  const stops = settings.stop.split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  if (settings.probabilities) Object.assign(body, { logprobs: true, top_logprobs: TOP });
  if (settings.tools.trim()) body.tools = JSON.parse(settings.tools);
  if (settings.system.trim()) body.messages.push({ role: "system", content: settings.system });
  body.messages.push(...kept(messages.map((one) => ownAnswer(one, model))).map(plain));
  return body;
}

// What this model said where several answered; of an exchange with tools the first model's.
function ownAnswer(message, model) {
  const own = message.beside?.find((one) => one.model === model);
  return own?.content && !own.calls.length && !message.calls.length ? own : message;
}

function kept(messages) {
  const refused = new Set();
  messages.forEach((message, at) => {
    if (message.finish !== "content_filter") return;
    for (refused.add(at); at > 0 && messages[at].role !== "user"; ) refused.add(--at);
  });
  return messages.filter((message, at) => !refused.has(at) && !message.failed);
}

function plain(message) {
  if (message.role === "tool") {
    return { role: "tool", tool_call_id: message.call, content: message.content };
  }
  const said = { role: message.role, content: message.content };
  if (message.calls?.length) {
    said.content = message.content || null;
    said.tool_calls = message.calls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return said;
}

// Those of a message's calls that wait for what their tools return.
export function openCalls(messages, at) {
  const after = messages.slice(at + 1);
  if (after.some((message) => message.role !== "tool")) return [];
  const answered = after.map((message) => message.call);
  return (messages[at].calls || []).filter((call) => !answered.includes(call.id));
}

// An answer that nothing has been said of yet.
export function answer(model) {
  return { role: "assistant", model, content: "", reasoning: "", calls: [], tokens: [], finish: "",
    started: now() };
}

// All answers to one message: the first model's, then those beside it.
export const answersOf = (message) => [message, ...(message.beside || [])];

export const now = () => performance.now();

// Add what one event tells; true where there is something new to show.
export function grow(message, event) {
  if (event.usage) message.count = event.usage.completion_tokens;
  if (event.timings) message.rate = event.timings.predicted_per_second;
  const choice = event.choices?.[0];
  if (!choice) return Boolean(event.usage);
  if (choice.guard) message.guard = choice.guard;
  const { delta = {} } = choice;
  if (delta.content || delta.reasoning_content || choice.logprobs || delta.tool_calls) message.first ??= now();
  if (delta.reasoning_content) message.reasoning = (message.reasoning || "") + delta.reasoning_content;
  if (delta.content) message.content += delta.content;
  for (const entry of choice.logprobs?.content || []) message.tokens.push(scored(entry));
  for (const call of delta.tool_calls || []) addCall(message.calls, call);
  if (choice.finish_reason) message.finish = choice.finish_reason;
  return true;
}

// Numbers that take little room: four digits are more than a bar shows.
const short = (value) => Math.round(value * 1e4) / 1e4;

function scored(entry) {
  const top = (entry.top_logprobs || []).map((one) => [one.token, short(one.logprob)]);
  const token = { text: entry.token, logprob: short(entry.logprob), top };
  if (entry.token.startsWith("bytes:")) token.bytes = entry.bytes;
  return token;
}

function addCall(calls, part) {
  const call = (calls[part.index] ??= { id: "", name: "", arguments: "" });
  if (part.id) call.id = part.id;
  if (part.function?.name) call.name += part.function.name;
  if (part.function?.arguments) call.arguments += part.function.arguments;
}

// What was counted and timed becomes figures when the answer is over. The rate is the server's own:
// pieces may reach the browser all at once.
export function finish(message) {
  const { started, first, rate } = message;
  const count = message.count ?? message.tokens.length;
  if (first !== undefined) {
    message.figures = { count, first: Math.round(first - started), rate: Math.round(rate) };
  }
  for (const name of ["started", "first", "rate", "count"]) delete message[name];
}
