// The service as the page asks it. Addresses are relative: the page works below a proxy's path too.

export const LEAST_SCORE = 0.05; // asked for once; the page itself hides what is below the slider

/** Why there is no answer: a `title`, and a `detail` that says what to do. */
export class Refusal extends Error {
  constructor(title, detail) {
    super(`${title}: ${detail}`);
    this.title = title;
    this.detail = detail;
  }
}

/** Returns what is served, by its name. */
export async function fetchModels() {
  const { models } = await send("models", {});
  return new Map(models.map((model) => [model.name, model]));
}

/** Sends an image file; returns the server's answer, and the whole way's `milliseconds`. */
export async function detect(file, signal) {
  const started = performance.now();
  const answer = await send(`detect?threshold=${LEAST_SCORE}`, { method: "POST", body: file, signal });
  return { answer, milliseconds: performance.now() - started };
}

/** Returns the JSON of an answer; throws `Refusal`, and an AbortError where `signal` ended it. */
async function send(address, options) {
  let response;
  let text;
  try {
    response = await fetch(address, { ...options, headers: { accept: "application/json" } });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const advice = "Check that it runs and that the file is still there, then try again.";
    throw new Refusal("The server cannot be reached", advice);
  }
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    content = {}; // a proxy in between speaks for itself
  }
  if (response.ok) return content;
  throw new Refusal(
    content.title ?? `The answer was ${response.status} ${response.statusText}`.trim(),
    content.detail ?? "It did not come from the service itself, but from something in front of it.",
  );
}

/** Returns the command that asks for the same: a file's name, a least score, and labels (none for all). */
export function writeCurl(name, threshold, labels) {
  const chosen = labels.length ? `&labels=${labels.map(encodeURIComponent).join(",")}` : "";
  const url = new URL(`detect?threshold=${threshold}${chosen}`, document.baseURI);
  return `curl --data-binary ${quote(`@${name}`)} ${quote(url.href)}`;
}

/** Returns a word as a POSIX shell reads it. */
function quote(word) {
  return /^[\w@%+:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** Returns an answer as JSON with one line for each detection. */
export function writeJson(answer) {
  const line = (value) =>
    JSON.stringify(value, null, 1)
      .replace(/([{[])\n\s*/g, "$1")
      .replace(/\n\s*([}\]])/g, "$1")
      .replace(/\n\s*/g, " "); // a line's end in a string is escaped: these are all JSON's own
  const fields = Object.entries(answer).map(([name, value]) => {
    const rows = Array.isArray(value) && value.length;
    return `  "${name}": ${rows ? `[\n${value.map((row) => `    ${line(row)}`).join(",\n")}\n  ]` : line(value)}`;
  });
  return `{\n${fields.join(",\n")}\n}`;
}
