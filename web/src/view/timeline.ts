/** The timeline of the selected video: what is when, with a playhead. */

import { clipAt, scoreOf } from "../answers/clips.ts";
import type { App } from "../app.ts";
import { clock, percent } from "../words.ts";
import { CanvasColors, colorOf } from "./colors.ts";
import { h, replaceIfChanged, setText } from "./element.ts";
import type { Player } from "./player.ts";
import { bandsOf, heightOf, type Band } from "./timeline-bands.ts";
import { paint } from "./timeline-paint.ts";
import { clampZoom, positionOf, timeAt, totalWidth, type Scale } from "./timeline-scale.ts";
import { Tooltip } from "./timeline-tooltip.ts";

const FEW_ROWS = 6;
const MANY_ROWS = 24;
const ZOOM_STEP = 1.6;

export class Timeline {
  readonly element: HTMLElement;
  readonly #app: App;
  readonly #player: Player;
  readonly #canvas = h("canvas");
  readonly #playhead = h("div", { class: "playhead" });
  readonly #inner = h("div", { class: "plot-inner" });
  readonly #plot: HTMLElement;
  readonly #names = h("div", { class: "names" });
  readonly #tooltip: Tooltip;
  readonly #probe = h("span", { hidden: true });
  readonly #pictures = new Map<string, HTMLImageElement>();
  #bands: Band[] = [];
  #zoom = 1;
  #shown: unknown;
  #rowCount = FEW_ROWS;

  constructor(app: App, player: Player) {
    this.#app = app;
    this.#player = player;
    this.#inner.append(this.#canvas, this.#playhead);
    this.#plot = h("div", { class: "plot", tabIndex: 0, role: "slider", "aria-label": "Position in the video" }, this.#inner);
    this.#tooltip = new Tooltip(app);
    this.element = h("div", { class: "timeline-body" }, this.#names, this.#plot, this.#tooltip.element, this.#probe);
    this.#listen();
    app.subscribe(() => this.#update());
    player.onTime(() => this.#showTime());
    new ResizeObserver(() => app.changed()).observe(this.#plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.changed());
  }

  /** Closer for positive steps. The playhead stays where it is. */
  zoomBy(steps: number): void {
    this.#zoomTo(this.#zoom * ZOOM_STEP ** steps, this.#player.time);
  }

  fit(): void {
    this.#zoomTo(1, 0);
  }

  get hasManyRows(): boolean {
    return this.#rowCount === MANY_ROWS;
  }

  toggleRows(): void {
    this.#rowCount = this.hasManyRows ? FEW_ROWS : MANY_ROWS;
    this.#app.changed();
  }

  get #scale(): Scale {
    return { duration: this.#player.duration, width: this.#plot.clientWidth, zoom: this.#zoom };
  }

  #listen(): void {
    const plot = this.#plot;
    plot.addEventListener("scroll", () => this.#paint());
    plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button !== 0 || this.#isScrollbar(event)) return;
      plot.setPointerCapture(event.pointerId);
      this.#player.seek(this.#timeOf(event));
    });
    plot.addEventListener("pointermove", (event) => {
      if (plot.hasPointerCapture(event.pointerId)) this.#player.seek(this.#timeOf(event));
      else if (event.pointerType !== "touch") this.#tooltip.show(event, this.#timeOf(event));
    });
    plot.addEventListener("pointerleave", () => this.#tooltip.hide());
    // A finger that drags scrolls; one that taps seeks.
    plot.addEventListener("click", (event) => this.#player.seek(this.#timeOf(event)));
    plot.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  #isScrollbar(event: MouseEvent): boolean {
    return event.clientY - this.#plot.getBoundingClientRect().top > this.#plot.clientHeight;
  }

  /** Ctrl and wheel, which is also what pinching a touchpad sends, zooms at the pointer. */
  #wheel(event: WheelEvent): void {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.#zoomTo(this.#zoom * ZOOM_STEP ** (-event.deltaY / 100), this.#timeOf(event));
  }

  #timeOf(event: MouseEvent): number {
    return timeAt(this.#scale, event.clientX - this.#plot.getBoundingClientRect().left + this.#plot.scrollLeft);
  }

  /** `time` stays at the same distance from the left edge. */
  #zoomTo(zoom: number, time: number): void {
    const offset = positionOf(this.#scale, time) - this.#plot.scrollLeft;
    const inView = offset >= 0 && offset <= this.#plot.clientWidth;
    this.#zoom = clampZoom(this.#scale, zoom);
    this.#layOut();
    this.#plot.scrollLeft = positionOf(this.#scale, time) - (inView ? offset : this.#plot.clientWidth / 2);
    this.#paint();
    this.#showTime();
  }

  #update(): void {
    if (this.#shown !== this.#app.selected) {
      this.#shown = this.#app.selected;
      this.#zoom = 1;
      this.#pictures.clear();
    }
    this.#zoom = clampZoom(this.#scale, this.#zoom);
    this.#bands = bandsOf(this.#app, this.#rowCount);
    this.#showNames();
    this.#layOut();
    this.#paint();
    this.#showTime();
  }

  #layOut(): void {
    const height = heightOf(this.#bands);
    this.#inner.style.width = `${totalWidth(this.#scale)}px`;
    this.#inner.style.height = `${height}px`;
    this.#names.style.height = `${height}px`;
  }

  #showNames(): void {
    const key = this.#bands.map((band) => `${band.kind}${band.top}${"label" in band ? band.letter + band.label : ""}${"title" in band ? band.title : ""}`);
    replaceIfChanged(this.#names, `${key.join("\n")}${this.#app.markedLabel}`, () =>
      this.#bands.filter((band) => band.kind !== "ruler").map((band) => this.#nameOf(band)),
    );
  }

  #nameOf(band: Band): HTMLElement {
    const name = this.#nameElement(band);
    name.style.top = `${band.top}px`;
    name.style.height = `${band.height}px`;
    return name;
  }

