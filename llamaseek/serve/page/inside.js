// A look inside the model at one token: attention, experts, what each layer would say, the cache.
// The server computes it when the panel is open, for the token and layer that are chosen.

import { internals } from "./api.js";
import { $, element } from "./dom.js";
import { current, state } from "./store.js";
import { percent, spoken, visible } from "./tokens.js";
import { answersOf, request } from "./turns.js";

const READ = 8; // tokens listed of those that are read most
const WAIT = 120; // ms without another choice before the server is asked
let asked = null; // the request's body without token and layer
let seen = null; // the server's latest answer
let at = 0; // the chosen token
let layer = 0;
let control = null;
let timer = 0;

// The conversation up to a message, and the message's tokens.
function conversation(message) {
  const { messages } = current();
  const model = message.model || state.settings.model;
  const place = messages.findIndex((one) => answersOf(one).includes(message));
  const { messages: before, tools } = request(messages.slice(0, place), state.settings, model);
  const answer = message.tokens.map((token) => token.text);
  return { model, messages: before, answer, ...(tools && { tools }) };
}

export function open({ message, at: place }) {
  asked = conversation(message);
  seen = null;
  layer = 0;
  at = place - message.tokens.length; // counted from the end until the server tells the length
  $("#inside-view").hidden = true;
  $("#inside").showModal();
  look();
}

async function look() {
  control?.abort();
  control = new AbortController();
  const { signal } = control;
  $("#inside").setAttribute("aria-busy", "true");
  tell(seen ? "" : "The model reads the text …");
  try {
    const answer = at < 0 ? asked.answer.slice(0, asked.answer.length + at + 1) : asked.answer;
    const body = { ...asked, answer, layer };
    if (at >= 0) body.token = at;
    const found = await internals(body, signal);
    if (at < 0) { // the whole answer's tokens are shown, also those after the chosen one
      found.tokens.push(...asked.answer.slice(answer.length));
      at = found.token;
    }
    seen = found;
    draw();
  } catch (error) {
    if (error.name === "AbortError") return;
    tell(error.message);
  }
  $("#inside").removeAttribute("aria-busy");
}

const tell = (text) => {
  $("#inside-status").textContent = text;
  $("#inside-status").hidden = !text;
};

function choose(token, which = layer) {
  const last = seen.tokens.length - 1;
  [at, layer] = [Math.min(Math.max(token, 0), last), which];
  mark();
  clearTimeout(timer);
  timer = setTimeout(look, WAIT);
}

function draw() {
  const heads = seen.attention.length;
  const select = $("#inside-head");
  if (select.options.length !== heads + 1) {
    select.replaceChildren(element("option", { value: "" }, "Mean of all heads"),
      ...seen.attention.map((_, head) => element("option", { value: head }, `Head ${head + 1}`)));
  }
  $("#inside-layer").max = seen.layers.length;
  $("#inside-view").hidden = false;
  $("#inside-text").replaceChildren(...seen.tokens.map(piece));
  drawAttention();
  drawLayers();
  drawExperts();
  drawCache();
  mark();
  tell("");
}

const piece = (text, token) => element("span", { "data-at": token }, shown(text));
const shown = (text) => (text.startsWith("bytes:") || !text.trim() ? visible(text) : text);

// What is known before the server answers: the chosen token and layer.
function mark() {
  $("#inside-layer").value = layer + 1;
  $("#inside-layer-shown").textContent = `${layer + 1} of ${seen.layers.length}`;
  $("#inside-place").textContent = `token ${at + 1} of ${seen.tokens.length}`;
  $("#inside-token").textContent = visible(seen.tokens[at]);
  $("#inside-token").setAttribute("aria-label", spoken(seen.tokens[at]));
  $("#inside-before").disabled = at === 0;
  $("#inside-after").disabled = at === seen.tokens.length - 1;
  for (const span of $("#inside-text").children) {
    span.classList.toggle("looked", Number(span.dataset.at) === at);
  }
  const chosen = $("#inside-text").children[at];
  const box = $("#inside-text");
  box.scrollTop = Math.max(0, chosen.offsetTop - box.offsetTop - box.clientHeight / 2);
}

