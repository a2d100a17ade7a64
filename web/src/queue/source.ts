/** What there is to classify. */

export type Source = { kind: "file"; file: File } | { kind: "uri"; uri: string };

export function nameOf(source: Source): string {
  if (source.kind === "file") return source.file.name;
  const path = source.uri.split(/[?#]/, 1)[0]!.replace(/\/+$/, "");
  return path.slice(path.lastIndexOf("/") + 1) || source.uri;
}

/** Schemes that `Video.uri` knows. */
export function isUri(text: string): boolean {
  return /^(https?|s3|gs|az|file):\/\/\S+$/.test(text.trim());
}
