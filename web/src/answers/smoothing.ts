/**
 * Smoothing of clip labels by a hidden Markov model: each class is a state, a clip's scores are its evidence, and a state
 * lasts `expectedSeconds` on average. The most probable sequence of states is found by Viterbi's algorithm.
 */

import type { Clip } from "./clips.ts";

/** Scores below this are taken as this, so that one clip can't forbid a label. */
const LEAST_SCORE = 1e-4;

/**
 * The label of each clip. `classes` is how many the model has, which may be more than the clips tell of.
 * `expectedSeconds` of 0 means no smoothing: each clip has its own best label.
 *
 * Changing costs the same from every state to every other one, so a step needs only the best state before it:
 * O(clips * labels).
 */
export function smooth(clips: readonly Clip[], classes: number, expectedSeconds: number): string[] {
  if (expectedSeconds <= 0) return clips.map((clip) => clip.scores[0]?.label ?? "");
  const labels = [...new Set(clips.flatMap((clip) => clip.scores.map((entry) => entry.label)))];
  if (labels.length === 0) return clips.map(() => "");
  const states = Math.max(classes, labels.length, 2);
  const previous: Int32Array[] = [];
  let total = new Float64Array(labels.length);
  clips.forEach((clip, position) => {
    const step = advance(total, changeCosts(clip, states, expectedSeconds), position === 0);
    addEvidence(step.total, clip, labels, states);
    previous.push(step.previous);
    total = step.total;
  });
  return trace(previous, total).map((state) => labels[state]!);
}

interface ChangeCosts {
  stay: number;
  change: number;
}

/** Log probabilities. A clip as long as the expected time carries nothing over: all states are then as likely. */
function changeCosts(clip: Clip, states: number, expectedSeconds: number): ChangeCosts {
  const length = Math.max(clip.end - clip.start, 1e-3);
  const leave = Math.min(length / expectedSeconds, (states - 1) / states);
  return { stay: Math.log(1 - leave), change: Math.log(leave / (states - 1)) };
}

function advance(total: Float64Array, costs: ChangeCosts, first: boolean) {
  const previous = new Int32Array(total.length);
  const next = new Float64Array(total.length);
  if (first) return { total: next, previous };
  const best = indexOfLargest(total);
  const changed = total[best]! + costs.change;
  for (let state = 0; state < total.length; state++) {
    const stayed = total[state]! + costs.stay;
    const stays = stayed >= changed;
    next[state] = stays ? stayed : changed;
    previous[state] = stays ? state : best;
  }
  return { total: next, previous };
}

/** What a clip does not tell of a class is its even part of the score that is left. */
function addEvidence(total: Float64Array, clip: Clip, labels: string[], states: number): void {
  const scores = new Map(clip.scores.map((entry) => [entry.label, entry.score]));
  const told = clip.scores.reduce((sum, entry) => sum + entry.score, 0);
  const rest = Math.max(0, 1 - told) / Math.max(1, states - scores.size);
  labels.forEach((label, state) => {
    total[state]! += Math.log(Math.max(scores.get(label) ?? rest, LEAST_SCORE));
  });
}

function trace(previous: Int32Array[], total: Float64Array): number[] {
  const path = new Array<number>(previous.length);
  let state = indexOfLargest(total);
  for (let position = previous.length - 1; position >= 0; position--) {
    path[position] = state;
    state = previous[position]![state]!;
  }
  return path;
}

function indexOfLargest(values: Float64Array): number {
  let best = 0;
  for (let index = 1; index < values.length; index++) if (values[index]! > values[best]!) best = index;
  return best;
}
