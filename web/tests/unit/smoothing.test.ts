import { describe, expect, it } from "vitest";
import { smooth } from "../../src/answers/smoothing.ts";
import { clipsOf } from "./clips.ts";

const run = { run: 0.7, walk: 0.3 };
const walk = { run: 0.4, walk: 0.6 };
const surelyWalk = { run: 0.01, walk: 0.99 };

describe("smoothing", () => {
  it("leaves each clip its best label when it is off", () => {
    expect(smooth(clipsOf([run, walk, run]), 2, 0)).toEqual(["run", "walk", "run"]);
  });

  it("removes a single clip of another label", () => {
    expect(smooth(clipsOf([run, run, walk, run, run]), 2, 5)).toEqual(Array(5).fill("run"));
  });

  it("keeps a change that lasts", () => {
    const labels = smooth(clipsOf([...Array(8).fill(run), ...Array(8).fill(surelyWalk)]), 2, 5);
    expect(labels).toEqual([...Array(8).fill("run"), ...Array(8).fill("walk")]);
  });

  it("needs more evidence for a change where labels last longer", () => {
    const clips = clipsOf([...Array(6).fill(run), ...Array(4).fill(walk), ...Array(6).fill(run)]);
    expect(new Set(smooth(clips, 2, 0.6)).size).toBe(2);
    expect(new Set(smooth(clips, 2, 60)).size).toBe(1);
  });

  it("changes nothing when labels are expected to last no longer than a clip", () => {
    expect(smooth(clipsOf([run, walk, run, walk]), 2, 0.1)).toEqual(["run", "walk", "run", "walk"]);
  });

  it("gives labels that a clip leaves out their part of the remaining score", () => {
    const clips = clipsOf([{ run: 0.5 }, { walk: 0.5 }, { run: 0.5 }, { run: 0.5 }]);
    expect(smooth(clips, 400, 10)).toEqual(["run", "run", "run", "run"]);
  });

  it("finds the most probable of all sequences", () => {
    const clips = clipsOf([run, walk, surelyWalk, run, walk, run]);
    expect(smooth(clips, 2, 2)).toEqual(mostProbable(clips, 2));
  });

  it("takes no clips and clips without labels", () => {
    expect(smooth([], 2, 5)).toEqual([]);
    expect(smooth(clipsOf([{}, {}]), 2, 5)).toEqual(["", ""]);
  });
});

/** The definition: every sequence of two labels is tried. */
function mostProbable(clips: ReturnType<typeof clipsOf>, expectedSeconds: number): string[] {
  const leave = 0.5 / expectedSeconds;
  const sequences = Array.from({ length: 2 ** clips.length }, (_, number) =>
    clips.map((_, position) => ((number >> position) & 1 ? "walk" : "run")),
  );
  const logProbability = (labels: string[]) =>
    labels.reduce((sum, label, position) => {
      const evidence = Math.log(clips[position]!.scores.find((entry) => entry.label === label)!.score);
      const stays = position === 0 || labels[position - 1] === label;
      return sum + evidence + (position === 0 ? 0 : Math.log(stays ? 1 - leave : leave));
    }, 0);
  return sequences.reduce((best, labels) => (logProbability(labels) > logProbability(best) ? labels : best));
}
