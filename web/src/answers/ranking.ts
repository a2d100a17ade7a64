/** The best labels of a video. */

import type { Clip, Score } from "./clips.ts";
import type { Segment } from "./segments.ts";

export interface RankedLabel {
  label: string;
  /** Mean over all clips. */
  mean: number;
  /** Best score of a clip. */
  peak: number;
  /** When that clip starts, in seconds. */
  peakTime: number;
  /** Time for which segments have this label, in seconds. */
  time: number;
}

/**
 * Best mean first. Means are the server's where it gave them: clips may leave out low scores, so theirs come out too small.
 */
export function rank(clips: readonly Clip[], segments: readonly Segment[], answer: readonly Score[] = []): RankedLabel[] {
  const ranked = new Map<string, RankedLabel>();
  const entry = (label: string) => {
    const known = ranked.get(label) ?? { label, mean: 0, peak: 0, peakTime: 0, time: 0 };
    ranked.set(label, known);
    return known;
  };
  for (const clip of clips) {
    for (const { label, score } of clip.scores) {
      const known = entry(label);
      known.mean += score / clips.length;
      if (score > known.peak) Object.assign(known, { peak: score, peakTime: clip.start });
    }
  }
  for (const { label, score } of answer) entry(label).mean = score;
  for (const { label, start, end } of segments) if (label !== undefined) entry(label).time += end - start;
  return [...ranked.values()].sort((a, b) => b.mean - a.mean || a.label.localeCompare(b.label));
}

/**
 * Labels that a timeline has rows for: first those of segments, by their time, then those that peak highest.
 */
export function rows(ranked: readonly RankedLabel[], count: number): RankedLabel[] {
  return [...ranked].sort((a, b) => b.time - a.time || b.peak - a.peak).slice(0, count);
}
