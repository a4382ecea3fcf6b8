// The probabilities that the model had at one place of an answer.

import { $, element } from "./dom.js";
import { chance, percent, spoken, visible } from "./tokens.js";

let shown = null; // { article, message, at }

export function open(article, message, at, focus) {
  shown = { article, message, at };
  draw();
  $("#inspector").hidden = false;
  document.body.classList.add("inspecting");
  if (focus) $("#next").focus();
}

export function close() {
  const was = shown;
  mark(null);
  shown = null;
  $("#inspector").hidden = true;
  document.body.classList.remove("inspecting");
  return was;
}

function walk(step) {
  if (!shown) return;
  shown.at = Math.min(Math.max(shown.at + step, 0), shown.message.tokens.length - 1);
  draw();
}

function draw() {
  const { message, at } = shown;
  const token = message.tokens[at];
  const rank = token.top.findIndex(([text]) => text === token.text);
  $("#choices").replaceChildren(said(token, rank), bars(token), remark(token));
  $("#place").textContent = `token ${at + 1} of ${message.tokens.length}`;
  $("#previous").disabled = at === 0;
  $("#next").disabled = at === message.tokens.length - 1;
  mark(at);
}

function said(token, rank) {
  const place = rank < 0 ? "not among the likeliest" : rank ? `choice ${rank + 1}` : "first choice";
  return element("p", { class: "said" },
    element("code", { "aria-label": spoken(token.text) }, visible(token.text)),
    element("span", {}, `${percent(chance(token.logprob))} likely, ${place}`));
}

function bars(token) {
  const rows = [...token.top];
  if (!rows.some(([text]) => text === token.text)) rows.push([token.text, token.logprob]);
  const list = element("ol", { class: "bars" });
  for (const [text, logprob] of rows) list.append(bar(text, logprob, text === token.text));
  const rest = 1 - rows.reduce((sum, [, logprob]) => sum + chance(logprob), 0);
  if (rest > 0.0005) list.append(row("any other", "any other token", rest, "rest"));
  return list;
}

const bar = (text, logprob, chosen) =>
  row(visible(text), spoken(text) + (chosen ? ", chosen" : ""), chance(logprob), chosen ? "chosen" : "");

function row(text, label, probability, kind) {
  const fill = element("span", { class: "fill" });
  fill.style.setProperty("--share", probability);
  return element("li", { class: kind },
    element("code", { "aria-label": label }, text),
    element("span", { class: "track", "aria-hidden": "true" }, fill),
    element("span", { class: "share" }, percent(probability)));
}

function remark(token) {
  const bits = -token.logprob / Math.LN2;
  const surprise = bits < 0.05 ? "no surprise" : `${bits.toFixed(1)} bits of surprise`;
  return element("p", { class: "quiet" },
    `${surprise}. These are the model's own probabilities, before temperature and top-p.`);
}

function mark(at) {
  for (const was of document.querySelectorAll(".token.looked")) was.classList.remove("looked");
  if (at === null || !shown) return;
  for (const span of shown.article.querySelectorAll(".token")) {
    if (at < Number(span.dataset.from) || at > Number(span.dataset.token)) continue;
    span.classList.add("looked");
    span.scrollIntoView({ block: "nearest" });
  }
}

export const chosen = () => shown;

export function setUp() {
  const leave = () => close()?.article.querySelector(".text")?.focus();
  $("#previous").addEventListener("click", () => walk(-1));
  $("#next").addEventListener("click", () => walk(1));
  $("#close-inspector").addEventListener("click", leave);
  document.addEventListener("keydown", (event) => {
    const inside = event.target.closest?.("#inspector, article .text");
    if (!shown || !inside) return;
    if (event.key === "ArrowLeft") walk(-1);
    else if (event.key === "ArrowRight") walk(1);
    else if (event.key === "Escape") leave();
    else return;
    event.preventDefault();
  });
}
