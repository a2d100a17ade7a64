/** The segments of the selected video, as a list that follows the playhead. */

import type { Segment } from "../answers/segments.ts";
import type { App } from "../app.ts";
import { clock, count, length, percent } from "../words.ts";
import { colorOf } from "./colors.ts";
import { h, replaceIfChanged, setText } from "./element.ts";
import type { Player } from "./player.ts";

export function segmentsPanel(app: App, player: Player): HTMLElement {
  const views = [new SegmentList(app, player, 0), new SegmentList(app, player, 1)];
  return h("div", {}, ...views.map((view) => view.element));
}

/** The segments of one of the models that are compared. */
class SegmentList {
  readonly element = h("div");
  readonly #app: App;
  readonly #player: Player;
  readonly #index: number;
  readonly #summary = h("p", { class: "panel-summary" });
  readonly #list = h("ol", { class: "segments" });

  constructor(app: App, player: Player, index: number) {
    this.#app = app;
    this.#player = player;
    this.#index = index;
    this.element.append(this.#summary, this.#list);
    app.subscribe(() => this.#update());
    player.onTime(() => showCurrent(this.#list, this.#segments, player.time));
  }

  get #segments(): Segment[] {
    const run = this.#app.runs[this.#index];
    return run ? this.#app.segments(run) : [];
  }

  #update(): void {
    const run = this.#app.runs[this.#index];
    const segments = this.#segments;
    this.element.hidden = !run;
    if (!run) return;
    const letter = this.#app.letterOf(run);
    setText(this.#summary, `${letter ? `${letter}: ` : ""}${summaryOf(segments)}`);
    replaceIfChanged(this.#list, JSON.stringify(segments), () => segments.map((segment) => lineOf(segment, this.#player)));
    showCurrent(this.#list, segments, this.#player.time);
  }
}

function summaryOf(segments: Segment[]): string {
  const labelled = segments.filter((segment) => segment.label !== undefined);
  if (segments.length === 0) return "Segments appear here with the first clip.";
  if (labelled.length === 0) return "No label scores as much as the threshold. Lower it to see segments.";
  const time = labelled.reduce((sum, segment) => sum + segment.end - segment.start, 0);
  return `${count(labelled.length, "segment")}, ${length(time)} in all`;
}

function lineOf(segment: Segment, player: Player): HTMLElement {
  const times = `${clock(segment.start)} – ${clock(segment.end)}`;
  const chip = h("span", { class: "chip" });
  chip.style.background = segment.label === undefined ? "var(--empty)" : colorOf(segment.label);
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", class: segment.label === undefined ? "segment none" : "segment", onclick: () => player.seek(segment.start) },
      h("span", { class: "segment-time" }, times),
      chip,
      h("span", { class: "name-text" }, segment.label ?? "no label"),
      h("span", { class: "now" }, segment.label === undefined ? "" : percent(segment.score)),
    ),
  );
}

function showCurrent(list: HTMLElement, segments: Segment[], time: number): void {
  const current = segments.findIndex((segment) => segment.start <= time && time < segment.end);
  [...list.children].forEach((line, index) => {
    const button = line.firstElementChild!;
    if (button.hasAttribute("aria-current") === (index === current)) return;
    button.toggleAttribute("aria-current", index === current);
    if (index === current) button.setAttribute("aria-current", "true");
    if (index === current) scrollInPanel(line as HTMLElement);
  });
}

/** Scrolls the panel and not, as `scrollIntoView` would, the page around it. */
function scrollInPanel(line: HTMLElement): void {
  const panel = line.closest(".panel");
  if (!panel) return;
  const above = line.getBoundingClientRect().top - panel.getBoundingClientRect().top;
  const below = above + line.offsetHeight - panel.clientHeight;
  if (above < 0) panel.scrollTop += above;
  else if (below > 0) panel.scrollTop += below;
}
