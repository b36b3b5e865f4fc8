// The client of the service. URLs are relative, so that the page also works under a proxy's path.

export const MIN_SCORE = 0.05; // of a request; the page filters by the slider

/** A failed request: a `title`, and a `detail` that says what to do. */
export class Refusal extends Error {
  constructor(title, detail) {
    super(`${title}: ${detail}`);
    this.title = title;
    this.detail = detail;
  }
}

/** Returns the served models by name. */
export async function fetchModels() {
  const { models } = await send("models", {});
  return new Map(models.map((model) => [model.name, model]));
}

/** Sends an image file; returns the server's answer and the round trip in `milliseconds`. */
export async function detect(file, signal) {
  const started = performance.now();
  const answer = await send(`detect?threshold=${MIN_SCORE}`, { method: "POST", body: file, signal });
  return { answer, milliseconds: performance.now() - started };
}

/** Returns the parsed JSON of a response; throws `Refusal`, and an AbortError if the signal aborted it. */
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
    content = {}; // from a proxy in front of the service
  }
  if (response.ok) return content;
  throw new Refusal(
    content.title ?? `The response was ${response.status} ${response.statusText}`.trim(),
    content.detail ?? "It did not come from the service itself, but from something in front of it.",
  );
}

/** Returns the curl command of the same request: a file name, a minimum score, and labels (empty for all). */
export function writeCurl(name, threshold, labels) {
  const chosen = labels.map((label) => `&labels=${encodeURIComponent(label)}`).join("");
  const url = new URL(`detect?threshold=${threshold}${chosen}`, document.baseURI);
  return `curl --data-binary ${quote(`@${name}`)} ${quote(url.href)}`;
}

/** Returns a word quoted for a POSIX shell. */
function quote(word) {
  return /^[\w@%+:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** Returns an answer as JSON with one line per detection. */
export function writeJson(answer) {
  const line = (value) =>
    JSON.stringify(value, null, 1)
      .replace(/([{[])\n\s*/g, "$1")
      .replace(/\n\s*([}\]])/g, "$1")
      .replace(/\n\s*/g, " "); // line breaks in strings are escaped, so these are all JSON's own
  const fields = Object.entries(answer).map(([name, value]) => {
    const rows = Array.isArray(value) && value.length;
    return `  "${name}": ${rows ? `[\n${value.map((row) => `    ${line(row)}`).join(",\n")}\n  ]` : line(value)}`;
  });
  return `{\n${fields.join(",\n")}\n}`;
}
