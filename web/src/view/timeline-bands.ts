/** What stands below what on a timeline. */

import { agreement, type Span } from "../answers/agreement.ts";
import type { App } from "../app.ts";
import { rows } from "../answers/ranking.ts";
import type { Run } from "../queue/run.ts";
import { percent } from "../words.ts";

export type Band = { top: number; height: number } & (
  | { kind: "ruler" }
  | { kind: "pictures"; run: Run }
  | { kind: "differences"; title: string; spans: Span[] }
  | { kind: "segments"; run: Run; title: string }
  /** The letter tells two models apart. */
  | { kind: "row"; run: Run; label: string; letter: string }
);

const HEIGHTS = { ruler: 24, pictures: 48, differences: 18, segments: 34, row: 28 } as const;
const GAP_BETWEEN_RUNS = 8;

/** Top to bottom, in pixels. `rowCount` is how many labels have a row. Two models share them, each with half of the rows. */
export function bandsOf(app: App, rowCount: number): Band[] {
  const bands: Band[] = [];
  let top = 0;
  const add = (band: { kind: Band["kind"] } & Record<string, unknown>) => {
    const height = HEIGHTS[band.kind];
    bands.push({ ...band, top, height } as Band);
    top += height;
  };
  const runs = app.runs.filter((run) => run.clips.length > 0);
  const pictured = runs.find((run) => run.clips.some((clip) => clip.preview !== undefined));
  add({ kind: "ruler" });
  if (pictured) add({ kind: "pictures", run: pictured });
  for (const run of runs) add({ kind: "segments", run, title: `${app.letterOf(run)} ${app.titleOf(run)}`.trim() });
  const agreed = runs[1] && agreement(app.segments(runs[0]!), app.segments(runs[1]));
  if (agreed) add({ kind: "differences", title: `Same for ${percent(agreed.share)}`, spans: agreed.differences });
  for (const run of runs) {
    const labels = rowLabels(app, run, Math.ceil(rowCount / runs.length));
    for (const label of labels) add({ kind: "row", run, label, letter: app.letterOf(run) });
    top += GAP_BETWEEN_RUNS;
  }
  return bands;
}

export function heightOf(bands: readonly Band[]): number {
  const last = bands.at(-1);
  return last ? last.top + last.height : 0;
}

function rowLabels(app: App, run: Run, rowCount: number): string[] {
  const labels = rows(app.ranking(run), rowCount).map((entry) => entry.label);
  const marked = app.markedLabel;
  const isKnown = marked !== undefined && run.clips.some((clip) => clip.scores.some(({ label }) => label === marked));
  return isKnown && !labels.includes(marked) ? [...labels.slice(0, -1), marked] : labels;
}
