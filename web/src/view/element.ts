/** Makes elements of the document. */

type Child = Node | string | undefined | false;
type Properties = Record<string, unknown>;

/**
 * An element with properties, such as `h("button", { class: "primary", onclick }, "Save")`. Names that are no property of
 * the element, such as `aria-label`, become attributes.
 */
export function h<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  properties: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name === "class") element.className = String(value);
    else if (name in element) Object.assign(element, { [name]: value });
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== undefined && child !== false));
  return element;
}

/** Sets text only if it differs, so that a screen reader does not read it again. */
export function setText(element: HTMLElement, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Replaces children only if `key` differs from that of the last call. */
export function replaceIfChanged(element: HTMLElement, key: string, children: () => Node[]): void {
  if (element.dataset["key"] === key) return;
  element.dataset["key"] = key;
  element.replaceChildren(...children());
}
