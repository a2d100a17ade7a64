/** Calls of the server's HTTP API. */

import type { Clip } from "../answers/clips.ts";
import type { Source } from "../queue/source.ts";
import { answerOf, clipOf, limitsOf, modelOf, type Answer, type Limits, type Model } from "./answer.ts";
import type { EventJson, GetModelJson, ListModelsJson, StatisticsJson } from "./contract.ts";
import { jsonLines, piecesOf } from "./events.ts";
import { CallError, CUT_OFF, failureOf, UNREACHABLE } from "./failure.ts";
import { workOf, type Work } from "./load.ts";

export interface CallEvents {
  clip(clip: Clip): void;
  /** Bytes that the server has received until now. */
  received(bytes: number): void;
  answer(answer: Answer): void;
}

/** Labels of a clip that the page asks for: all of a small model's, the best of a large one's. */
const TOP_K = 20;
/** Of the media types of streamed answers the one that is easiest to read. */
const EVENTS = "application/x-ndjson";
/** How long events may come after the connection of their upload broke. */
const BROKEN_UPLOAD_MILLISECONDS = 3000;

export class Client {
  readonly #token: () => string;

  constructor(token: () => string) {
    this.#token = token;
  }

  async models(): Promise<{ models: Model[]; limits: Limits }> {
    const json = (await this.#get("v1/models")) as ListModelsJson;
    return { models: (json.models ?? []).map(modelOf), limits: limitsOf(json.limits) };
  }

  /** A model's labels, in the order of its classes. */
  async labels(model: string): Promise<string[]> {
    const json = (await this.#get(`v1/models/${encodeURIComponent(model)}`)) as GetModelJson;
    return json.model?.labels ?? [];
  }

  /** Whether the server takes requests now. */
  async isReady(): Promise<boolean> {
    try {
      await this.#fetch("v2/health/ready", {});
      return true;
    } catch (error) {
      if (error instanceof CallError && error.failure.reason === UNREACHABLE) throw error;
      return false;
    }
  }

  /** What all models did since the server's start. */
  async work(): Promise<Work> {
    return workOf((await this.#get("v2/models/stats")) as StatisticsJson);
  }

  /**
   * Resolves when the whole video is done; events come before that. A browser shows an answer only when the whole request is
   * sent, so events come by a request of their own while a file is uploaded.
   */
  async classify(source: Source, model: string, events: CallEvents, signal: AbortSignal): Promise<void> {
    if (source.kind === "file") return this.#upload(source.file, model, events, signal);
    const body = JSON.stringify({ uri: source.uri });
    const headers = { Accept: EVENTS, "Content-Type": "application/json" };
    const response = await this.#fetch(classifyPath(model), { method: "POST", body, headers, signal });
    await deliverAll(response, events);
  }

  async #upload(file: File, model: string, events: CallEvents, signal: AbortSignal): Promise<void> {
    const key = uploadKey();
    const call = new AbortController();
    const either = AbortSignal.any([signal, call.signal]);
    try {
      const headers = { Accept: EVENTS };
      const listening = await this.#fetch(`v1/uploads/${key}/events`, { headers, signal: either });
      const delivered = deliverAll(listening, events);
      const upload = this.#fetch(classifyPath(model, key), {
        method: "POST",
        body: file,
        headers: { "Content-Type": "application/octet-stream" },
        signal: either,
      });
      await lastEvent(delivered, upload);
      // The answer of the upload tells nothing new, but is read: a call that ends early looks cancelled to the server.
      upload.then((response) => response.arrayBuffer()).catch(() => undefined);
    } catch (error) {
      call.abort();
      throw error;
    }
  }

  async #get(path: string): Promise<unknown> {
    return (await this.#fetch(path, {})).json();
  }

  async #fetch(path: string, init: RequestInit): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.#token() !== "") headers.set("Authorization", `Bearer ${this.#token()}`);
    let response: Response;
    try {
      response = await fetch(path, { ...init, headers });
    } catch {
      throw new CallError({ code: "UNAVAILABLE", reason: UNREACHABLE, message: `No answer from ${location.origin}.` });
    }
    if (response.ok) return response;
    const body = (await response.json().catch(() => ({}))) as EventJson;
    throw new CallError(failureOf(body.error, response.status, response.headers.get("Retry-After")));
  }
}

function classifyPath(model: string, key?: string): string {
  const options = new URLSearchParams({ topK: String(TOP_K), previews: "true" });
  if (model !== "") options.set("model", model);
  if (key !== undefined) options.set("events", key);
  return `v1/videos:classify?${options}`;
}

/** crypto.randomUUID is there only on pages from localhost or over HTTPS. */
function uploadKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Waits for the last event. Where the server refuses the upload, its error counts. Where the upload's connection breaks, the
 * events say why: a server that refuses a video need not read the rest of it.
 */
async function lastEvent(delivered: Promise<void>, upload: Promise<Response>): Promise<void> {
  const refused = new Promise<never>((_, reject) => {
    upload.catch((error: unknown) => {
      const broke = error instanceof CallError && error.failure.reason === UNREACHABLE;
      if (broke) setTimeout(() => reject(cutOff()), BROKEN_UPLOAD_MILLISECONDS);
      else reject(error);
    });
  });
  delivered.catch(() => undefined);
  await Promise.race([delivered, refused]);
}

async function deliverAll(response: Response, events: CallEvents): Promise<void> {
  try {
    for await (const event of jsonLines(piecesOf(response.body!))) if (deliver(event as EventJson, events)) return;
  } catch (error) {
    throw error instanceof CallError ? error : cutOff();
  }
  throw cutOff();
}

/** Whether this event was the last one. */
function deliver(event: EventJson, events: CallEvents): boolean {
  if (event.error) throw new CallError(failureOf(event.error, 200, null));
  if (event.clip) events.clip(clipOf(event.clip));
  if (event.progress) events.received(Number(event.progress.receivedBytes ?? 0));
  if (event.classification) events.answer(answerOf(event.classification));
  return event.classification !== undefined;
}

function cutOff(): CallError {
  return new CallError({ code: "UNAVAILABLE", reason: CUT_OFF, message: "The connection ended before the answer did." });
}
