/** Keys of the page. The help dialog lists them. */

import type { App } from "../app.ts";
import type { Player } from "./player.ts";
import type { Timeline } from "./timeline.ts";

export interface KeyboardActions {
  choose(): void;
  openWebcam(): void;
  openHelp(): void;
}

const THRESHOLD_STEP = 0.05;
const LONG_STEP_SECONDS = 5;

export function listenToKeys(app: App, player: Player, timeline: Timeline, actions: KeyboardActions): void {
  const always: Record<string, () => void> = {
    o: () => actions.choose(),
    w: () => actions.openWebcam(),
    "?": () => actions.openHelp(),
  };
  const withVideo = videoKeys(app, player, timeline);
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTaken(event)) return;
    const name = event.shiftKey && event.key.startsWith("Arrow") ? `Shift ${event.key}` : event.key;
    const action = always[name] ?? (app.selected ? withVideo[name] : undefined);
    if (!action) return;
    event.preventDefault();
    action();
  });
}

function videoKeys(app: App, player: Player, timeline: Timeline): Record<string, () => void> {
  const threshold = (step: number) =>
    app.set({ threshold: Math.min(1, Math.max(0, Math.round((app.settings.threshold + step) * 100) / 100)) });
  const keys: Record<string, () => void> = {
    " ": () => player.toggle(),
    ArrowLeft: () => player.step(-1),
    ArrowRight: () => player.step(1),
    "Shift ArrowLeft": () => player.seek(player.time - LONG_STEP_SECONDS),
    "Shift ArrowRight": () => player.seek(player.time + LONG_STEP_SECONDS),
    n: () => player.toNextSegment(),
    p: () => player.toPreviousSegment(),
    Home: () => player.seek(0),
    End: () => player.seek(player.duration),
    "+": () => timeline.zoomBy(1),
    "=": () => timeline.zoomBy(1),
    "-": () => timeline.zoomBy(-1),
    "0": () => timeline.fit(),
    "[": () => threshold(-THRESHOLD_STEP),
    "]": () => threshold(THRESHOLD_STEP),
    s: smoothingSwitch(app),
    PageUp: () => app.selectNext(-1),
    PageDown: () => app.selectNext(1),
    m: () => player.toggleSound(),
    f: () => player.toggleFullScreen(),
  };
  for (let digit = 1; digit <= 9; digit++) keys[String(digit)] = () => markRanked(app, digit - 1);
  return keys;
}

/** Off, and back to what it was. */
function smoothingSwitch(app: App): () => void {
  let before = app.settings.smoothingSeconds || 2;
  return () => {
    const { smoothingSeconds } = app.settings;
    if (smoothingSeconds > 0) before = smoothingSeconds;
    app.set({ smoothingSeconds: smoothingSeconds > 0 ? 0 : before });
  };
}

function markRanked(app: App, index: number): void {
  const { run } = app;
  if (run) app.mark(app.ranking(run)[index]?.label);
}

/** Whether the focused element uses the key itself. */
function isTaken(event: KeyboardEvent): boolean {
  const { target, key } = event;
  if (!(target instanceof HTMLElement)) return false;
  if (document.querySelector("dialog[open]")) return true;
  if (target instanceof HTMLInputElement) return target.type !== "range" || key.startsWith("Arrow") || /^(Home|End|Page)/.test(key);
  if (target.matches("select, textarea")) return true;
  if (target.matches("[role=tab]") && key.startsWith("Arrow")) return true;
  return target.matches("button, a, summary") && (key === " " || key === "Enter");
}
