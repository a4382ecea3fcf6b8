// Conversations as a file: exported from this browser, imported into another.

import { isChat } from "./kept.js";

const KIND = "llamaseek conversations";
const LARGEST = 50_000_000; // bytes of a file that is read

export function download(chats, prompts) {
  const text = JSON.stringify({ kind: KIND, version: 1, chats, prompts }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `conversations-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The conversations and system messages of such a file; an error that says why it is none.
export async function read(file) {
  if (file.size > LARGEST) throw new Error(`${file.name} has more than ${LARGEST / 1e6} MB.`);
  let given = null;
  try {
    given = JSON.parse(await file.text());
  } catch { /* reported below */ }
  if (given?.kind !== KIND || !Array.isArray(given.chats)) {
    throw new Error(`${file.name} is no file of conversations that this page exported.`);
  }
  const chats = given.chats.filter(isChat);
  const prompts = Object.entries(given.prompts || {}).filter(([, text]) => typeof text === "string");
  return { chats, left: given.chats.length - chats.length, prompts: Object.fromEntries(prompts) };
}
