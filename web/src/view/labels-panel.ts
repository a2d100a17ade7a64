/** The best labels of the selected video, in a table. */

import { clipAt, scoreOf } from "../answers/clips.ts";
import type { RankedLabel } from "../answers/ranking.ts";
import type { App } from "../app.ts";
import type { Run } from "../queue/run.ts";
import { length, percent } from "../words.ts";
import { colorOf } from "./colors.ts";
import { h, replaceIfChanged, setText } from "./element.ts";
import type { Player } from "./player.ts";

const LABELS = 20;

export function labelsPanel(app: App, player: Player): HTMLElement {
  const head = h("thead");
  const body = h("tbody");
  const empty = h("p", { class: "panel-empty" }, "Labels appear here with the first clip.");
  const table = h("table", { class: "labels" }, h("caption", { class: "hidden" }, "Best labels of the video"), head, body);
  app.subscribe(() => {
    const runs = app.runs;
    const ranked = runs.map((run) => app.ranking(run));
    table.hidden = (ranked[0]?.length ?? 0) === 0 && (ranked[1]?.length ?? 0) === 0;
    empty.hidden = !table.hidden;
    replaceIfChanged(head, runs.map((run) => app.titleOf(run)).join("\n"), () => [headOf(app, runs)]);
    const key = JSON.stringify([ranked.map((labels) => labels.slice(0, LABELS)), app.markedLabel, app.settings.threshold]);
    replaceIfChanged(body, key, () => linesOf(app, player, ranked));
    showNow(app, player, body);
  });
  player.onTime(() => showNow(app, player, body));
  return h("div", {}, table, empty);
}

function headOf(app: App, runs: Run[]): HTMLElement {
  const compared = runs.length > 1;
  const column = (text: string, title: string, kind = "number") => h("th", { scope: "col", class: kind, title }, text);
  return h(
    "tr",
    {},
    column("Label", "Click to mark a label and see it at its best", "text"),
    ...runs.map((run) => column(compared ? app.letterOf(run) : "Video", `Mean score of the whole video, ${app.titleOf(run)}`)),
    column("Now", "Score of the clip at the playhead"),
    column("Time", "How long segments have this label"),
  );
}

function linesOf(app: App, player: Player, ranked: RankedLabel[][]): HTMLElement[] {
  const [first = [], second] = ranked;
  const best = [...first, ...(second ?? []).filter(({ label }) => !first.some((entry) => entry.label === label))]
    .sort((a, b) => highest(b.label, ranked) - highest(a.label, ranked))
    .slice(0, LABELS);
  return best.map((entry) => lineOf(app, player, entry, ranked));
}

function highest(label: string, ranked: RankedLabel[][]): number {
  return Math.max(...ranked.map((labels) => labels.find((entry) => entry.label === label)?.mean ?? 0));
}

function lineOf(app: App, player: Player, entry: RankedLabel, ranked: RankedLabel[][]): HTMLElement {
  const { label, peakTime, time } = entry;
  const chip = h("span", { class: "chip" });
  chip.style.background = colorOf(label);
  const onclick = () => {
    app.mark(label);
    player.seek(peakTime);
  };
  const pressed = String(app.markedLabel === label);
  const name = h("button", { type: "button", class: "label-button", "aria-pressed": pressed, onclick, title: label }, chip, h("span", { class: "name-text" }, label));
  const means = ranked.map((labels) => labels.find((other) => other.label === label)?.mean ?? 0);
  return h(
    "tr",
    { class: Math.max(...means) < app.settings.threshold && time === 0 ? "weak" : "" },
    h("th", { scope: "row" }, name),
    ...means.map((mean) => scoreCell(mean, label)),
    h("td", { class: "number now", "data-label": label }),
    h("td", { class: "number" }, time > 0 ? length(time) : "–"),
  );
}

function scoreCell(mean: number, label: string): HTMLElement {
  const bar = h("span", { class: "bar" });
  bar.style.width = `${Math.round(mean * 100)}%`;
  bar.style.background = colorOf(label);
  return h("td", { class: "number score" }, h("span", { class: "bar-track" }, bar), percent(mean));
}

function showNow(app: App, player: Player, body: HTMLElement): void {
  const clip = app.run && clipAt(app.run.clips, player.time);
  for (const cell of body.querySelectorAll<HTMLElement>(".now")) {
    setText(cell, clip ? percent(scoreOf(clip, cell.dataset["label"]!)) : "");
  }
}
