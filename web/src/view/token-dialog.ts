/** The field for the token that a server may need. */

import type { App } from "../app.ts";
import { Dialog } from "./dialog.ts";
import { h } from "./element.ts";

export function tokenDialog(app: App, onchange: () => void): Dialog {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: false, value: app.token });
  const about = "The server's operator gives out tokens. The browser forgets this one when the tab is closed.";
  const form = h(
    "form",
    { method: "dialog", class: "dialog-form" },
    h("label", {}, h("span", {}, "Token"), input),
    h("p", { class: "muted" }, about),
    h("div", { class: "dialog-buttons" }, h("button", { type: "submit", class: "primary" }, "Use token")),
  );
  form.addEventListener("submit", () => {
    app.setToken(input.value.trim());
    onchange();
  });
  return new Dialog("Token", [form]);
}
