// The conversation on the page: one article a message.

import { button, element, icon } from "./dom.js";
import { render } from "./markdown.js";
import { state } from "./store.js";
import { heat, pieces } from "./tokens.js";
import { answersOf } from "./turns.js";

const NAMES = { user: "You", assistant: "Model", tool: "Tool" };

// `acts`: edit(at, text), again(at), answerTool(at, call, text), look(article, token). `open` are
// the calls that wait for what their tools return.
export function article(message, at, acts, open) {
  const made = element("article", { class: message.role, "data-at": at });
  made.append(element("h2", { class: "hidden" }, NAMES[message.role]));
  if (message.beside?.length) fillBeside(made, message, at, acts, open);
  else if (message.role === "assistant") fillAnswer(made, message, at, acts, open);
  else if (message.role === "tool") made.append(toolResult(message));
  else fillQuestion(made, message, at, acts);
  return made;
}

function fillQuestion(made, message, at, acts) {
  made.append(element("div", { class: "text" }, message.content));
  const change = button("Edit", "pen", () => edit(made, message, at, acts));
  made.append(element("div", { class: "tools" }, copyButton(message), change));
}

function edit(made, message, at, acts) {
  const area = element("textarea", { "aria-label": "Your message, edited", rows: "3" });
  area.value = message.content;
  const back = () => {
    made.replaceChildren();
    made.append(element("h2", { class: "hidden" }, NAMES.user));
    fillQuestion(made, message, at, acts);
    made.querySelector("[aria-label=Edit]").focus();
  };
  const send = () => area.value.trim() && acts.edit(at, area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.preventDefault(); // it is not meant for the answer under way
      back();
    }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  const row = element("div", { class: "row" }, button("Cancel", "", back, { class: "plain" }),
    button("Send again", "", send, { class: "strong" }));
  made.replaceChildren(element("div", { class: "editor" }, area, row));
  area.focus();
  made.scrollIntoView({ block: "nearest" });
}

// The answers of several models to one message, each under its model's name.
function fillBeside(made, message, at, acts, open) {
  const columns = answersOf(message).map((one, number) => {
    const place = { class: "answer", "data-at": at, "data-beside": number };
    const column = element("section", place, element("h3", {}, one.model || "Model"));
    fillAnswer(column, one, at, acts, number ? [] : open);
    return column;
  });
  made.append(element("div", { class: "columns" }, ...columns));
}

// What came of an answer under way since it was drawn.
export function redraw(made, message) {
  const places = [...made.querySelectorAll(".answer")];
  answersOf(message).forEach((one, number) => {
    const place = places[number] || made;
    const text = place.querySelector(".text");
    if (one.started === undefined || !text) return;
    if (one.reasoning) {
      if (!place.querySelector(".reasoning")) text.before(reasoning(one));
      place.querySelector(".reasoning pre").textContent = one.reasoning;
    }
    text.replaceWith(answerText(one));
  });
}

// What a model wrote before its answer, folded.
function reasoning(message) {
  const summary = element("summary", {}, message.started === undefined ? "Reasoning" : "Reasoning…");
  return element("details", { class: "reasoning" }, summary, element("pre", {}, message.reasoning));
}

function fillAnswer(made, message, at, acts, open) {
  const text = answerText(message);
  if (message.reasoning) made.append(reasoning(message));
  text.hidden = !message.content && message.started === undefined;
  made.append(text);
  for (const call of message.calls || []) made.append(callCard(call, at, acts, open.includes(call)));
  if (message.guard) made.append(...guardLines(message.guard));
  if (message.finish === "content_filter" && !message.guard) {
    made.append(guardLine("refused", "The guard refused this."));
  }
  if (message.started === undefined) made.append(foot(message, at, acts, made));
  look(made, acts);
}

const asTokens = new WeakSet(); // answers whose tokens are wanted in place of their Markdown

// The text of an answer: as Markdown where it has some, else as its tokens.
function answerText(message) {
  const text = element("div", { class: "text" });
  const again = () => text.replaceWith(answerText(message));
  const rich = state.settings.markdown && !asTokens.has(message) && render(message.content, again);
  if (rich) {
    text.classList.add("rich");
    text.append(rich);
  } else if (!message.tokens?.length) {
    text.append(message.content);
  } else {
    const { found, rest } = pieces(message.content, message.tokens, Boolean(message.reasoning));
    for (const piece of found) text.append(tokenSpan(piece, message.tokens));
    text.append(rest);
  }
  if (message.started !== undefined) text.append(element("span", { class: "caret" }));
  return text;
}

