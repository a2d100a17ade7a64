import { defineConfig } from "vitest/config";

/** A running `kinetoscope serve` that answers the API while the page is developed. */
const server = process.env["KINETOSCOPE"] ?? "http://127.0.0.1:50051";

export default defineConfig({
  base: "./",
  build: {
    // The first that have light-dark() and AbortSignal.any().
    target: ["chrome123", "firefox124", "safari17.5"],
    // Every asset is a file of its own: the server forbids inline scripts and styles.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  // The server refuses pages of other origins.
  server: { proxy: { "^/v[12]/": { target: server, changeOrigin: true, headers: { Origin: server } } } },
  test: { include: ["tests/unit/**/*.test.ts"] },
});
