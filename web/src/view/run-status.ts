/** How far a run is, in words and as a share. */

import { adviceFor } from "../api/failure.ts";
import type { Run } from "../queue/run.ts";
import { percent } from "../words.ts";

/** `size`: bytes of the file, if they are known. */
export function statusText(run: Run, size: number | undefined): string {
  switch (run.state) {
    case "queued":
      return "Queued";
    case "uploading":
    case "classifying":
      return progressText(run, size);
    case "retrying":
      return `Server full, retry in ${Math.max(1, Math.ceil((run.retryAt - Date.now()) / 1000))} s`;
    case "done":
      return doneText(run);
    case "failed":
      return adviceFor(run.failure!).title;
    case "cancelled":
      return "Stopped";
  }
}

function progressText(run: Run, size: number | undefined): string {
  const sent = share(run, size);
  if (sent !== undefined && sent < 1) return `Uploading ${percent(sent)}`;
  return run.clips.length === 0 ? "Waiting for the first clip" : `${run.clips.length} clips`;
}

function doneText(run: Run): string {
  const best = run.answer?.labels[0];
  return best ? `${best.label} ${percent(best.score)}` : "No labels";
}

/** Part of the file that the server has, from 0 to 1; undefined if that is unknown. */
export function share(run: Run, size: number | undefined): number | undefined {
  if (run.state === "done") return 1;
  return size ? Math.min(1, run.receivedBytes / size) : undefined;
}
