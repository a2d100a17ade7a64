/** Records a video from the webcam. */

import type { App } from "../app.ts";
import { clock } from "../words.ts";
import { Dialog } from "./dialog.ts";
import { h } from "./element.ts";
import { icon } from "./icons.ts";

/** Best first; a browser knows one of them at least. */
const TYPES = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
/** A recording ends by itself: it is kept in memory. */
const MOST_SECONDS = 120;

export class WebcamDialog {
  readonly #app: App;
  readonly #video = h("video", { muted: true, playsInline: true, autoplay: true, class: "webcam", "aria-label": "Webcam" });
  readonly #state = h("p", { role: "status", class: "muted" });
  readonly #record = h("button", { type: "button", class: "primary", disabled: true });
  readonly #dialog: Dialog;
  #stream: MediaStream | undefined;
  #recorder: MediaRecorder | undefined;
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor(app: App) {
    this.#app = app;
    const buttons = h("div", { class: "dialog-buttons" }, this.#record);
    this.#dialog = new Dialog("Record from webcam", [this.#video, this.#state, buttons], () => this.#closed());
    this.#record.addEventListener("click", () => (this.#recorder ? this.#stop() : this.#start()));
    this.#showButton();
  }

  get element(): HTMLElement {
    return this.#dialog.element;
  }

  async open(): Promise<void> {
    this.#dialog.open();
    this.#state.textContent = "Waiting for the camera. The browser may ask for permission.";
    try {
      // Undefined on pages that are neither from localhost nor over HTTPS.
      if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
      if (!this.#dialog.element.open) return stopTracks(stream);
      this.#stream = stream;
      this.#video.srcObject = stream;
      this.#record.disabled = false;
      this.#record.focus();
      this.#state.textContent = "Record a few seconds of an action.";
    } catch (error) {
      this.#state.textContent = cameraProblem(error);
    }
  }

  #start(): void {
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    const recorder = new MediaRecorder(this.#stream!, mimeType ? { mimeType } : {});
    const pieces: Blob[] = [];
    recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
    recorder.addEventListener("stop", () => this.#recorded(pieces, recorder.mimeType));
    recorder.start();
    this.#recorder = recorder;
    const started = performance.now();
    this.#timer = setInterval(() => this.#tick((performance.now() - started) / 1000), 100);
    this.#showButton();
  }

  #tick(elapsed: number): void {
    this.#state.textContent = `Recording ${clock(elapsed)}`;
    if (elapsed >= MOST_SECONDS) this.#stop();
  }

  #stop(): void {
    this.#recorder?.stop();
  }

  #recorded(pieces: Blob[], type: string): void {
    const isOpen = this.#dialog.element.open;
    this.#dialog.close();
    // A window that was closed while it recorded has no result.
    if (!isOpen) return;
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
    const extension = type.includes("mp4") ? "mp4" : "webm";
    this.#app.add([{ kind: "file", file: new File(pieces, `webcam ${time}.${extension}`, { type }) }]);
  }

  #closed(): void {
    clearInterval(this.#timer);
    const recorder = this.#recorder;
    this.#recorder = undefined;
    if (recorder?.state === "recording") recorder.stop();
    if (this.#stream) stopTracks(this.#stream);
    this.#stream = undefined;
    this.#video.srcObject = null;
    this.#record.disabled = true;
    this.#showButton();
  }

  #showButton(): void {
    this.#record.replaceChildren(icon(this.#recorder ? "pause" : "camera"), this.#recorder ? "Stop and classify" : "Record");
  }
}

function stopTracks(stream: MediaStream): void {
  for (const track of stream.getTracks()) track.stop();
}

function cameraProblem(error: unknown): string {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError") return "The browser may not use the camera. Allow it in the address bar, then open this window again.";
  if (name === "NotFoundError") return "No camera was found. Connect one, then open this window again.";
  if (name === "NotReadableError") return "Another program uses the camera. Close it, then open this window again.";
  if (name === "SecurityError") return "Browsers give cameras only to pages from localhost or over HTTPS. Open this page by such an address.";
  return error instanceof Error && error.message ? error.message : "The camera can't be opened.";
}
