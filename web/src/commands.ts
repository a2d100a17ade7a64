/** Commands that do what the page does, to copy into a terminal or a program. */

export interface CommandInput {
  /** Address of the server, such as `http://127.0.0.1:50051`. */
  origin: string;
  /** A file's name, or a URI that the server reads itself. */
  video: { file: string } | { uri: string };
  /** Empty for the server's default model. */
  model: string;
  /** Whether calls carry a token. It is never written out: the commands read it from KINETOSCOPE_TOKEN. */
  token: boolean;
}

export function curlCommand(input: CommandInput): string {
  const lines = [`curl ${shellQuote(classifyUrl(input))}`];
  if (input.token) lines.push(`-H "Authorization: Bearer $KINETOSCOPE_TOKEN"`);
  if ("uri" in input.video) lines.push(`--json ${shellQuote(JSON.stringify(input.video))}`);
  else lines.push(`-F ${shellQuote(`file=@${formPath(input.video.file)}`)}`);
  return lines.join(" \\\n    ");
}

export function pythonCommand(input: CommandInput): string {
  const headers = input.token ? `headers={"Authorization": "Bearer " + os.environ["KINETOSCOPE_TOKEN"]}` : "";
  const body =
    "uri" in input.video
      ? `json={"uri": ${pythonQuote(input.video.uri)}}`
      : `data=open(${pythonQuote(input.video.file)}, "rb")`;
  const fields = [pythonQuote(classifyUrl(input)), body, headers].filter((field) => field !== "");
  return [
    ...(input.token ? ["import os", ""] : []),
    "import requests",
    "",
    "response = requests.post(",
    ...fields.map((field) => `    ${field},`),
    ")",
    "response.raise_for_status()",
    `for segment in response.json()["segments"]:`,
    `    best = segment["labels"][0]`,
    `    print(segment.get("start", "0s"), segment["end"], best["label"], best["score"])`,
    "",
  ].join("\n");
}

export function cliCommand(input: CommandInput): string {
  const video = "uri" in input.video ? input.video.uri : pathOf(input.video.file);
  const server = new URL(input.origin);
  const address = server.protocol === "https:" ? input.origin : server.host;
  const model = input.model === "" ? "" : ` --model ${shellQuote(input.model)}`;
  return `kinetoscope classify ${shellQuote(video)} --server ${shellQuote(address)}${model} --segments`;
}

function classifyUrl(input: CommandInput): string {
  const options = new URLSearchParams({ segments: "merged" });
  if (input.model !== "") options.set("model", input.model);
  return `${input.origin}/v1/videos:classify?${options}`;
}

/** curl ends a path at commas and semicolons that are not in quotes. */
function formPath(name: string): string {
  return /[,;"]/.test(name) ? `"${name.replace(/[\\"]/g, "\\$&")}"` : name;
}

/** A name that begins with a dash is no option. */
function pathOf(name: string): string {
  return name.startsWith("-") ? `./${name}` : name;
}

export function shellQuote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** JSON's strings are Python's too. */
function pythonQuote(text: string): string {
  return JSON.stringify(text);
}