function drawAttention() {
  const head = $("#inside-head").value;
  const rows = head === "" ? seen.attention : [seen.attention[Number(head)]];
  const weights = seen.attention[0].map((_, token) =>
    rows.reduce((sum, row) => sum + row[token], 0) / rows.length);
  const most = Math.max(...weights);
  for (const span of $("#inside-text").children) {
    span.style.setProperty("--weight", (weights[Number(span.dataset.at)] ?? 0) / most);
  }
  const order = weights.map((_, token) => token).sort((a, b) => weights[b] - weights[a]).slice(0, READ);
  $("#inside-read").replaceChildren(...order.map((token) =>
    bar(seen.tokens[token], weights[token], `token ${token + 1}`)));
}

function bar(text, share, place) {
  const fill = element("span", { class: "fill" });
  fill.style.setProperty("--share", share);
  const label = place ? `${spoken(text)}, ${place}` : spoken(text);
  return element("li", {}, element("code", { "aria-label": label, title: place }, visible(text)),
    element("span", { class: "track", "aria-hidden": "true" }, fill),
    element("span", { class: "share" }, percent(share)));
}

function drawLayers() {
  $("#inside-says").replaceChildren(...seen.layers.map(([best, ...others], index) => {
    const here = index === seen.layer ? { "aria-current": "true" } : {};
    const code = ([text]) => element("code", { "aria-label": spoken(text) }, visible(text));
    return element("tr", here, element("th", { scope: "row" }, String(index + 1)),
      element("td", {}, code(best)), element("td", { class: "share" }, percent(best[1])),
      element("td", { class: "others" }, ...others.map(code)));
  }));
}

function drawExperts() {
  const { experts } = seen;
  $("#inside-experts").hidden = !seen.expert_layers.length;
  if (!seen.expert_layers.length) return;
  $("#inside-dense").hidden = Boolean(experts);
  $("#inside-routed").hidden = !experts;
  if (!experts) return;
  const most = Math.max(...experts.load);
  $("#inside-load").replaceChildren(...experts.load.map((count, expert) => {
    const column = element("li", { title: `expert ${expert + 1}: ${count}` },
      element("span", { class: "hidden" }, `expert ${expert + 1}: ${count} tokens`));
    column.style.setProperty("--share", count / most);
    column.classList.toggle("chosen", experts.chosen[seen.token].includes(expert));
    return column;
  }));
  const rows = experts.chosen.map((chosen, token) => [chosen, token]).reverse();
  $("#inside-went").replaceChildren(...rows.map(([chosen, token]) => {
    const gates = experts.gates[token];
    return element("tr", {},
      element("th", { scope: "row" }, element("code", { "aria-label": spoken(seen.tokens[token]) },
        visible(seen.tokens[token]))),
      element("td", {}, chosen.map((expert, n) => `${expert + 1} (${gates[n].toFixed(2)})`).join(", ")));
  }));
}

function drawCache() {
  const { bytes_per_token: kept, full_bytes_per_token: full, latent } = seen.cache;
  const name = latent ? "The latent and its rotary key" : "Keys and values of groups of heads";
  const count = seen.token + 1;
  const times = (full / kept).toFixed(1);
  $("#inside-kept").replaceChildren(
    grown(name, kept, count, full * seen.tokens.length),
    grown("Keys and values of every head", full, count, full * seen.tokens.length));
  $("#inside-saved").textContent = kept < full
    ? `Each token adds ${size(kept)} in place of ${size(full)}: ${times} times less.`
    : `Each token adds ${size(kept)}: every head has keys and values of its own.`;
}

function grown(name, each, count, whole) {
  const fill = element("span", { class: "fill" });
  fill.style.setProperty("--share", (each * count) / whole);
  return element("li", {}, element("span", {}, name),
    element("span", { class: "share" }, `${count} × ${size(each)} = ${size(each * count)}`),
    element("span", { class: "track", "aria-hidden": "true" }, fill));
}

function size(bytes) {
  if (bytes < 10_000) return `${bytes.toLocaleString("en")} B`;
  return bytes < 1e7 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

export function setUp(chosen) {
  $("#look-inside").addEventListener("click", () => open(chosen()));
  $("#inside-before").addEventListener("click", () => choose(at - 1));
  $("#inside-after").addEventListener("click", () => choose(at + 1));
  $("#inside-layer").addEventListener("input", (event) => choose(at, Number(event.target.value) - 1));
  $("#inside-head").addEventListener("change", drawAttention);
  $("#inside-text").addEventListener("click", (event) => {
    const span = event.target.closest("[data-at]");
    if (span) choose(Number(span.dataset.at));
  });
  $("#inside-text").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(at + step);
  });
  $("#inside").addEventListener("close", () => {
    control?.abort();
    clearTimeout(timer);
    $("#look-inside").focus();
  });
}
