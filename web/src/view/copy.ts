/** Copies text and says that it did. */

import { h } from "./element.ts";
import { icon } from "./icons.ts";

const SHOWN_MILLISECONDS = 2000;

export function copyButton(name: string, text: () => string): HTMLButtonElement {
  const word = h("span", { role: "status" }, "Copy");
  const button = h("button", { type: "button", class: "quiet copy", "aria-label": `Copy ${name}` }, icon("copy"), word);
  button.addEventListener("click", async () => {
    word.textContent = (await copy(text())) ? "Copied" : "Select the text and copy it";
    setTimeout(() => (word.textContent = "Copy"), SHOWN_MILLISECONDS);
  });
  return button;
}

/** The clipboard is there only on pages from localhost or over HTTPS; the older command works elsewhere. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { value: text, class: "hidden" });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}
