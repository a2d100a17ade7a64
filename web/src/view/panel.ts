/** Tabs: one panel is shown at a time. */

import { h } from "./element.ts";

export interface Tab {
  name: string;
  content: HTMLElement;
}

export function tabs(label: string, all: Tab[]): HTMLElement {
  const buttons = all.map(({ name }, index) =>
    h("button", { type: "button", role: "tab", id: `tab-${index}`, "aria-controls": `panel-${index}`, onclick: () => show(index) }, name),
  );
  const panels = all.map(({ content }, index) =>
    h("div", { role: "tabpanel", id: `panel-${index}`, "aria-labelledby": `tab-${index}`, tabIndex: 0, class: "panel" }, content),
  );
  const show = (shown: number) => {
    buttons.forEach((button, index) => {
      button.setAttribute("aria-selected", String(index === shown));
      button.tabIndex = index === shown ? 0 : -1;
      panels[index]!.hidden = index !== shown;
    });
  };
  const list = h("div", { role: "tablist", "aria-label": label, class: "tabs" }, ...buttons);
  list.addEventListener("keydown", (event) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (step === 0) return;
    const next = (buttons.indexOf(document.activeElement as HTMLButtonElement) + step + all.length) % all.length;
    show(next);
    buttons[next]!.focus();
    event.stopPropagation();
  });
  show(0);
  return h("section", { class: "side", "aria-label": label }, list, ...panels);
}
