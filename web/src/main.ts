/** Puts the page together. */

import "./style/base.css";
import "./style/controls.css";
import "./style/layout.css";
import "./style/queue.css";
import "./style/player.css";
import "./style/panel.css";
import "./style/timeline.css";
import "./style/dialog.css";

import { App } from "./app.ts";
import { commandsPanel } from "./view/commands-panel.ts";
import { detailsPanel } from "./view/details-panel.ts";
import { h } from "./view/element.ts";
import { header } from "./view/header.ts";
import { helpDialog } from "./view/help-dialog.ts";
import { icon } from "./view/icons.ts";
import { Intake } from "./view/intake.ts";
import { listenToKeys } from "./view/keyboard.ts";
import { labelsPanel } from "./view/labels-panel.ts";
import { modelsDialog } from "./view/models-dialog.ts";
import { notices } from "./view/notice.ts";
import { tabs } from "./view/panel.ts";
import { Player } from "./view/player.ts";
import { queueList } from "./view/queue-list.ts";
import { segmentsPanel } from "./view/segments-panel.ts";
import { ServerStatus } from "./view/server-status.ts";
import { Timeline } from "./view/timeline.ts";
import { timelineControls } from "./view/timeline-controls.ts";
import { tokenDialog } from "./view/token-dialog.ts";
import { WebcamDialog } from "./view/webcam-dialog.ts";
import { welcome } from "./view/welcome.ts";

const app = new App();
const status = new ServerStatus(app);
const intake = new Intake(app);
const player = new Player(app);
const timeline = new Timeline(app, player);
const webcam = new WebcamDialog(app);
const help = helpDialog();
const models = modelsDialog(app);
const token = tokenDialog(app, () => void status.poll());
const openWebcam = () => void webcam.open();

const start = welcome(app, intake, openWebcam);
const work = h(
  "div",
  { class: "work", hidden: true },
  queue(),
  h(
    "div",
    { class: "video" },
    h(
      "div",
      { class: "stage" },
      player.element,
      tabs("Answers", [
        { name: "Labels", content: labelsPanel(app, player) },
        { name: "Segments", content: segmentsPanel(app, player) },
        { name: "Details", content: detailsPanel(app) },
        { name: "Use", content: commandsPanel(app) },
      ]),
    ),
    h("section", { class: "timeline", "aria-label": "Timeline" }, timelineControls(app, timeline), timeline.element),
  ),
);

document.body.append(
  header(app, status.element, {
    openModels: () => models.open(),
    openToken: () => token.open(),
    openHelp: () => help.open(),
  }),
  h("main", {}, notices(app, () => token.open()), start, work),
  ...[help, models, token, webcam].map(({ element }) => element),
  intake.element,
  intake.overlay,
);
listenToKeys(app, player, timeline, { choose: () => intake.choose(), openWebcam, openHelp: () => help.open() });
app.subscribe(() => {
  start.hidden = app.queue.videos.length > 0;
  work.hidden = !start.hidden;
  document.title = app.selected ? `${app.selected.name} – Kinetoscope` : "Kinetoscope";
});
// The browser asks whether to leave while videos are being classified.
window.addEventListener("beforeunload", (event) => {
  if (app.queue.isActive) event.preventDefault();
});
app.changed();
void status.poll();

function queue(): HTMLElement {
  const add = h("button", { type: "button", class: "primary", onclick: () => intake.choose() }, icon("add"), "Add videos");
  const record = h("button", { type: "button", onclick: openWebcam }, icon("camera"), "Webcam");
  return h(
    "aside",
    { class: "queue", "aria-label": "Videos" },
    h("div", { class: "queue-add" }, add, record),
    queueList(app),
    intake.uriForm(),
  );
}
