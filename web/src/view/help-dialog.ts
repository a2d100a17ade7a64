/** The keys of the page. */

import { Dialog } from "./dialog.ts";
import { h } from "./element.ts";

const KEYS: [keys: string, about: string][] = [
  ["Space", "Play or pause"],
  ["← →", "Clip before or after"],
  ["Shift ← →", "Five seconds back or on"],
  ["p n", "Segment before or after"],
  ["Home End", "Start or end of the video"],
  ["+ − 0", "Zoom in, out, whole video"],
  ["[ ]", "Lower or raise the threshold"],
  ["s", "Smoothing off or on"],
  ["Page Up, Page Down", "Video before or after"],
  ["1 – 9", "Mark a label of the table"],
  ["o", "Choose files"],
  ["w", "Record from webcam"],
  ["m", "Sound off or on"],
  ["f", "Full screen"],
  ["?", "This list"],
];

export function helpDialog(): Dialog {
  const list = KEYS.flatMap(([keys, about]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, about)]);
  return new Dialog("Keyboard", [h("dl", { class: "keys" }, ...list)]);
}
