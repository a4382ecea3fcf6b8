// Conversations and settings, kept in this browser's localStorage.

const KEY = "llamaseek";

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
  theme: "",
  model: "",
};

export const state = read();

function read() {
  const empty = { chats: [], current: "", settings: {} };
  let kept;
  try {
    kept = JSON.parse(localStorage.getItem(KEY)) || empty;
  } catch {
    kept = empty;
  }
  kept.settings = { ...DEFAULTS, ...kept.settings };
  if (!Array.isArray(kept.chats)) kept.chats = [];
  return kept;
}

// Where there is no room, the probabilities of the oldest answers go first.
export function save() {
  for (;;) {
    try {
      localStorage.setItem(KEY, JSON.stringify(state));
      return;
    } catch {
      const scored = state.chats.toReversed().flatMap((chat) => chat.messages)
        .find((message) => message.tokens?.some((token) => token.top));
      if (!scored) return;
      scored.tokens = undefined;
    }
  }
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

export function removeChat(id) {
  state.chats = state.chats.filter((chat) => chat.id !== id);
  if (state.current === id) state.current = state.chats[0]?.id || "";
  save();
}

// The API key goes when the tab does.
export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => sessionStorage.setItem(KEY, value),
};
