// An answer's Markdown as elements: code, tables and maths, and nothing that runs or is fetched.
//
// HTML in the text is shown as it is written, pictures as links; what the libraries make of the rest
// passes DOMPurify with the tags and attributes below, and is set as a fragment, never as markup.

import { element } from "./dom.js";
import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const { DOMPurify } = globalThis;
const LONGEST = 200_000; // characters; a longer text is shown as it is
const LONGEST_CODE = 20_000; // characters of code that is coloured
const LANGUAGES = { bash: "sh shell zsh", c: "h", cpp: "c++ cc hpp", css: "", diff: "patch", go: "golang",
  java: "", javascript: "js jsx mjs", json: "jsonl", python: "py", rust: "rs", sql: "", typescript: "ts tsx",
  xml: "html svg", yaml: "yml" };
const NAMED = new Map(Object.entries(LANGUAGES).flatMap(([name, others]) =>
  [name, ...others.split(" ").filter(Boolean)].map((one) => [one, name])));
const PLAIN = new Set(["paragraph", "text", "space", "br", "html", "escape"]);

const HTML = "p br hr h1 h2 h3 h4 h5 h6 strong em del code pre blockquote ul ol li a span div "
  + "table thead tbody tr th td ";
const MATHS = "math semantics annotation mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup "
  + "munder mover munderover mtable mtr mtd mstyle mpadded mphantom menclose mmultiscripts mprescripts";
const ATTRIBUTES = "class align start title display encoding mathvariant mathcolor mathbackground "
  + "mathsize scriptlevel displaystyle stretchy fence separator lspace rspace width height depth voffset "
  + "columnalign columnspacing rowspacing columnlines rowlines linethickness accent accentunder notation "
  + "minsize maxsize largeop movablelimits symmetric";
const CLEAN = {
  ALLOWED_TAGS: (HTML + MATHS).split(" "),
  ALLOWED_ATTR: ["href", ...ATTRIBUTES.split(" ")],
  ADD_URI_SAFE_ATTR: ATTRIBUTES.split(" "), // values that are no addresses
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
});

// Libraries that only some answers need, by file: undefined, a promise, or what they export.
const loaded = new Map();

function library(file, again) {
  const found = loaded.get(file);
  if (found === undefined) {
    loaded.set(file, null);
    import(`./vendor/${file}`).then((made) => loaded.set(file, made)).then(again).catch(() => {});
  } else if (found === null) {
    setTimeout(again, 200); // another answer has asked for it
  }
  return found ?? null;
}

const escape = (text) => text.replace(/[&<>"']/g, (letter) => `&#${letter.codePointAt(0)};`);

let arrived = () => {}; // what to do when a library is there, of the answer under work

function code({ text, lang }) {
  const language = NAMED.get((lang || "").split(/\s/)[0].toLowerCase());
  const core = language && text.length <= LONGEST_CODE && library("highlight.min.js", arrived);
  const grammar = core && library(`highlight-${language}.min.js`, arrived);
  if (!grammar) return `<pre><code>${escape(text)}\n</code></pre>`;
  const hljs = core.default;
  if (!hljs.getLanguage(language)) hljs.registerLanguage(language, grammar.default);
  return `<pre><code>${hljs.highlight(text, { language }).value}\n</code></pre>`;
}

function maths({ text, shown }) {
  const there = library("katex.min.js", arrived);
  if (!there) return `<code>${escape(text)}</code>`;
  const made = globalThis.katex.renderToString(text, { displayMode: shown, output: "mathml",
    throwOnError: false, trust: false, strict: "ignore", maxSize: 20, maxExpand: 200 });
  return shown ? `<div class="maths">${made}</div>` : made;
}

// `$…$` begins and ends without a blank and is no price; `$$…$$`, `\(…\)` and `\[…\]` are as in TeX.
const INLINE = /^(?:\$\$([^$]+?)\$\$|\\\[([^]+?)\\\]|\\\(([^]+?)\\\)|\$(?!\s)((?:\\[^]|[^\\$\n])+?)(?<!\s)\$(?!\d))/;
const BLOCK = /^ {0,3}(?:\$\$([^]+?)\$\$|\\\[([^]+?)\\\])[ \t]*(?:\n|$)/;

function read(type, pattern, source) {
  const found = pattern.exec(source);
  if (!found) return undefined;
  const [raw, dollars, brackets, parentheses, dollar] = found;
  const text = (dollars ?? brackets ?? parentheses ?? dollar).trim();
  return { type, raw, text, shown: dollars !== undefined || brackets !== undefined };
}

const marked = new Marked({
  gfm: true,
  extensions: [
    { name: "maths", level: "inline", start: (source) => /\$|\\[([]/.exec(source)?.index,
      tokenizer: (source) => read("maths", INLINE, source), renderer: maths },
    { name: "shown-maths", level: "block", start: (source) => /(?:^|\n) {0,3}(?:\$\$|\\\[)/.exec(source)?.index,
      tokenizer: (source) => read("shown-maths", BLOCK, source), renderer: maths },
  ],
  renderer: {
    code,
    html: ({ raw, text }) => escape(raw ?? text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

// The elements of a text that has Markdown in it; null for one of plain paragraphs. `again` is called
// when a library has arrived that a part of the text needs.
export function render(text, again) {
  if (text.length > LONGEST) return null;
  arrived = again;
  try {
    const tokens = marked.lexer(text);
    let rich = false;
    marked.walkTokens(tokens, (token) => { rich ||= !PLAIN.has(token.type); });
    return rich ? finished(DOMPurify.sanitize(marked.parser(tokens), CLEAN)) : null;
  } catch (error) {
    console.warn("Markdown:", error);
    return null; // the text is shown as it is
  }
}

// Blocks of code that can be copied, wide tables that scroll, and the direction of each block's script.
function finished(fragment) {
  // Of a list or table as a whole: a part with a direction of its own would not count for it.
  for (const block of fragment.querySelectorAll("p, h1, h2, h3, h4, h5, h6, blockquote, table, ul, ol")) {
    if (!block.parentElement?.closest("[dir]")) block.dir = "auto";
  }
  // No line begins with the comma after a formula.
  for (const formula of fragment.querySelectorAll(".katex")) {
    const after = formula.nextSibling;
    const [mark] = /^[,.;:!?)\]]+/.exec(after?.data) ?? [];
    if (!mark) continue;
    after.data = after.data.slice(mark.length);
    const box = element("span", { class: "unbroken" });
    formula.replaceWith(box);
    box.append(formula, mark);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = element("div", { class: "wide-table", tabindex: "0", role: "group", "aria-label": "Table" });
    table.replaceWith(box);
    box.append(table);
  }
  for (const block of fragment.querySelectorAll("pre")) {
    const copy = () => navigator.clipboard?.writeText(block.textContent);
    const box = element("div", { class: "code" });
    block.replaceWith(box);
    block.tabIndex = 0;
    box.append(block, element("button", { type: "button", class: "plain", onclick: copy }, "Copy code"));
  }
  return fragment;
}
