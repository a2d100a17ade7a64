/** Above the timeline: threshold, smoothing, zoom, rows, and what to save. */

import type { App } from "../app.ts";
import { SMOOTHING_STEPS } from "../settings.ts";
import { length, percent } from "../words.ts";
import { h, setText } from "./element.ts";
import { icon, type IconName } from "./icons.ts";
import { saveMenu } from "./save.ts";
import type { Timeline } from "./timeline.ts";

export function timelineControls(app: App, timeline: Timeline): HTMLElement {
  const rows = h("button", { type: "button", class: "quiet", onclick: () => timeline.toggleRows() });
  app.subscribe(() => setText(rows, timeline.hasManyRows ? "Fewer labels" : "More labels"));
  return h(
    "div",
    { class: "timeline-controls" },
    h("h2", {}, "Timeline"),
    thresholdControl(app),
    smoothingControl(app),
    h("span", { class: "space" }),
    rows,
    h(
      "div",
      { class: "group", role: "group", "aria-label": "Zoom" },
      zoomButton("minus", "Zoom out (−)", () => timeline.zoomBy(-1)),
      zoomButton("fit", "Show the whole video (0)", () => timeline.fit()),
      zoomButton("add", "Zoom in (+)", () => timeline.zoomBy(1)),
    ),
    saveMenu(app),
  );
}

function thresholdControl(app: App): HTMLElement {
  const input = h("input", {
    type: "range",
    min: "0",
    max: "100",
    step: "1",
    oninput: () => app.set({ threshold: Number(input.value) / 100 }),
  });
  return slider(app, "Threshold", "Segments that score less have no label ([ and ])", input, () => {
    input.value = String(Math.round(app.settings.threshold * 100));
    return percent(app.settings.threshold);
  });
}

function smoothingControl(app: App): HTMLElement {
  const input = h("input", {
    type: "range",
    min: "0",
    max: String(SMOOTHING_STEPS.length - 1),
    step: "1",
    oninput: () => app.set({ smoothingSeconds: SMOOTHING_STEPS[Number(input.value)]! }),
  });
  return slider(app, "Smoothing", "How long a label is expected to last (s switches it off and on)", input, () => {
    const { smoothingSeconds } = app.settings;
    input.value = String(SMOOTHING_STEPS.indexOf(smoothingSeconds as (typeof SMOOTHING_STEPS)[number]));
    const text = smoothingSeconds === 0 ? "off" : length(smoothingSeconds);
    input.setAttribute("aria-valuetext", text);
    return text;
  });
}

function slider(app: App, name: string, title: string, input: HTMLInputElement, show: () => string): HTMLElement {
  const value = h("output", {});
  const update = () => setText(value, show());
  update();
  app.subscribe(update);
  return h("label", { class: "slider", title }, h("span", {}, name), input, value);
}

function zoomButton(name: IconName, label: string, onclick: () => void): HTMLElement {
  return h("button", { type: "button", class: "icon-button", title: label, "aria-label": label, onclick }, icon(name));
}
