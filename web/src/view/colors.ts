/** Colours of labels: the same label has the same one everywhere on the page. */

/** As many as the style sheet has `--label-N`. */
const COLORS = 8;

const indices = new Map<string, number>();

export function colorIndex(label: string): number {
  const index = indices.get(label) ?? indices.size % COLORS;
  indices.set(label, index);
  return index;
}

export function colorOf(label: string): string {
  return `var(--label-${colorIndex(label)})`;
}

/** Colours of the style sheet as a canvas takes them. */
export class CanvasColors {
  readonly #probe: HTMLElement;
  readonly #known = new Map<string, string>();

  constructor(probe: HTMLElement) {
    this.#probe = probe;
  }

  /** Such as `line` for `--line`. */
  get(name: string): string {
    const known = this.#known.get(name);
    if (known !== undefined) return known;
    this.#probe.style.color = `var(--${name})`;
    const color = getComputedStyle(this.#probe).color;
    this.#known.set(name, color);
    return color;
  }

  label(label: string): string {
    return this.get(`label-${colorIndex(label)}`);
  }
}
