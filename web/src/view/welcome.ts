/** The page before there is a video. */

import type { App } from "../app.ts";
import { curlCommand } from "../commands.ts";
import { bytes, length } from "../words.ts";
import { inputOf } from "./commands-panel.ts";
import { copyButton } from "./copy.ts";
import { h, setText } from "./element.ts";
import { icon } from "./icons.ts";
import type { Intake } from "./intake.ts";

export function welcome(app: App, intake: Intake, openWebcam: () => void): HTMLElement {
  const limits = h("p", { class: "muted" });
  const code = h("code", {});
  app.subscribe(() => {
    setText(limits, limitsText(app));
    setText(code, curlCommand(inputOf(app)));
  });
  return h(
    "section",
    { class: "welcome", "aria-label": "Add a video" },
    h(
      "div",
      { class: "drop-area" },
      icon("upload"),
      h("h2", {}, "Drop a video here"),
      limits,
      h(
        "div",
        { class: "welcome-buttons" },
        h("button", { type: "button", class: "primary", onclick: () => intake.choose() }, "Choose files"),
        h("button", { type: "button", onclick: openWebcam }, icon("camera"), "Record from webcam"),
      ),
      h("div", { class: "or" }, "or give the server an address to read"),
      intake.uriForm(),
    ),
    h(
      "div",
      { class: "welcome-command" },
      h("h3", {}, "From a terminal", copyButton("curl command", () => code.textContent ?? "")),
      h("pre", { tabIndex: 0, "aria-label": "curl command" }, code),
    ),
  );
}

function limitsText(app: App): string {
  const { maxVideoBytes, maxSeconds } = app.limits;
  const limits = [
    Number.isFinite(maxVideoBytes) ? bytes(maxVideoBytes) : "",
    Number.isFinite(maxSeconds) ? length(maxSeconds) : "",
  ].filter((limit) => limit !== "");
  const kinds = "MP4, MOV, MKV, WebM, AVI, GIF and more";
  return limits.length > 0 ? `${kinds}, up to ${limits.join(" or ")}` : kinds;
}
