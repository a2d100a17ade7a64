/** All models of the server with their labels. */

import type { Model } from "../api/answer.ts";
import type { App } from "../app.ts";
import { count } from "../words.ts";
import { Dialog } from "./dialog.ts";
import { h, replaceIfChanged } from "./element.ts";

export function modelsDialog(app: App): Dialog {
  const list = h("div", { class: "models" });
  app.subscribe(() => replaceIfChanged(list, JSON.stringify(app.models), () => app.models.map((model) => modelView(app, model))));
  return new Dialog("Models", [list]);
}

function modelView(app: App, model: Model): HTMLElement {
  const facts: [string, string][] = [
    ["Network", model.architecture],
    ["Version", model.version],
    ["Clip", model.clipFrames > 0 ? `${model.clipFrames} frames of ${model.clipSize} × ${model.clipSize} pixels` : ""],
    ["Licence", model.license],
    ["Origin", model.origin],
  ];
  const known = facts.filter(([, value]) => value !== "").flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
  return h(
    "article",
    {},
    h("h3", {}, model.name, model.isDefault && h("span", { class: "tag" }, "default"), !model.trained && h("span", { class: "tag warn" }, "untrained")),
    h("dl", {}, ...known),
    labelsView(app, model),
  );
}

/** The labels are fetched when they are opened. */
function labelsView(app: App, model: Model): HTMLElement {
  const labels = h("ul", { class: "label-list" });
  const search = h("input", { type: "search", placeholder: "Search labels", "aria-label": `Search labels of ${model.name}` });
  const state = h("p", { class: "muted", role: "status" });
  const element = h("details", {}, h("summary", {}, count(model.classes, "label")), search, state, labels);
  let all: string[] | undefined;
  const show = () => {
    const found = (all ?? []).filter((label) => label.toLowerCase().includes(search.value.toLowerCase()));
    labels.replaceChildren(...found.map((label) => h("li", {}, label)));
    state.textContent = all && found.length === 0 ? "No label has this text." : "";
  };
  search.addEventListener("input", show);
  element.addEventListener("toggle", async () => {
    if (!element.open || all) return;
    state.textContent = "Loading…";
    try {
      all = await app.client.labels(model.name);
      show();
    } catch (error) {
      state.textContent = error instanceof Error ? error.message : String(error);
    }
  });
  return element;
}
