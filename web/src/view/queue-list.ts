/** The videos, each with its state. */

import type { App } from "../app.ts";
import type { Run } from "../queue/run.ts";
import type { Video } from "../queue/video.ts";
import { h, replaceIfChanged, setText } from "./element.ts";
import { icon } from "./icons.ts";
import { share, statusText } from "./run-status.ts";

export function queueList(app: App): HTMLElement {
  const lines = new Map<Video, Line>();
  const list = h("ul", { class: "queue-list" });
  const update = () => {
    const { videos } = app.queue;
    for (const video of videos) if (!lines.has(video)) lines.set(video, new Line(app, video));
    for (const video of lines.keys()) if (!videos.includes(video)) lines.delete(video);
    replaceIfChanged(list, videos.map((video) => video.id).join(), () => videos.map((video) => lines.get(video)!.element));
    for (const line of lines.values()) line.update();
  };
  app.subscribe(update);
  // The seconds until a next try run on although nothing else changes.
  setInterval(() => {
    if (app.queue.videos.some((video) => [...video.runs.values()].some((run) => run.state === "retrying"))) app.changed();
  }, 1000);
  list.addEventListener("keydown", (event) => moveFocus(list, event));
  return list;
}

class Line {
  readonly element: HTMLElement;
  readonly #app: App;
  readonly #video: Video;
  readonly #picture = h("img", { alt: "", hidden: true });
  readonly #status = h("span", { class: "queue-status" });
  readonly #bar = h("span", { class: "queue-bar" });
  readonly #select: HTMLElement;
  readonly #close = h("button", { type: "button", class: "icon-button small" }, icon("close"));

  constructor(app: App, video: Video) {
    this.#app = app;
    this.#video = video;
    this.#select = h(
      "button",
      { type: "button", class: "queue-select", title: video.name, onclick: () => app.select(video) },
      h("span", { class: "queue-picture" }, this.#picture),
      h("span", { class: "queue-text" }, h("span", { class: "queue-name" }, video.name), this.#status),
    );
    this.#close.addEventListener("click", () => this.#stopOrRemove());
    this.element = h("li", { class: "queue-line" }, this.#select, this.#close, h("span", { class: "queue-track" }, this.#bar));
  }

  get #unfinished(): Run[] {
    return [...this.#video.runs.values()].filter((run) => run.isActive || run.isWaiting);
  }

  #stopOrRemove(): void {
    const unfinished = this.#unfinished;
    if (unfinished.length === 0) this.#app.remove(this.#video);
    for (const run of unfinished) this.#app.queue.cancel(run);
  }

  update(): void {
    const closes = `${this.#unfinished.length > 0 ? "Stop" : "Remove"} ${this.#video.name}`;
    this.#close.title = closes;
    this.#close.setAttribute("aria-label", closes);
    const run = this.#video.runs.get(this.#app.model) ?? [...this.#video.runs.values()][0]!;
    const selected = this.#app.selected === this.#video;
    this.element.className = `queue-line ${run.state}${selected ? " selected" : ""}`;
    this.#select.setAttribute("aria-current", String(selected));
    setText(this.#status, statusText(run, this.#video.size));
    const known = share(run, this.#video.size);
    this.#bar.classList.toggle("unknown", known === undefined && run.isActive);
    this.#bar.style.width = `${Math.round((known ?? (run.isActive ? 1 : 0)) * 100)}%`;
    const preview = run.clips[run.clips.length >> 1]?.preview;
    const isFinal = run.state === "done" && this.#picture.src !== preview;
    if (preview && (this.#picture.hidden || isFinal)) this.#picture.src = preview;
    this.#picture.hidden = !this.#picture.src;
  }
}

function moveFocus(list: HTMLElement, event: KeyboardEvent): void {
  const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
  if (step === 0) return;
  const buttons = [...list.querySelectorAll<HTMLElement>(".queue-select")];
  buttons[buttons.indexOf(document.activeElement as HTMLElement) + step]?.focus();
  event.preventDefault();
}
