import type { Clip } from "../../src/answers/clips.ts";

/** Clips of `seconds` each, one after another, with these scores by label. */
export function clipsOf(scores: Record<string, number>[], seconds = 0.5): Clip[] {
  return scores.map((byLabel, position) => ({
    start: position * seconds,
    end: (position + 1) * seconds,
    scores: Object.entries(byLabel)
      .map(([label, score]) => ({ label, score }))
      .sort((a, b) => b.score - a.score),
  }));
}
