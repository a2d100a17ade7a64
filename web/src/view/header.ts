/** The top of the page: models, the server's state, token, theme, help. */

import type { App } from "../app.ts";
import type { Theme } from "../settings.ts";
import { h, replaceIfChanged } from "./element.ts";
import { icon, type IconName } from "./icons.ts";

export interface HeaderActions {
  openModels(): void;
  openToken(): void;
  openHelp(): void;
}

const NEXT_THEME: Record<Theme, Theme> = { auto: "light", light: "dark", dark: "auto" };

export function header(app: App, status: HTMLElement, actions: HeaderActions): HTMLElement {
  const logo = h("span", { class: "logo", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
  return h(
    "header",
    { class: "page-header" },
    h("h1", {}, logo, h("span", { class: "logo-name" }, "Kinetoscope")),
    h("div", { class: "model-choice" }, modelSelect(app), compareSelect(app), iconButton("list", "Models and their labels", actions.openModels)),
    h("span", { class: "space" }),
    status,
    iconButton("key", "Token", actions.openToken),
    themeButton(app),
    iconButton("help", "Keyboard (?)", actions.openHelp),
  );
}

function modelSelect(app: App): HTMLElement {
  const select = h("select", { "aria-label": "Model", onchange: () => app.setModel(select.value) });
  app.subscribe(() => {
    replaceIfChanged(select, JSON.stringify(app.models.map((model) => [model.name, model.isDefault])), () => [
      h("option", { value: "" }, app.modelNamed("")?.name ?? "Default model"),
      ...otherModels(app).map((name) => h("option", { value: name }, name)),
    ]);
    select.value = app.model;
  });
  return h("label", { class: "model-select" }, h("span", {}, "Model"), select);
}

function compareSelect(app: App): HTMLElement {
  const select = h("select", { "aria-label": "Compare with", onchange: () => app.compare(select.value === "none" ? undefined : select.value) });
  const label = h("label", { class: "model-select", hidden: true }, h("span", {}, "Compare with"), select);
  app.subscribe(() => {
    const names = ["", ...otherModels(app)].filter((name) => name !== app.model);
    label.hidden = names.length === 0;
    replaceIfChanged(select, JSON.stringify([names, app.modelNamed("")?.name]), () => [
      h("option", { value: "none" }, "None"),
      ...names.map((name) => h("option", { value: name }, name === "" ? (app.modelNamed("")?.name ?? "Default model") : name)),
    ]);
    select.value = app.comparedModel ?? "none";
  });
  return label;
}

/** Names of the models besides the default one, each once. */
function otherModels(app: App): string[] {
  const standard = app.modelNamed("")?.name;
  return [...new Set(app.models.map((model) => model.name))].filter((name) => name !== standard);
}

function themeButton(app: App): HTMLElement {
  const button = iconButton("theme", "", () => app.set({ theme: NEXT_THEME[app.settings.theme] }));
  const show = () => {
    const { theme } = app.settings;
    document.documentElement.dataset["theme"] = theme;
    button.title = `Theme: ${theme}`;
    button.setAttribute("aria-label", button.title);
  };
  show();
  app.subscribe(show);
  return button;
}

function iconButton(name: IconName, label: string, onclick: () => void): HTMLButtonElement {
  return h("button", { type: "button", class: "icon-button", title: label, "aria-label": label, onclick }, icon(name));
}
