/** What a person has set, kept by the browser. */

export type Theme = "auto" | "light" | "dark";

export interface Settings {
  /** Segments that score less have no label. */
  threshold: number;
  /** How long a label lasts on average, in seconds; 0 for no smoothing. */
  smoothingSeconds: number;
  theme: Theme;
}

const KEY = "kinetoscope.settings";
const TOKEN_KEY = "kinetoscope.token";
const DEFAULTS: Settings = { threshold: 0.2, smoothingSeconds: 2, theme: "auto" };

/** Expected lengths to choose from, in seconds. */
export const SMOOTHING_STEPS = [0, 1, 2, 3, 5, 8, 12, 20, 30, 60] as const;

export function loadSettings(): Settings {
  const kept = read(localStorage, KEY);
  if (typeof kept !== "object" || kept === null) return { ...DEFAULTS };
  const { threshold, smoothingSeconds, theme } = kept as Partial<Settings>;
  return {
    threshold: typeof threshold === "number" && threshold >= 0 && threshold <= 1 ? threshold : DEFAULTS.threshold,
    smoothingSeconds: SMOOTHING_STEPS.find((step) => step === smoothingSeconds) ?? DEFAULTS.smoothingSeconds,
    theme: theme === "light" || theme === "dark" ? theme : "auto",
  };
}

export function saveSettings(settings: Settings): void {
  write(localStorage, KEY, settings);
}

/** A token is forgotten when the tab is closed. */
export function loadToken(): string {
  const kept = read(sessionStorage, TOKEN_KEY);
  return typeof kept === "string" ? kept : "";
}

export function saveToken(token: string): void {
  write(sessionStorage, TOKEN_KEY, token);
}

/** Browsers may forbid storage, and others may have written to it. */
function read(storage: Storage, key: string): unknown {
  try {
    return JSON.parse(storage.getItem(key) ?? "null");
  } catch {
    return null;
  }
}

function write(storage: Storage, key: string, value: unknown): void {
  try {
    storage.setItem(key, JSON.stringify(value));
  } catch {
    // The setting holds for as long as the page is open.
  }
}
