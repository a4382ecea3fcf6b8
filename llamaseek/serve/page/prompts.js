// System messages that are kept by name, in the settings.

import { button, element } from "./dom.js";
import { save, state } from "./store.js";

// The row below the box of the system message: choose one that is kept, keep this one, delete one.
export function promptRow(area) {
  const select = element("select", { "aria-label": "Prompts kept by name" });
  const name = element("input", { "aria-label": "Name to keep this prompt by", placeholder: "Name",
    maxlength: "60" });
  const use = (text) => {
    area.value = text;
    area.dispatchEvent(new Event("input"));
  };
  const fill = (chosen) => {
    const names = Object.keys(state.settings.prompts).sort();
    select.replaceChildren(element("option", { value: "" }, names.length ? "Choose one" : "None is kept"),
      ...names.map((one) => element("option", { value: one }, one)));
    select.value = chosen;
  };
  const change = (prompts, chosen) => {
    state.settings.prompts = prompts;
    save();
    fill(chosen);
  };
  select.addEventListener("change", () => {
    name.value = select.value;
    if (select.value) use(state.settings.prompts[select.value]);
  });
  const keep = button("Keep", "", () => {
    const called = name.value.trim();
    if (called) change({ ...state.settings.prompts, [called]: area.value }, called);
    else name.focus();
  }, { class: "plain" });
  const drop = button("Delete", "", () => {
    const { [select.value]: _, ...others } = state.settings.prompts;
    change(others, "");
    name.value = "";
  }, { class: "plain" });
  fill("");
  return element("div", { class: "prompts" }, select, name, keep, drop);
}
