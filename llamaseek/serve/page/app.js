// The chat page: what happens when something is said, stopped, edited or chosen.

import { ApiError, chat as ask, examples, models } from "./api.js";
import { asked, listBeside } from "./beside.js";
import { $, button, element } from "./dom.js";
import { setUp as setUpInside } from "./inside.js";
import * as inspector from "./inspector.js";
import { article, redraw } from "./messages.js";
import * as settings from "./settings.js";
import { addChats, current, follow, gather, key, removeChat, save, startChat, state } from "./store.js";
import { download, read as readFile } from "./transfer.js";
import { answer, answersOf, finish, grow, openCalls, request } from "./turns.js";

let working = null; // the AbortController of the answer under way
let served = []; // names of models
let listed; // resolves once the server has told its models, or has not
const NO_ROOM = "This browser has no room left: what is new is not kept.";
const acts = { edit, again, answerTool, look };

function say(text) {
  const chat = current() || startChat();
  chat.title ||= text.slice(0, 60);
  chat.messages.push({ role: "user", content: text });
  respond(chat);
}

function edit(at, text) {
  stop();
  const chat = current();
  chat.messages.splice(at, Infinity, { role: "user", content: text });
  if (at === 0) chat.title = text.slice(0, 60);
  respond(chat);
}

function again(at) {
  stop();
  const chat = current();
  chat.messages.splice(at);
  respond(chat);
}

function answerTool(at, call, text) {
  const chat = current();
  const result = { role: "tool", call: call.id, name: call.name, content: text };
  chat.messages.push(result);
  if (!openCalls(chat.messages, at).length) {
    respond(chat);
    return;
  }
  save(chat);
  $("#log").append(article(result, chat.messages.length - 1, acts, []));
}

async function respond(chat) {
  stop();
  notify("");
  const control = new AbortController();
  const message = answer();
  const before = [...chat.messages];
  try {
    request(before, state.settings);
  } catch (error) {
    save(chat);
    show();
    return notify(`Settings, Tools: ${error.message}`, () => respond(chat));
  }
  working = control;
  save(chat);
  chat.messages.push(message);
  show();
  announce("The model answers.");
  try {
    await Promise.race([listed, aborted(control.signal)]);
    const [model, ...others] = asked(served);
    message.model = model;
    if (others.length) message.beside = others.map(answer);
    if (others.length && current() === chat) show();
  } catch { /* it was stopped: so is each answer */ }
  await Promise.all(answersOf(message).map((one) => stream(chat, message, one, before, control)));
  if (working === control) working = null;
  if (!save(chat)) notify(NO_ROOM);
  if (working) return;
  if (current() === chat) settle(chat, message);
  else showBusy();
}

// One model's answer: `one` is `message` or stands beside it.
async function stream(chat, message, one, before, control) {
  try {
    control.signal.throwIfAborted();
    const body = request(before, state.settings, one.model);
    for await (const event of ask(body, control.signal)) {
      if (grow(one, event)) paint(chat, message);
    }
    announce(one.content || "The answer is empty.");
  } catch (error) {
    fail(chat, message, one, error);
  }
  finish(one);
}

// An answer is over: only its article is made anew, so that what is open elsewhere stays.
function settle(chat, message) {
  const at = chat.messages.indexOf(message);
  const shown = $("#log").lastElementChild;
  if (at < 0 || shown.dataset.at !== String(at)) return show();
  const near = atEnd();
  shown.replaceWith(article(message, at, acts, openCalls(chat.messages, at)));
  showBusy();
  if (near) toEnd();
}

function fail(chat, message, one, error) {
  if (error.name === "AbortError") {
    one.finish = "stopped";
    announce("Stopped.");
  } else {
    one.finish = "broken";
    const retry = error.status === 401 ? undefined : () => {
      const at = chat.messages.indexOf(message);
      chat.messages.splice(at < 0 ? chat.messages.length : at);
      respond(chat);
    };
    notify(error instanceof ApiError ? error.message : `The page failed: ${error.message}`, retry);
    if (error.status === 401) askForKey(chat);
    if (error.status === 404) listModels(); // the server has others by now
  }
  const at = chat.messages.indexOf(message);
  if (at >= 0 && !message.beside && !one.content && !one.calls.length) chat.messages.splice(at, 1);
}

const aborted = (signal) => new Promise((_, reject) => {
  signal.addEventListener("abort", () => reject(signal.reason));
});

function stop() {
  working?.abort();
  working = null;
}

function askForKey(chat) {
  const dialog = $("#key");
  dialog.showModal();
  dialog.onclose = async () => {
    if (dialog.returnValue !== "use") return;
    key.set($("#key-value").value);
    $("#set-key").value = key.get();
    notify("");
    await listModels();
    if (chat?.messages.at(-1)?.role === "user") respond(chat);
  };
}

function notify(text, retry) {
  const notice = $("#notice");
  notice.replaceChildren(element("span", {}, text));
  if (retry) notice.append(button("Try again", "", retry, { class: "plain" }));
  notice.hidden = !text;
}

const announce = (text) => { $("#status").textContent = text; };

// Everything anew, from what is kept.
function show() {
  const chat = current();
  const messages = chat?.messages || [];
  inspector.close();
  const log = $("#log");
  log.replaceChildren(...messages.map((m, at) => article(m, at, acts, openCalls(messages, at))));
  if (!messages.length) log.append(welcome());
  $("#title").textContent = chat?.title || "New conversation";
  document.title = chat?.title ? `${chat.title} · llamaseek` : "llamaseek";
  heat();
  showBusy();
  listChats();
  toEnd();
}

