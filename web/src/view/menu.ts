/** A button that opens a short list of actions. */

import { h } from "./element.ts";

export interface MenuItem {
  text: string;
  about: string;
  action: () => void;
}

let menus = 0;

export class Menu {
  readonly element: HTMLElement;
  readonly #button: HTMLButtonElement;
  readonly #list: HTMLElement;

  constructor(content: (Node | string)[], items: MenuItem[]) {
    const id = `menu-${++menus}`;
    this.#list = h("div", { class: "menu-list", id, role: "menu", hidden: true }, ...items.map((item) => this.#item(item)));
    this.#button = h(
      "button",
      { type: "button", "aria-haspopup": "menu", "aria-expanded": "false", "aria-controls": id, onclick: () => this.#toggle() },
      ...content,
    );
    this.element = h("div", { class: "menu" }, this.#button, this.#list);
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("focusout", (event) => {
      if (!this.element.contains(event.relatedTarget as Node | null)) this.#close();
    });
  }

  enable(enabled: boolean): void {
    this.#button.disabled = !enabled;
  }

  #item(item: MenuItem): HTMLElement {
    const onclick = () => {
      this.#close();
      this.#button.focus();
      item.action();
    };
    return h(
      "button",
      { type: "button", role: "menuitem", onclick },
      h("span", {}, item.text),
      h("span", { class: "muted" }, item.about),
    );
  }

  #toggle(): void {
    this.#list.hidden = !this.#list.hidden;
    this.#button.setAttribute("aria-expanded", String(!this.#list.hidden));
    if (!this.#list.hidden) this.#items()[0]?.focus();
  }

  #close(): void {
    this.#list.hidden = true;
    this.#button.setAttribute("aria-expanded", "false");
  }

  #items(): HTMLElement[] {
    return [...this.#list.querySelectorAll<HTMLElement>("[role=menuitem]")];
  }

  #key(event: KeyboardEvent): void {
    const items = this.#items();
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (event.key === "Escape" && !this.#list.hidden) {
      this.#close();
      this.#button.focus();
    } else if (step !== 0 && !this.#list.hidden) {
      const index = items.indexOf(document.activeElement as HTMLElement);
      items[(index + step + items.length) % items.length]!.focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
