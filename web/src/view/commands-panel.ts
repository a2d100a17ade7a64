/** The same call as a command, to copy. */

import type { App } from "../app.ts";
import { cliCommand, curlCommand, pythonCommand, type CommandInput } from "../commands.ts";
import { copyButton } from "./copy.ts";
import { h, setText } from "./element.ts";

const COMMANDS = [
  { name: "curl", write: curlCommand },
  { name: "Python", write: pythonCommand },
  { name: "Command line", write: cliCommand },
] as const;

export function commandsPanel(app: App): HTMLElement {
  return h("div", { class: "commands" }, ...COMMANDS.map(({ name, write }) => commandView(app, name, write)));
}

function commandView(app: App, name: string, write: (input: CommandInput) => string): HTMLElement {
  const code = h("code", {});
  app.subscribe(() => setText(code, write(inputOf(app))));
  const block = h("pre", { tabIndex: 0, "aria-label": `${name} command` }, code);
  return h("div", { class: "command" }, h("h2", {}, name, copyButton(name, () => code.textContent ?? "")), block);
}

export function inputOf(app: App): CommandInput {
  const source = app.selected?.source;
  const video = source?.kind === "uri" ? { uri: source.uri } : { file: source?.file.name ?? "video.mp4" };
  // A proxy may have put the server below a path.
  const origin = new URL(".", location.href).href.replace(/\/$/, "");
  return { origin, video, model: app.model, token: app.token !== "" };
}
