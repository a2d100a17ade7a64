/** What the server found out about the selected video, and by which model. */

import type { App } from "../app.ts";
import type { Run } from "../queue/run.ts";
import { bytes, length } from "../words.ts";
import { h, replaceIfChanged } from "./element.ts";

export function detailsPanel(app: App): HTMLElement {
  const panel = h("div", { class: "details" });
  app.subscribe(() => {
    const facts = app.runs.map((run) => factsOf(app, run));
    replaceIfChanged(panel, JSON.stringify(facts), () => facts.map(listOf));
  });
  return panel;
}

function factsOf(app: App, run: Run): [string, string][] {
  const model = app.modelNamed(run.model);
  const size = app.selected?.size;
  const version = run.answer?.version || model?.version;
  const name = `${app.letterOf(run)} ${app.titleOf(run)}`.trim();
  const facts: [string, string][] = [["Model", version ? `${name}, version ${version}` : name]];
  if (model?.architecture) facts.push(["Network", model.architecture]);
  if (run.answer) facts.push(["Length", length(run.answer.duration)], ...run.answer.facts);
  if (size !== undefined) facts.push(["File", bytes(size)]);
  return facts;
}

function listOf(facts: [string, string][]): HTMLElement {
  return h("dl", {}, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
