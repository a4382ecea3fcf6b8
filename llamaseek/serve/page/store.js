// Conversations and settings, kept in this browser's localStorage.

import { fits, isChat } from "./kept.js";

const KEY = "llamaseek";
const HERE = "llamaseek-here"; // the conversation that this tab shows

export const DEFAULTS = {
  system: "",
  temperature: 0,
  top_p: 1,
  top_k: 0,
  max_tokens: 256,
  presence_penalty: 0,
  frequency_penalty: 0,
  seed: "",
  stop: "",
  tools: "",
  probabilities: true,
  heat: true,
  markdown: true,
  theme: "",
  model: "",
  beside: [], // names of models that answer beside the chosen one
  prompts: {}, // system messages by name
};

// Where a browser keeps nothing, the page still works while it is open.
const [local, session] = ["localStorage", "sessionStorage"].map((name) => {
  try {
    return window[name];
  } catch {
    const kept = new Map();
    return { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  }
});
let stored = new Set(); // ids of the conversations that this browser keeps, as far as we know
export const state = read();
state.current = session.getItem(HERE) ?? state.current;

// What is kept, as far as this page can have written it.
function read() {
  let kept = null;
  try {
    kept = JSON.parse(local.getItem(KEY));
  } catch { /* it is no JSON */ }
  const settings = { ...DEFAULTS };
  for (const [name, value] of Object.entries(kept?.settings || {})) {
    if (typeof value === typeof DEFAULTS[name] && fits(name, value)) settings[name] = value;
  }
  const chats = Array.isArray(kept?.chats) ? kept.chats.filter(isChat) : [];
  stored = new Set(chats.map((chat) => chat.id));
  return { chats, current: String(kept?.current ?? ""), settings };
}

// Keep everything, after `chat` has changed; whether there was room.
export function save(chat) {
  if (chat) {
    chat.at = Date.now();
    state.chats = state.chats.map((one) => (one.id === chat.id ? chat : one));
  }
  gather();
  return write();
}

// What other tabs have kept: of a conversation the newer stands, and what they deleted goes.
// Gives their settings.
export function gather() {
  const before = stored;
  const ours = new Map(state.chats.map((chat) => [chat.id, chat]));
  const kept = read();
  const fresh = state.chats.filter((chat) => !stored.has(chat.id) && !before.has(chat.id));
  state.chats = [...fresh, ...kept.chats.map((theirs) => newer(ours.get(theirs.id), theirs))];
  return kept.settings;
}

const newer = (ours, theirs) => (ours && (ours.at ?? 0) >= (theirs.at ?? 0) ? ours : theirs);

// Where there is no room, the probabilities of the oldest answers go first.
function write() {
  for (;;) {
    try {
      session.setItem(HERE, state.current);
      local.setItem(KEY, JSON.stringify(state));
      stored = new Set(state.chats.map((chat) => chat.id));
      return true;
    } catch {
      const scored = state.chats.toReversed().flatMap((chat) => chat.messages)
        .find((message) => message.tokens?.some((token) => token.top));
      if (!scored) return false;
      scored.tokens = undefined;
    }
  }
}

export function follow(changed) {
  addEventListener("storage", (event) => {
    if (event.key === KEY) changed();
  });
}

export function current() {
  return state.chats.find((chat) => chat.id === state.current) || null;
}

export function startChat() {
  const chat = { id: crypto.randomUUID?.() || String(Math.random()), title: "", messages: [] };
  state.chats.unshift(chat);
  state.current = chat.id;
  return chat;
}

// Conversations of a file: those that are here already stay as they are, unless the file's are newer.
export function addChats(chats, prompts) {
  const ours = new Map(state.chats.map((chat) => [chat.id, chat]));
  const fresh = chats.filter((chat) => !ours.has(chat.id));
  const theirs = new Map(chats.map((chat) => [chat.id, chat]));
  state.chats = [...fresh, ...state.chats.map((chat) => newer(chat, theirs.get(chat.id) || chat))];
  state.settings.prompts = { ...prompts, ...state.settings.prompts };
  state.current ||= state.chats[0]?.id || "";
  return save();
}

export function removeChat(id) {
  gather();
  state.chats = state.chats.filter((chat) => chat.id !== id);
  if (state.current === id) state.current = state.chats[0]?.id || "";
  write();
}

// The API key goes when the tab does.
export const key = {
  get: () => session.getItem(KEY) || "",
  set: (value) => session.setItem(KEY, value),
};