  #nameElement(band: Band): HTMLElement {
    if (band.kind !== "row") {
      const text = "title" in band ? band.title : "Pictures";
      const about = band.kind === "differences" ? "How long both models have the same label; where they differ is marked" : text;
      return h("div", { class: "name", title: about }, h("span", { class: "name-text" }, text));
    }
    const { label, letter } = band;
    const chip = h("span", { class: "chip" });
    chip.style.background = colorOf(label);
    const pressed = this.#app.markedLabel === label;
    return h(
      "button",
      { type: "button", class: "name row", title: label, "aria-pressed": String(pressed), onclick: () => this.#app.mark(label) },
      letter !== "" && h("span", { class: "muted" }, letter),
      chip,
      h("span", { class: "name-text" }, label),
      h("span", { class: "now" }),
    );
  }

  #paint(): void {
    const { width } = this.#scale;
    const height = heightOf(this.#bands);
    const ratio = window.devicePixelRatio;
    const canvas = this.#canvas;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d")!;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint({
      context,
      colors: new CanvasColors(this.#probe),
      scale: this.#scale,
      left: this.#plot.scrollLeft,
      bands: this.#bands,
      font: `12px ${getComputedStyle(this.#plot).fontFamily}`,
      threshold: this.#app.settings.threshold,
      markedLabel: this.#app.markedLabel,
      segments: (run) => this.#app.segments(run),
      pictureOf: (address) => this.#pictureOf(address),
    });
  }

  /** Undefined until the browser has decoded it; then the timeline is painted again. */
  #pictureOf(address: string): HTMLImageElement | undefined {
    let picture = this.#pictures.get(address);
    if (!picture) {
      picture = h("img", { src: address, onload: () => this.#app.changed() });
      this.#pictures.set(address, picture);
    }
    return picture.complete && picture.naturalWidth > 0 ? picture : undefined;
  }

  #showTime(): void {
    const { time, duration } = this.#player;
    const position = positionOf(this.#scale, time);
    this.#playhead.hidden = duration <= 0;
    this.#playhead.style.transform = `translateX(${position}px)`;
    this.#follow(position);
    this.#plot.setAttribute("aria-valuemin", "0");
    this.#plot.setAttribute("aria-valuemax", duration.toFixed(1));
    this.#plot.setAttribute("aria-valuenow", time.toFixed(1));
    this.#plot.setAttribute("aria-valuetext", this.#spoken(time));
    this.#showScores(time);
  }

  /** The playhead stays in view. */
  #follow(position: number): void {
    const { scrollLeft, clientWidth } = this.#plot;
    if (this.#plot.matches(":active") || totalWidth(this.#scale) <= clientWidth) return;
    if (position < scrollLeft || position > scrollLeft + clientWidth) this.#plot.scrollLeft = position - clientWidth / 8;
  }

  #spoken(time: number): string {
    const best = this.#app.run && clipAt(this.#app.run.clips, time)?.scores[0];
    return best ? `${clock(time)}, ${best.label} ${percent(best.score)}` : clock(time);
  }

  #showScores(time: number): void {
    const rows = this.#bands.filter((band) => band.kind === "row");
    this.#names.querySelectorAll<HTMLElement>(".now").forEach((element, index) => {
      const band = rows[index];
      const clip = band && clipAt(band.run.clips, time);
      setText(element, clip && time < clip.end ? percent(scoreOf(clip, band.label)) : "");
    });
  }
}
