/** One video classified by one model. */

import { type Answer } from "../api/answer.ts";
import { type Failure } from "../api/failure.ts";
import type { Clip } from "../answers/clips.ts";
import { endOf } from "../answers/clips.ts";
import { rank, type RankedLabel } from "../answers/ranking.ts";
import { segmentsOf, type Segment, type SegmentOptions } from "../answers/segments.ts";

/** queued: before others; retrying: the server was full, and the next try comes at `retryAt`. */
export type RunState = "queued" | "uploading" | "classifying" | "retrying" | "done" | "failed" | "cancelled";

export class Run {
  readonly model: string;
  state: RunState = "queued";
  clips: Clip[] = [];
  answer: Answer | undefined;
  failure: Failure | undefined;
  /** Bytes that the server has received. */
  receivedBytes = 0;
  /** When the next try comes, as `Date.now()` counts. */
  retryAt = 0;
  tries = 0;
  /** Ends the call. */
  abort: AbortController | undefined;
  #analysis: { key: string; segments: Segment[]; ranking: RankedLabel[] } | undefined;

  constructor(model: string) {
    this.model = model;
  }

  get isActive(): boolean {
    return this.state === "uploading" || this.state === "classifying";
  }

  get isWaiting(): boolean {
    return this.state === "queued" || this.state === "retrying";
  }

  /** Seconds; what is known of it until now. */
  get duration(): number {
    return Math.max(this.answer?.duration ?? 0, endOf(this.clips));
  }

  reset(): void {
    this.clips = [];
    this.answer = undefined;
    this.failure = undefined;
    this.receivedBytes = 0;
    this.state = "queued";
  }

  /** Segments and best labels. Made anew only when clips have come or the options have changed. */
  analysis(options: SegmentOptions): { segments: Segment[]; ranking: RankedLabel[] } {
    const key = `${this.clips.length} ${this.answer !== undefined} ${options.classes} ${options.expectedSeconds} ${options.threshold}`;
    if (this.#analysis?.key !== key) {
      const segments = segmentsOf(this.clips, options);
      this.#analysis = { key, segments, ranking: rank(this.clips, segments, this.answer?.labels) };
    }
    return this.#analysis;
  }
}
