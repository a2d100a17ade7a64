/** Classifies videos, a few at a time. */

import type { CallEvents } from "../api/client.ts";
import { CallError, isBusy, needsToken, type Failure } from "../api/failure.ts";
import { Run } from "./run.ts";
import type { Source } from "./source.ts";
import { Video } from "./video.ts";

/** Videos that are uploaded at a time: the next one is decoded while the model computes the one before it. */
const AT_A_TIME = 2;
/** Tries of a full server before the page gives up. */
const TRIES = 20;
/** Where a full server names no delay. */
const DEFAULT_RETRY_SECONDS = 2;

/** What a queue needs of the server; `Client` is one. */
export interface Classifier {
  classify(source: Source, model: string, events: CallEvents, signal: AbortSignal): Promise<void>;
}

export interface QueueListener {
  /** A video or the state of a run has changed. */
  changed(): void;
  /** Something came from the server. */
  received(): void;
}

export class Queue {
  readonly videos: Video[] = [];
  readonly #client: Classifier;
  readonly #listener: QueueListener;
  readonly #timers = new Map<Run, ReturnType<typeof setTimeout>>();

  constructor(client: Classifier, listener: QueueListener) {
    this.#client = client;
    this.#listener = listener;
  }

  get isActive(): boolean {
    return this.#runs().some(({ run }) => run.isActive);
  }

  add(source: Source, model: string): Video {
    const video = new Video(source);
    this.videos.push(video);
    this.ensure(video, model);
    return video;
  }

  /** Classifies a video by a model unless that is done or under way. */
  ensure(video: Video, model: string): Run {
    const run = video.run(model);
    this.#advance();
    return run;
  }

  remove(video: Video): void {
    for (const run of video.runs.values()) this.cancel(run);
    this.videos.splice(this.videos.indexOf(video), 1);
    video.release();
    this.#advance();
  }

  cancel(run: Run): void {
    clearTimeout(this.#timers.get(run));
    run.abort?.abort();
    if (run.isActive || run.isWaiting) run.state = "cancelled";
    this.#advance();
  }

  retry(run: Run): void {
    clearTimeout(this.#timers.get(run));
    run.tries = 0;
    run.reset();
    this.#advance();
  }

  /** Tries what failed for want of a token again. */
  tokenChanged(): void {
    for (const { run } of this.#runs()) if (run.failure && needsToken(run.failure)) this.retry(run);
  }

  #runs(): { video: Video; run: Run }[] {
    return this.videos.flatMap((video) => [...video.runs.values()].map((run) => ({ video, run })));
  }

  #advance(): void {
    const runs = this.#runs();
    let active = runs.filter(({ run }) => run.isActive).length;
    for (const { video, run } of runs) {
      if (active >= AT_A_TIME) break;
      if (run.state !== "queued") continue;
      active++;
      void this.#classify(video, run);
    }
    this.#listener.changed();
  }

  async #classify(video: Video, run: Run): Promise<void> {
    const abort = new AbortController();
    run.reset();
    run.state = "uploading";
    run.tries++;
    run.abort = abort;
    try {
      await this.#client.classify(video.source, run.model, this.#events(run, abort.signal), abort.signal);
      if (!abort.signal.aborted) run.state = "done";
    } catch (error) {
      if (!abort.signal.aborted) this.#failed(run, failureFrom(error));
    }
    this.#advance();
  }

  /** Events that come after the call was stopped are dropped: another one may have begun. */
  #events(run: Run, signal: AbortSignal): CallEvents {
    const apply = (change: () => void) => {
      if (signal.aborted) return;
      change();
      this.#listener.received();
    };
    return {
      clip: (clip) =>
        apply(() => {
          run.state = "classifying";
          run.clips.push(clip);
        }),
      received: (bytes) => apply(() => (run.receivedBytes = bytes)),
      answer: (answer) => apply(() => (run.answer = answer)),
    };
  }

  #failed(run: Run, failure: Failure): void {
    run.failure = failure;
    run.state = "failed";
    if (!isBusy(failure) || run.tries >= TRIES) return;
    const delay = (failure.retryAfter ?? DEFAULT_RETRY_SECONDS) * 1000;
    run.state = "retrying";
    run.retryAt = Date.now() + delay;
    this.#timers.set(run, setTimeout(() => this.#tryAgain(run), delay));
  }

  #tryAgain(run: Run): void {
    if (run.state === "retrying") run.state = "queued";
    this.#advance();
  }
}

function failureFrom(error: unknown): Failure {
  if (error instanceof CallError) return error.failure;
  return { code: "INTERNAL", reason: "", message: error instanceof Error ? error.message : String(error) };
}
