// Whether what the browser kept is what this page writes: another version may have kept something else.

const isText = (value) => typeof value === "string";
const isList = (value, each) => Array.isArray(value) && value.every(each);
export const isChat = (chat) => isText(chat?.id) && isText(chat.title) && isList(chat.messages, isMessage);
const isMessage = (said) => ["user", "assistant", "tool"].includes(said?.role) && isText(said.content)
  && isList(said.calls ?? [], (call) => isText(call?.name) && isText(call.arguments))
  && isList(said.tokens ?? [], isToken);
const isToken = (token) => isText(token?.text) && Number.isFinite(token.logprob)
  && isList(token.top, (one) => isList(one, (part) => part !== null));