function showBusy() {
  const busy = Boolean(working);
  $("#send").hidden = busy;
  $("#stop").hidden = !busy;
  $("#log").setAttribute("aria-busy", busy);
}

function welcome() {
  return element("div", { class: "welcome" }, element("p", {}, "Ask the model something."),
    element("p", { class: "quiet" }, "Then click a word of its answer to see what it weighed there."),
    element("ul", { class: "examples", "aria-label": "What the model was trained on" },
      ...offered.map((text) => element("li", {}, button(text, "", () => working || say(text))))));
}

let offered = []; // prompts as the chosen model was trained on

async function offerExamples() {
  const { model } = state.settings;
  const found = await examples(model).catch(() => []);
  if (model !== state.settings.model) return;
  offered = found;
  $(".welcome")?.replaceWith(welcome());
}

// Conversations of a file that was chosen.
async function bring(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    const { chats, left, prompts } = await readFile(file);
    const room = addChats(chats, prompts);
    settings.setUp(heat);
    show();
    const skipped = left ? ` ${left} could not be read.` : "";
    notify(room && !left ? "" : `${chats.length} conversations imported.${skipped}${room ? "" : NO_ROOM}`);
    announce(`${chats.length} conversations imported.${skipped}`);
  } catch (error) {
    notify(error.message);
  }
}

// Only the answer under way, at most once a frame.
let painting = false;
function paint(chat, message) {
  if (painting || current() !== chat) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    if (current() !== chat) return;
    const near = atEnd();
    const shown = $("#log").lastElementChild;
    if (shown) redraw(shown, message);
    if (near) toEnd();
  });
}

const atEnd = () => {
  const box = $("#scroll");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
};
const toEnd = () => { $("#scroll").scrollTop = $("#scroll").scrollHeight; };

function listChats() {
  $("#chats").replaceChildren(...state.chats.map((chat) => {
    const here = chat.id === state.current;
    const name = chat.title || "New conversation";
    const pick = button(name, "", () => go(chat.id), { class: "chat" });
    if (here) pick.setAttribute("aria-current", "true");
    const drop = button(`Delete “${name}”`, "bin", () => {
      if (here) stop();
      removeChat(chat.id);
      show();
      $("#new-chat").focus();
    }, { class: "icon" });
    return element("li", {}, pick, drop);
  }));
}

function go(id) {
  stop();
  notify("");
  state.current = id;
  save();
  show();
  drawer(false);
  $("#prompt").focus();
}

function look(shown, at, focus) {
  const message = current().messages[Number(shown.dataset.at)];
  inspector.open(shown, answersOf(message)[Number(shown.dataset.beside || 0)], at, focus);
}

function drawer(open) {
  document.body.classList.toggle("drawn", open);
  $("#shade").hidden = !open;
  $("#menu").setAttribute("aria-expanded", open);
}

function listModels() {
  listed = showModels();
  return listed;
}

async function showModels() {
  const select = $("#model");
  try {
    const names = await models();
    served = names;
    select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    if (!names.includes(state.settings.model)) state.settings.model = names[0];
    select.value = state.settings.model;
    listBeside(names);
    offerExamples();
  } catch (error) {
    if (error.status === 401) askForKey();
    else notify(error.message, () => { notify(""); listModels(); });
  }
}

function grown() {
  const prompt = $("#prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, 220)}px`;
}

// Another tab has kept something.
function refresh() {
  const shown = JSON.stringify(current());
  const theirs = gather();
  if (!$("#settings").open) {
    Object.assign(state.settings, theirs);
    settings.setUp(heat);
    settings.theme();
    $("#model").value = state.settings.model;
  }
  if (JSON.stringify(current()) === shown) listChats();
  else show();
}

const heat = () => document.body.classList.toggle("warm", state.settings.heat);

function setUp() {
  setUpInside(inspector.chosen);
  inspector.setUp(); // first, so that Escape closes it before it stops an answer
  const prompt = $("#prompt");
  $("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = prompt.value.trim();
    if (!text || working) return;
    prompt.value = "";
    grown();
    say(text);
  });
  prompt.addEventListener("input", grown);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("#composer").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.target.closest?.("dialog")) return;
    if (document.body.classList.contains("drawn")) drawer(false);
    else stop();
  });
  $("#stop").addEventListener("click", () => { stop(); prompt.focus(); });
  $("#new-chat").addEventListener("click", () => go(""));
  $("#menu").addEventListener("click", () => drawer(!document.body.classList.contains("drawn")));
  $("#shade").addEventListener("click", () => drawer(false));
  $("#open-settings").addEventListener("click", () => $("#settings").showModal());
  $("#theme").addEventListener("click", settings.otherTheme);
  $("#model").addEventListener("change", (event) => {
    state.settings.model = event.target.value;
    save();
    listBeside(served);
    offerExamples();
  });
  $("#export").addEventListener("click", () => download(state.chats, state.settings.prompts));
  $("#import").addEventListener("click", () => $("#import-file").click());
  $("#import-file").addEventListener("change", bring);
  settings.setUp(heat);
  settings.theme();
  follow(refresh);
  for (const message of state.chats.flatMap((chat) => chat.messages).flatMap(answersOf)) {
    if (message.started !== undefined) finish(Object.assign(message, { finish: "broken" }));
  }
  show();
  prompt.focus();
  listModels();
}

setUp();
