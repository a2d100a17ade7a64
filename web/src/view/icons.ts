/** Icons: strokes on a grid of 24 by 24. */

const PATHS = {
  add: "M12 5v14M5 12h14",
  camera: "M3 8h12v9H3zM15 11l6-3v9l-6-3",
  close: "M6 6l12 12M18 6L6 18",
  compare: "M4 6h7v12H4zM13 6h7v12h-7z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  full: "M4 10V4h6M20 14v6h-6",
  help: "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2M12 17.5v.1",
  key: "M4 12a4 4 0 1 0 8 0a4 4 0 1 0-8 0M12 12h8v3M17 12v3",
  list: "M8 6h12M8 12h12M8 18h12M4 6h.1M4 12h.1M4 18h.1",
  minus: "M5 12h14",
  next: "M6 5l9 7-9 7zM18 5v14",
  pause: "M8 5v14M16 5v14",
  play: "M7 4l13 8-13 8z",
  previous: "M18 5l-9 7 9 7zM6 5v14",
  retry: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  sound: "M4 9v6h4l5 4V5L8 9zM17 9c1.5 2 1.5 4 0 6",
  silent: "M4 9v6h4l5 4V5L8 9zM17 10l4 4M21 10l-4 4",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  upload: "M12 16V4M7 9l5-5 5 5M4 16v4h16v-4",
} as const;

export type IconName = keyof typeof PATHS;

const SVG = "http://www.w3.org/2000/svg";

export function icon(name: IconName): SVGSVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
