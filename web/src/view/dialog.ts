/** A window above the page. */

import { h } from "./element.ts";
import { icon } from "./icons.ts";

export class Dialog {
  readonly element: HTMLDialogElement;

  constructor(title: string, content: Node[], onclose: () => void = () => undefined) {
    const close = h("button", { type: "button", class: "icon-button", title: "Close (Esc)", "aria-label": "Close" }, icon("close"));
    const head = h("header", {}, h("h2", {}, title), close);
    this.element = h("dialog", { "aria-label": title, onclose }, head, ...content);
    close.addEventListener("click", () => this.element.close());
    // A click beside the window hits the dialog itself.
    this.element.addEventListener("click", (event) => {
      if (event.target === this.element) this.element.close();
    });
  }

  open(): void {
    if (!this.element.open) this.element.showModal();
  }

  close(): void {
    this.element.close();
  }
}
