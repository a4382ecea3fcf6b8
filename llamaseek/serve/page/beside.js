// Which other models answer beside the chosen one.

import { $, element } from "./dom.js";
import { save, state } from "./store.js";

// The models that a message is sent to, of those that the server has: the chosen one first.
export function asked(names) {
  const { model, beside } = state.settings;
  return [model, ...beside.filter((name) => name !== model && names.includes(name))];
}

// The list of models to put beside the chosen one; hidden where the server has one model.
export function listBeside(names) {
  const others = names.filter((name) => name !== state.settings.model);
  $("#beside").hidden = others.length === 0;
  $("#beside-names").replaceChildren(...others.map((name) => {
    const box = element("input", { type: "checkbox", value: name });
    box.checked = state.settings.beside.includes(name);
    box.addEventListener("change", () => {
      const rest = state.settings.beside.filter((one) => one !== name);
      state.settings.beside = box.checked ? [...rest, name] : rest;
      save();
      count(names);
    });
    return element("label", {}, box, name);
  }));
  count(names);
}

function count(names) {
  const more = asked(names).length - 1;
  $("#beside summary").textContent = more ? `Beside it: ${more}` : "Compare";
}
