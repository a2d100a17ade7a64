/** How far two models agree on a video. */

import type { Segment } from "./segments.ts";

export interface Span {
  start: number;
  end: number;
}

export interface Agreement {
  /** Part of the time that both have classified, from 0 to 1, in which their labels are the same. */
  share: number;
  /** Where they differ, in order of time. */
  differences: Span[];
}

export function agreement(first: readonly Segment[], second: readonly Segment[]): Agreement | undefined {
  const spans = overlaps(first, second);
  const total = spans.reduce((sum, span) => sum + span.end - span.start, 0);
  if (total <= 0) return undefined;
  const differences: Span[] = [];
  let differing = 0;
  for (const { start, end, same } of spans) {
    if (same) continue;
    differing += end - start;
    const before = differences.at(-1);
    if (before && start - before.end < 1e-6) before.end = end;
    else differences.push({ start, end });
  }
  return { share: 1 - differing / total, differences };
}

function overlaps(first: readonly Segment[], second: readonly Segment[]) {
  const spans: (Span & { same: boolean })[] = [];
  for (let a = 0, b = 0; a < first.length && b < second.length; ) {
    const left = first[a]!;
    const right = second[b]!;
    const start = Math.max(left.start, right.start);
    const end = Math.min(left.end, right.end);
    if (end > start) spans.push({ start, end, same: left.label === right.label });
    if (left.end <= right.end) a++;
    else b++;
  }
  return spans;
}
