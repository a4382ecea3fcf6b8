// The tokens of an answer as pieces of its text, and how sure the model was of each.

// Pieces { text, from, to }: the text that tokens from..to-1 make, as much of `content` as they
// spell. Tokens that hold only part of a character go with the one that completes it. After
// reasoning, whose tokens come first, the content begins without blanks.
export function pieces(content, tokens, reasoned = false) {
  const found = [];
  const decoder = new TextDecoder();
  let at = 0;
  let from = reasoned ? begins(content, tokens) : 0;
  for (let to = from + 1; to <= tokens.length; to++) {
    let text = spelled(tokens[to - 1], decoder);
    if (reasoned && !found.length) text = text.trimStart();
    if (!text) continue;
    const shown = content.startsWith(text, at) ? text : content.slice(at, at + overlap(content, at, text));
    if (!shown) break;
    found.push({ text: shown, from, to });
    at += shown.length;
    from = to;
    if (shown !== text) break;
  }
  return { found, rest: content.slice(at) };
}

// The token at which the content begins: its text is the last that all tokens spell.
function begins(content, tokens) {
  const decoder = new TextDecoder();
  const texts = tokens.map((token) => spelled(token, decoder));
  let left = texts.join("").lastIndexOf(content);
  if (left < 0 || !content) return tokens.length;
  return texts.findIndex((text) => (left -= text.length) < 0);
}

function spelled(token, decoder) {
  const bytes = token.bytes ? new Uint8Array(token.bytes) : new TextEncoder().encode(token.text);
  return decoder.decode(bytes, { stream: true });
}

// A stop text may end inside a token.
function overlap(content, at, text) {
  let size = 0;
  while (at + size < content.length && content[at + size] === text[size]) size++;
  return size;
}

export const chance = (logprob) => Math.exp(logprob);

export function percent(probability) {
  if (probability >= 0.9995) return "100%";
  if (probability >= 0.1) return `${(probability * 100).toFixed(1)}%`;
  if (probability >= 0.0001) return `${(probability * 100).toFixed(2)}%`;
  return "<0.01%";
}

// Blanks and line ends made visible.
export function visible(text) {
  if (text.startsWith("bytes:")) return text.slice(6).replaceAll("\\x", "·");
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

// For a screen reader: what is said for a token.
export function spoken(text) {
  if (text.startsWith("bytes:")) return "part of a character";
  const named = text.replaceAll("\n", " line end ").trim();
  return named || (text ? "blank" : "nothing");
}

// How uncertain a choice was, 0 to 4, for shading.
export function heat(logprob) {
  const probability = chance(logprob);
  return [0.9, 0.6, 0.3, 0.1].filter((limit) => probability < limit).length;
}