function tokenSpan(piece, tokens) {
  const least = Math.min(...tokens.slice(piece.from, piece.to).map((token) => token.logprob));
  const data = { "data-token": piece.to - 1, "data-from": piece.from };
  return element("span", { class: `token heat${heat(least)}`, ...data }, piece.text);
}

// Clicking a token shows its choices; from the keyboard the arrows walk along the text.
function look(made, acts) {
  const text = made.querySelector(".text");
  if (!text.querySelector(".token")) return;
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "Answer. Press Enter to see each token's probabilities.");
  text.addEventListener("click", (event) => {
    const token = event.target.closest(".token");
    if (token && getSelection().isCollapsed) acts.look(made, Number(token.dataset.token));
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    acts.look(made, Number(text.querySelector(".token").dataset.from), true);
  });
}

function callCard(call, at, acts, open) {
  const card = element("div", { class: "card call" }, icon("wrench"));
  const shown = element("div", {}, element("strong", {}, call.name), element("pre", {}, pretty(call)));
  card.append(shown);
  if (open) {
    const area = element("textarea", { rows: "2", "aria-label": `What ${call.name} returned`,
      placeholder: "What the tool returned" });
    const send = button("Give it to the model", "", () => {
      area.remove();
      send.remove();
      acts.answerTool(at, call, area.value);
    }, { class: "plain" });
    shown.append(area, send);
  }
  return card;
}

function pretty(call) {
  try {
    return JSON.stringify(JSON.parse(call.arguments), null, 2);
  } catch {
    return call.arguments;
  }
}

function toolResult(message) {
  return element("div", { class: "card" }, icon("wrench"),
    element("div", {}, element("strong", {}, `${message.name} returned`),
      element("pre", {}, message.content)));
}

const SIDES = [["input", "Message"], ["output", "Answer"]];

// One quiet line where all was safe, and one that stands out for what was not.
function guardLines(guard) {
  const told = SIDES.filter(([side]) => guard[side]);
  const safe = told.filter(([side]) => guard[side].safe)
    .map(([side, whose]) => `${whose.toLowerCase()} safe (${unsafe(guard[side])})`);
  const lines = safe.length ? [guardLine("passed", `Guard: ${safe.join(", ")}`)] : [];
  for (const [side, whose] of told.filter(([side]) => !guard[side].safe)) {
    const named = guard[side].categories.map((one) => `${one.code} ${one.name}`).join(", ");
    const why = `${named || "no category named"} (${unsafe(guard[side])})`;
    lines.push(guardLine("refused", `${whose} refused by the guard: ${why}`));
  }
  if (guard.error) lines.push(guardLine("refused", `No verdict, so nothing passes: ${guard.error}`));
  return lines;
}

const unsafe = (verdict) => `${(verdict.unsafe_probability * 100).toFixed(1)}% unsafe`;

const guardLine = (kind, text) =>
  element("p", { class: `guard ${kind}` }, icon("shield"), element("span", {}, text));

// Between the Markdown of an answer and its tokens, which show their probabilities.
function tokensButton(message, made, acts) {
  const other = () => {
    if (!asTokens.delete(message)) asTokens.add(message);
    made.querySelector(".text").replaceWith(answerText(message));
    shown.setAttribute("aria-pressed", asTokens.has(message));
    look(made, acts);
  };
  const shown = button("Tokens and their probabilities", "tokens", other,
    { "aria-pressed": asTokens.has(message) });
  return shown;
}

function foot(message, at, acts, made) {
  const line = element("div", { class: "tools" }, copyButton(message),
    button("Answer again", "again", () => acts.again(at)));
  const rich = made.querySelector(".rich") || asTokens.has(message);
  if (rich && message.tokens?.length) line.append(tokensButton(message, made, acts));
  const figures = message.figures;
  const said = [];
  if (!message.content && !message.calls?.length && message.finish === "stop") {
    said.push("the answer is empty");
  } else if (figures) {
    said.push(`${figures.count} token${figures.count === 1 ? "" : "s"}`);
    if (Number.isFinite(figures.rate) && figures.rate > 0) said.push(`${figures.rate} a second`);
    said.push(`first after ${figures.first} ms`);
  }
  if (message.finish === "length") said.push("cut at the longest answer");
  if (message.finish === "stopped") said.push("stopped by you");
  if (message.finish === "broken") said.push("broke off");
  line.append(element("span", { class: "figures" }, said.join(" · ")));
  return line;
}

function copyButton(message) {
  return button("Copy", "copy", () => navigator.clipboard?.writeText(message.content));
}
