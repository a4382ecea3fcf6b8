// Whether what the browser kept is what this page writes: another version may have kept something else.

const isText = (value) => typeof value === "string";
const isList = (value, each) => Array.isArray(value) && value.every(each);
export const isChat = (chat) => isText(chat?.id) && isText(chat.title) && isList(chat.messages, isMessage);
const isMessage = (said) => ["user", "assistant", "tool"].includes(said?.role) && isText(said.content)
  && isList(said.calls ?? [], (call) => isText(call?.name) && isText(call.arguments))
  && isText(said.reasoning ?? "") && isText(said.model ?? "") && isList(said.tokens ?? [], isToken)
  && isList(said.beside ?? [], (one) => one?.role === "assistant" && !one.beside && isMessage(one));
const isToken = (token) => isText(token?.text) && Number.isFinite(token.logprob)
  && isList(token.top, (one) => isList(one, (part) => part !== null));

// Settings that are no single value.
const isTexts = (value) => value !== null && Object.values(value).every(isText);
export const fits = (name, value) => typeof value !== "object"
  || (name === "beside" ? isList(value, isText) : !Array.isArray(value) && isTexts(value));
