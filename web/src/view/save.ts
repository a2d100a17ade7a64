/** Saves what is known of the selected video. */

import { toCsv, toJson, toVtt, type Report } from "../answers/formats.ts";
import type { App } from "../app.ts";
import type { Run } from "../queue/run.ts";
import { h } from "./element.ts";
import { icon } from "./icons.ts";
import { Menu } from "./menu.ts";

const FORMATS = [
  { name: "JSON", about: "labels, segments and clips", extension: "json", type: "application/json", write: toJson },
  { name: "CSV", about: "a line for each segment", extension: "csv", type: "text/csv", write: toCsv },
  { name: "WebVTT", about: "subtitles for a player", extension: "vtt", type: "text/vtt", write: toVtt },
] as const;

export function saveMenu(app: App): HTMLElement {
  const menu = new Menu(
    [icon("save"), "Save"],
    FORMATS.map((format) => ({
      text: format.name,
      about: format.about,
      action: () => {
        for (const run of app.runs) if (run.clips.length > 0) save(app, run, format);
      },
    })),
  );
  app.subscribe(() => menu.enable((app.run?.clips.length ?? 0) > 0));
  return menu.element;
}

function save(app: App, run: Run, format: (typeof FORMATS)[number]): void {
  const video = app.selected!.name;
  const model = app.runs.length > 1 ? `.${app.titleOf(run).replace(/[^\w.-]+/g, "-")}` : "";
  const text = format.write(reportOf(app, run));
  const url = URL.createObjectURL(new Blob([text], { type: format.type }));
  h("a", { href: url, download: `${video.replace(/\.\w+$/, "")}${model}.${format.extension}` }).click();
  // The browser reads the address after this call.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function reportOf(app: App, run: Run): Report {
  const segments = app.segments(run);
  const labels = app.ranking(run).map(({ label, mean }) => ({ label, score: mean }));
  const { threshold, smoothingSeconds } = app.settings;
  return { video: app.selected!.name, model: app.titleOf(run), labels, segments, clips: run.clips, threshold, smoothingSeconds };
}
