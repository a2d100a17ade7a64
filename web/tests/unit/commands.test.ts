import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { cliCommand, curlCommand, pythonCommand, shellQuote, type CommandInput } from "../../src/commands.ts";
import { bytes, clock, length, percent } from "../../src/words.ts";

const input: CommandInput = { origin: "http://127.0.0.1:50051", video: { file: "a.mp4" }, model: "", token: false };

describe("commands", () => {
  it("send a file to this server", () => {
    expect(curlCommand(input)).toBe(
      "curl 'http://127.0.0.1:50051/v1/videos:classify?segments=merged' \\\n    -F file=@a.mp4",
    );
    expect(cliCommand(input)).toBe("kinetoscope classify a.mp4 --server 127.0.0.1:50051 --segments");
    expect(pythonCommand(input)).toContain('data=open("a.mp4", "rb")');
  });

  it("keep curl from reading options in a file's name", () => {
    expect(curlCommand({ ...input, video: { file: 'a;type="x".mp4' } })).toContain(`'file=@"a;type=\\"x\\".mp4"'`);
  });

  it("name the model and read the token from the environment", () => {
    const other = { ...input, model: "r3d 18", token: true };
    expect(curlCommand(other)).toContain("model=r3d+18");
    expect(curlCommand(other)).toContain('"Authorization: Bearer $KINETOSCOPE_TOKEN"');
    expect(pythonCommand(other)).toContain('os.environ["KINETOSCOPE_TOKEN"]');
    expect(cliCommand(other)).toContain("--model 'r3d 18'");
  });

  it("have the server read a URI", () => {
    const uri = { ...input, video: { uri: "s3://bucket/it's.mp4" } };
    expect(curlCommand(uri)).toContain(`--json '{"uri":"s3://bucket/it'\\''s.mp4"}'`);
    expect(pythonCommand(uri)).toContain('json={"uri": "s3://bucket/it\'s.mp4"}');
  });

  it("keep the scheme of servers with TLS", () => {
    expect(cliCommand({ ...input, origin: "https://video.example.org" })).toContain("--server https://video.example.org");
  });

  it("quote names as a shell reads them", () => {
    for (const name of ["it's.mp4", "$(x) `y` \\ \"z\".mp4", "a b.mp4", "ü.mp4"]) {
      expect(execFileSync("sh", ["-c", `printf %s ${shellQuote(name)}`], { encoding: "utf8" })).toBe(name);
    }
  });

  it("are Python that compiles", () => {
    for (const video of [{ file: 'a"b\\.mp4' }, { uri: "https://example.org/ü.mp4" }]) {
      execFileSync("python3", ["-c", "import sys; compile(sys.stdin.read(), 'x', 'exec')"], {
        input: pythonCommand({ ...input, video, token: true }),
      });
    }
  });
});

describe("words", () => {
  it("tell times, lengths, shares and sizes", () => {
    expect([clock(0), clock(7.46), clock(59.96), clock(3750)]).toEqual(["0:00.0", "0:07.5", "1:00.0", "1:02:30.0"]);
    expect([length(0.5), length(12.4), length(59.7), length(7260)]).toEqual(["0.5 s", "12 s", "1 min", "2 h 1 min"]);
    expect([percent(0), percent(0.001), percent(0.876)]).toEqual(["0%", "<1%", "88%"]);
    expect([bytes(1), bytes(999), bytes(1500), bytes(2e9), bytes(123e6)]).toEqual(["1 byte", "999 bytes", "1.5 kB", "2 GB", "123 MB"]);
  });
});
