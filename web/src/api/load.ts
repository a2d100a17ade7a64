/** How much a server has to do. */

import type { DurationCountJson, StatisticsJson } from "./contract.ts";

/** What all models did since the server's start. */
export interface Work {
  clips: number;
  /** Clips that have waited for a batch, and how long all of them did. */
  queued: number;
  queueSeconds: number;
}

export interface Load {
  clipsPerSecond: number;
  /** Mean time that a clip waits for its batch. */
  queueSeconds: number;
}

export function workOf(statistics: StatisticsJson): Work {
  const work = { clips: 0, queued: 0, queueSeconds: 0 };
  for (const model of statistics.model_stats ?? []) {
    const queue: DurationCountJson = model.inference_stats?.queue ?? {};
    work.clips += Number(model.inference_count ?? 0);
    work.queued += Number(queue.count ?? 0);
    work.queueSeconds += Number(queue.ns ?? 0) / 1e9;
  }
  return work;
}

/** Between two readings; undefined if the server has started anew between them. */
export function loadBetween(before: Work, after: Work, elapsedSeconds: number): Load | undefined {
  const clips = after.clips - before.clips;
  const queued = after.queued - before.queued;
  if (clips < 0 || queued < 0 || elapsedSeconds <= 0) return undefined;
  const queueSeconds = queued === 0 ? 0 : (after.queueSeconds - before.queueSeconds) / queued;
  return { clipsPerSecond: clips / elapsedSeconds, queueSeconds };
}
