// The settings: how answers are drawn, the system message, tools, and how the page looks.

import { $, element } from "./dom.js";
import { promptRow } from "./prompts.js";
import { DEFAULTS, key, save, state } from "./store.js";

const FIELDS = [
  ["system", "System message", "area", "Said to the model before the conversation."],
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.05 }, "0 takes the likeliest token each time."],
  ["top_p", "Top-p", { min: 0.05, max: 1, step: 0.05 }, "Keep the likeliest tokens up to this much probability."],
  ["top_k", "Top-k", { min: 0, max: 100, step: 1 }, "Keep this many tokens; 0 keeps all."],
  ["max_tokens", "Longest answer", { min: 1, max: 4096, step: 1, exact: true }, "In tokens."],
  ["presence_penalty", "Presence penalty", { min: -2, max: 2, step: 0.1 }, "Against words that were said."],
  ["frequency_penalty", "Frequency penalty", { min: -2, max: 2, step: 0.1 }, "Against words said often."],
  ["seed", "Seed", "number", "The same seed gives the same answer; empty is a new one each time."],
  ["stop", "Stop before", "area", "An answer ends before any of these texts, one a line."],
  ["tools", "Tools", "json", "A JSON list of functions that the model may call, as in OpenAI's API."],
  ["markdown", "Show Markdown", "check", "Code, tables and maths as such; else answers as they are written."],
  ["probabilities", "Ask for probabilities", "check", "What you see when you click a word."],
  ["heat", "Shade uncertain words", "check", "The less likely a token was, the stronger."],
];

export function setUp(changed) {
  const fields = $("#fields");
  fields.replaceChildren();
  for (const [name, label, kind, hint] of FIELDS) fields.append(field(name, label, kind, hint, changed));
  fields.append(keyField(), element("button", { type: "button", class: "plain", onclick: () => {
    const { model, theme, beside, prompts } = state.settings;
    Object.assign(state.settings, DEFAULTS, { model, theme, beside, prompts });
    save();
    setUp(changed);
    changed();
  } }, "Back to the defaults"));
}

function field(name, label, kind, hint, changed) {
  const id = `set-${name}`;
  const input = control(kind, id);
  const set = (value) => {
    state.settings[name] = value;
    save();
    changed();
  };
  const row = element("div", { class: kind === "check" ? "field check" : "field" },
    element("label", { for: id }, label), input, element("p", { class: "quiet", id: `${id}-hint` }, hint));
  input.setAttribute("aria-describedby", `${id}-hint`);
  if (kind === "check") {
    input.checked = state.settings[name];
    input.addEventListener("change", () => set(input.checked));
  } else if (typeof kind === "object") {
    numeric(row, input, name, set);
  } else {
    input.value = state.settings[name];
    input.addEventListener("input", () => set(input.value));
  }
  if (name === "system") row.append(promptRow(input));
  if (kind === "json") input.addEventListener("change", () => checkTools(input));
  return row;
}

function control(kind, id) {
  if (kind === "area" || kind === "json") return element("textarea", { id, rows: "3", spellcheck: "false" });
  if (kind === "check") return element("input", { id, type: "checkbox", role: "switch" });
  if (kind === "number") return element("input", { id, type: "number", min: "0", step: "1" });
  const { exact, ...range } = kind;
  return element("input", { id, type: exact ? "number" : "range", ...range });
}

function numeric(row, input, name, set) {
  const shown = element("output", { for: input.id });
  const show = () => { shown.textContent = state.settings[name]; };
  input.value = state.settings[name];
  input.addEventListener("input", () => {
    if (!input.checkValidity() || input.value === "") return;
    set(Number(input.value));
    show();
  });
  show();
  if (input.type === "range") row.querySelector("label").after(shown);
}

function checkTools(input) {
  let said = "";
  try {
    const tools = input.value.trim() ? JSON.parse(input.value) : [];
    if (!Array.isArray(tools)) said = "This is not a list.";
  } catch (error) {
    said = `This is not JSON: ${error.message}`;
  }
  input.setCustomValidity(said);
  input.reportValidity();
}

function keyField() {
  const input = element("input", { id: "set-key", type: "password", autocomplete: "off" });
  input.value = key.get();
  input.addEventListener("input", () => key.set(input.value));
  return element("div", { class: "field" }, element("label", { for: "set-key" }, "API key"), input,
    element("p", { class: "quiet" }, "Only where the server asks for one; kept until this tab is closed."));
}

// Dark, light, or as the system has it.
export function theme(next) {
  if (next !== undefined) {
    state.settings.theme = next;
    save();
  }
  document.documentElement.dataset.theme = state.settings.theme;
}

export function otherTheme() {
  const dark = state.settings.theme === "dark"
    || (!state.settings.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  theme(dark ? "light" : "dark");
}
