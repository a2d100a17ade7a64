/** Seconds of a `google.protobuf.Duration` in JSON, such as "1.5s"; 0 if it is absent. */
export function seconds(duration: string | undefined): number {
  const match = /^(-?\d+(?:\.\d+)?)s$/.exec(duration ?? "0s");
  if (!match) throw new Error(`"${duration}" is no duration such as "1.5s"`);
  return Number(match[1]);
}
