/** What went wrong with the selected video and what to do about it. */

import { adviceFor, type Failure } from "../api/failure.ts";
import type { App } from "../app.ts";
import type { Run } from "../queue/run.ts";
import { h, replaceIfChanged } from "./element.ts";
import { icon } from "./icons.ts";
import { statusText } from "./run-status.ts";

/** `openToken` opens the field for a token. */
export function notices(app: App, openToken: () => void): HTMLElement {
  const element = h("div", { class: "notices", role: "alert" });
  app.subscribe(() => {
    const runs = differentFailures(app.runs.filter((run) => run.failure !== undefined || run.state === "cancelled"));
    const states = runs.map((run) => `${run.model} ${run.state} ${run.tries} ${run.failure?.reason} ${run.failure?.message}`);
    const remarks = app.runs.flatMap(remarksOf);
    replaceIfChanged(element, [app.refused, ...states, ...remarks].join("\n"), () => [
      ...(app.refused === "" ? [] : [refusedView(app)]),
      ...runs.map((run) => (run.failure ? failureView(app, run, run.failure, openToken) : stoppedView(app, run))),
      ...[...new Set(remarks)].map((remark) => h("div", { class: "notice wait" }, h("p", {}, remark))),
    ]);
  });
  return element;
}

/** What a person should know about an answer, such as that a part of the video is damaged. */
function remarksOf({ answer }: Run): string[] {
  if (!answer) return [];
  return answer.partial === "" ? answer.warnings : [answer.partial, ...answer.warnings];
}

/** Of runs that failed alike the first one. */
function differentFailures(runs: Run[]): Run[] {
  return runs.filter((run, index) => runs.findIndex((other) => other.failure?.reason === run.failure?.reason) === index);
}

function refusedView(app: App): HTMLElement {
  const onclick = () => {
    app.refused = "";
    app.changed();
  };
  return h("div", { class: "notice bad" }, h("p", {}, app.refused), h("button", { type: "button", onclick }, "Close"));
}

function failureView(app: App, run: Run, failure: Failure, openToken: () => void): HTMLElement {
  const { title, advice, remedy } = adviceFor(failure);
  const action = remedy === "token" ? openToken : () => app.queue.retry(run);
  const label = remedy === "token" ? "Enter token" : run.state === "retrying" ? "Try now" : "Try again";
  const text = h(
    "div",
    {},
    h("strong", {}, title),
    h("p", {}, advice),
    h("p", { class: "notice-detail" }, failure.message, failure.reason ? ` (${failure.reason})` : ""),
  );
  const button = h("button", { type: "button", class: "primary", onclick: action }, remedy === "retry" && icon("retry"), label);
  return h("div", { class: run.state === "retrying" ? "notice wait" : "notice bad" }, text, remedy !== "none" && button);
}

function stoppedView(app: App, run: Run): HTMLElement {
  const onclick = () => app.queue.retry(run);
  return h(
    "div",
    { class: "notice wait" },
    h("p", {}, `${statusText(run, undefined)}. What had come until then is shown.`),
    h("button", { type: "button", onclick }, icon("retry"), "Start again"),
  );
}
