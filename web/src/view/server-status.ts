/** Whether the server is ready and what it has to do. */

import type { App } from "../app.ts";
import { CallError, needsToken, UNREACHABLE } from "../api/failure.ts";
import { loadBetween, type Load, type Work } from "../api/load.ts";
import { h, setText } from "./element.ts";

const POLL_MILLISECONDS = 5000;

type State = "unknown" | "ready" | "not-ready" | "away" | "token";

const WORDS: Record<State, string> = {
  unknown: "Connecting",
  ready: "Ready",
  "not-ready": "Not ready",
  away: "Server away",
  token: "Needs a token",
};

export class ServerStatus {
  readonly element: HTMLElement;
  readonly #app: App;
  readonly #word = h("span", { role: "status" });
  readonly #load = h("span", { class: "load" });
  #state: State = "unknown";
  #before: { work: Work; at: number } | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(app: App) {
    this.#app = app;
    this.element = h("div", { class: "server-status" }, h("span", { class: "lamp" }), this.#word, this.#load);
    document.addEventListener("visibilitychange", () => void this.poll());
  }

  /** Asks the server now, and again every few seconds while the page is seen. */
  async poll(): Promise<void> {
    clearTimeout(this.#timer);
    if (document.hidden) return;
    try {
      const [ready, { models, limits }] = await Promise.all([this.#app.client.isReady(), this.#app.client.models()]);
      Object.assign(this.#app, { models, limits });
      await this.#readLoad();
      this.#show(ready ? "ready" : "not-ready");
    } catch (error) {
      this.#before = undefined;
      setText(this.#load, "");
      this.#show(stateOf(error));
    }
    this.#app.changed();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.poll(), POLL_MILLISECONDS);
  }

  async #readLoad(): Promise<void> {
    const now = { work: await this.#app.client.work(), at: performance.now() };
    const elapsed = (now.at - (this.#before?.at ?? now.at)) / 1000;
    const load = this.#before && loadBetween(this.#before.work, now.work, elapsed);
    this.#before = now;
    setText(this.#load, load ? loadText(load) : "");
    this.#load.title = load ? `A clip waits ${Math.round(load.queueSeconds * 1000)} ms for the model` : "";
  }

  #show(state: State): void {
    this.#state = state;
    this.element.dataset["state"] = this.#state;
    setText(this.#word, WORDS[state]);
  }
}

function loadText(load: Load): string {
  if (load.clipsPerSecond === 0) return "idle";
  return `${load.clipsPerSecond < 10 ? load.clipsPerSecond.toFixed(1) : Math.round(load.clipsPerSecond)} clips/s`;
}

function stateOf(error: unknown): State {
  if (!(error instanceof CallError)) return "not-ready";
  if (needsToken(error.failure)) return "token";
  return error.failure.reason === UNREACHABLE ? "away" : "not-ready";
}
