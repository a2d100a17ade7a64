/** The scores at the pointer. */

import { clipAt } from "../answers/clips.ts";
import type { App } from "../app.ts";
import { clock, percent } from "../words.ts";
import { colorOf } from "./colors.ts";
import { h } from "./element.ts";

const LABELS = 5;
const MARGIN = 14;

export class Tooltip {
  readonly element = h("div", { class: "tooltip", role: "tooltip", hidden: true });
  readonly #app: App;

  constructor(app: App) {
    this.#app = app;
  }

  show(event: PointerEvent, time: number): void {
    const runs = this.#app.runs.filter((run) => run.clips.length > 0);
    this.element.hidden = runs.length === 0;
    this.element.replaceChildren(h("div", { class: "tooltip-time" }, clock(time)));
    for (const run of runs) {
      if (runs.length > 1) this.element.append(h("div", { class: "tooltip-model" }, this.#app.titleOf(run)));
      const clip = clipAt(run.clips, time);
      if (clip) this.element.append(...clip.scores.slice(0, LABELS).map(({ label, score }) => line(label, score)));
    }
    this.#moveTo(event);
  }

  hide(): void {
    this.element.hidden = true;
  }

  /** Beside the pointer, on the side that has room. */
  #moveTo(event: PointerEvent): void {
    const { offsetWidth, offsetHeight } = this.element;
    const right = event.clientX + MARGIN + offsetWidth < innerWidth;
    const left = right ? event.clientX + MARGIN : event.clientX - MARGIN - offsetWidth;
    const top = Math.min(event.clientY + MARGIN, innerHeight - offsetHeight - 8);
    this.element.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }
}

function line(label: string, score: number): HTMLElement {
  const chip = h("span", { class: "chip" });
  chip.style.background = colorOf(label);
  return h("div", { class: "tooltip-line" }, chip, h("span", { class: "name-text" }, label), h("span", { class: "now" }, percent(score)));
}
