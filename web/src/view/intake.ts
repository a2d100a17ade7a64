/** Ways by which videos come in: dropped, chosen, pasted, or by a URI. */

import type { App } from "../app.ts";
import { isUri } from "../queue/source.ts";
import { h } from "./element.ts";
import { icon } from "./icons.ts";

export class Intake {
  /** The hidden field behind all buttons that choose files. */
  readonly element = h("input", { type: "file", multiple: true, accept: "video/*,image/gif,.mkv,.ts,.flv,.wmv", class: "hidden", tabIndex: -1, "aria-hidden": "true" });
  readonly overlay = h("div", { class: "drop-overlay", hidden: true }, h("div", {}, icon("upload"), "Drop to classify"));
  readonly #app: App;
  /** Drags enter and leave every element on their way. */
  #inside = 0;

  constructor(app: App) {
    this.#app = app;
    this.element.addEventListener("change", () => {
      this.#addFiles(this.element.files);
      this.element.value = "";
    });
    window.addEventListener("dragenter", (event) => this.#drag(event, 1));
    window.addEventListener("dragleave", (event) => this.#drag(event, -1));
    window.addEventListener("dragover", (event) => event.preventDefault());
    window.addEventListener("drop", (event) => this.#drop(event));
    window.addEventListener("paste", (event) => this.#paste(event));
  }

  choose(): void {
    this.element.click();
  }

  /** Adds the video at `text`, or answers why it can't. */
  addUri(text: string): string {
    const uri = text.trim();
    if (!isUri(uri)) return "Enter an address that begins with https://, http://, s3://, gs://, az:// or file://.";
    this.#app.add([{ kind: "uri", uri }]);
    return "";
  }

  /** A field for a URI with its button. */
  uriForm(): HTMLElement {
    const input = h("input", { type: "text", inputMode: "url", placeholder: "https://example.org/video.mp4", "aria-label": "Address of a video", spellcheck: false });
    const wrong = h("p", { class: "field-error", role: "alert" });
    const form = h("form", { class: "uri-form", noValidate: true }, input, h("button", { type: "submit" }, "Classify"), wrong);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      wrong.textContent = this.addUri(input.value);
      if (wrong.textContent === "") input.value = "";
    });
    return form;
  }

  #addFiles(files: Iterable<File> | null | undefined): void {
    const sources = [...(files ?? [])].map((file) => ({ kind: "file" as const, file }));
    if (sources.length > 0) this.#app.add(sources);
  }

  #drag(event: DragEvent, step: number): void {
    event.preventDefault();
    this.#inside += step;
    this.overlay.hidden = this.#inside <= 0;
  }

  #drop(event: DragEvent): void {
    event.preventDefault();
    this.#inside = 0;
    this.overlay.hidden = true;
    const text = event.dataTransfer?.getData("text/uri-list") || event.dataTransfer?.getData("text/plain");
    if (event.dataTransfer?.files.length) this.#addFiles(event.dataTransfer.files);
    else if (text) this.addUri(text);
  }

  #paste(event: ClipboardEvent): void {
    if (event.target instanceof HTMLInputElement) return;
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (event.clipboardData?.files.length) this.#addFiles(event.clipboardData.files);
    else if (isUri(text)) this.addUri(text);
  }
}
