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
  const stateOf = new Map(labels.map((label, state) => [label, state]));
  const states = Math.max(classes, labels.length, 2);
  const path = new Path(clips.length, labels.length);
  clips.forEach((clip, position) => {
    if (position > 0) path.advance(position, changeCosts(clip, states, expectedSeconds));
    addEvidence(path.total, clip, stateOf, states);
  });
  return path.trace().map((state) => labels[state]!);
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

/** What a clip does not tell of a class is its even part of the score that is left. */
function addEvidence(total: Float64Array, clip: Clip, stateOf: Map<string, number>, states: number): void {
  const told = clip.scores.reduce((sum, entry) => sum + entry.score, 0);
  const rest = evidence(Math.max(0, 1 - told) / Math.max(1, states - clip.scores.length));
  for (let state = 0; state < total.length; state++) total[state]! += rest;
  for (const { label, score } of clip.scores) total[stateOf.get(label)!]! += evidence(score) - rest;
}

function evidence(score: number): number {
  return Math.log(Math.max(score, LEAST_SCORE));
}

/** The best sequence of states that ends in each state. */
class Path {
  /** Log probability of the best sequence that ends in each state. */
  readonly total: Float64Array;
  /** (clips, states): whether the best sequence was in the same state one clip before. */
  readonly #stays: Uint8Array;
  /** The state that changes come from, for each clip. */
  readonly #changesFrom: Int32Array;

  constructor(clips: number, states: number) {
    this.total = new Float64Array(states);
    this.#stays = new Uint8Array(clips * states);
    this.#changesFrom = new Int32Array(clips);
  }

  advance(position: number, { stay, change }: ChangeCosts): void {
    const { total } = this;
    const best = indexOfLargest(total);
    const changed = total[best]! + change;
    this.#changesFrom[position] = best;
    for (let state = 0; state < total.length; state++) {
      const stayed = total[state]! + stay;
      if (stayed >= changed) this.#stays[position * total.length + state] = 1;
      total[state] = Math.max(stayed, changed);
    }
  }

  trace(): number[] {
    const states = new Array<number>(this.#changesFrom.length);
    let state = indexOfLargest(this.total);
    for (let position = states.length - 1; position >= 0; position--) {
      states[position] = state;
      if (!this.#stays[position * this.total.length + state]) state = this.#changesFrom[position]!;
    }
    return states;
  }
}

function indexOfLargest(values: Float64Array): number {
  let best = 0;
  for (let index = 1; index < values.length; index++) if (values[index]! > values[best]!) best = index;
  return best;
}
