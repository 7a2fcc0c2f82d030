// The service, as the page speaks to it: JSON in and out, NDJSON as it comes, one kind of error, a token where one is asked for.

/** @typedef {{kind: string, size?: number | number[], frames?: number, frame_rate?: number, sample_rate?: number, seconds?: number, steps?: number, dimensions?: number, choices?: number | null}} Stream */
/** @typedef {{name: string, kind: string, stage: string | null, stream: Stream, codebook_size: number, levels: number, shape: number[] | null, fingerprint: string, endings: string[]}} Tokenizer */
/** @typedef {{name: string, kind: string, stream: Stream, codebook_size: number, levels: number, shape: number[] | null, max_length: number, on_clock: boolean}} WorldStream */
/** @typedef {{stream: string, dimensions: number, choices: number | null, names: string[]}} Actions */
/** @typedef {{name: string, parameters: number, streams: WorldStream[], fills: boolean, clock: string | null, steps: number, actions: Actions | null}} World */
/** @typedef {{media_type: string, content: string | null, text: string | null}} Shown */
/** @typedef {{event: string, stream?: string, shape?: number[] | null, places?: number[], codes?: number[], value?: Shown, given?: boolean, legal?: boolean, tokens?: number, error?: {message: string}}} Line */
/** @typedef {{id: string, step: number, values: Record<string, Shown>, numbers: Record<string, number[]>}} Step */
/** @typedef {{done: number, total: number, unit: string, notes: Record<string, number>}} Going */
/** @typedef {{name: string, pipeline: string, state: string, done: number, stages: number, started: number | null}} RunLine */
/** @typedef {{name: string, kind: string, produces: string, state: string, inputs: string[], started: number | null, seconds: number | null, progress: Going | null, note: string, figures: Record<string, number>, bytes: number}} StageLine */
/** @typedef {{file?: number, before?: number, sound?: number, caption?: string, verdict?: string, detail?: string, wide?: number}} Item */
/** @typedef {{type: string, title: string, text: string, columns: string[], rows: (string | number | boolean | null)[][], items: Item[], x: string, unit: string, lines: Record<string, [number, number][]>, values: number[], labels: string[]}} Block */
/** @typedef {StageLine & {title: string, headline: string[], blocks: Block[], settings: Record<string, string>, checkpoints: number[]}} StagePage */
/** @typedef {{run: string, stage: string, produces: string, samples: number, shards: number, rejected: number, bytes: number, oracle: string | null, kinds: {name: string, kind: string, tokenizer: string | null}[]}} DatasetLine */
/** @typedef {{name: string, kind: string, samples: Record<string, number>, codebook_size: number | null, shape: number[] | null, levels: number}} StreamLine */
/** @typedef {DatasetLine & {splits: {name: string, samples: number, shards: {name: string, samples: number}[]}[], streams: StreamLine[], reasons: Record<string, number>, refusals: {key: string, code: string, detail: string}[]}} DatasetPage */
/** @typedef {{kind: string, text: string | null, picture: string | null, sound: string | null, rows: number[][] | null}} SampleValue */
/** @typedef {{key: string, split: string, number: number, values: Record<string, SampleValue>}} Sample */

/** What the service refused, or that it could not be reached. */
export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} message */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const TOKEN = "token";
/** @type {Promise<void> | null} */
let asking = null;
let askForToken = () => Promise.resolve();

/** How a token is asked for. @param {() => Promise<void>} ask */
export function whenRefused(ask) {
  askForToken = ask;
}

/** @param {string} token */
export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
async function request(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  let answer;
  try {
    answer = await fetch(`.${path}`, { ...options, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The service does not answer. Is worldloom serve still running?");
  }
  if (answer.status === 401) {
    asking ??= askForToken().finally(() => (asking = null));
    await asking;
    return request(path, options);
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    const error = told?.error ?? {};
    throw new ApiError(answer.status, error.code ?? "failed", error.message ?? `The service answered ${answer.status}.`);
  }
  return answer;
}

/** @template T @param {string} path @param {AbortSignal} [signal] @returns {Promise<T>} */
export async function get(path, signal) {
  return (await request(path, { signal })).json();
}

/** @template T @param {string} path @param {unknown} body @param {AbortSignal} [signal] @returns {Promise<T>} */
export async function post(path, body, signal) {
  return (await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal })).json();
}

/** @param {string} path */
export async function remove(path) {
  await request(path, { method: "DELETE", keepalive: true });
}

/** A file of the service, as bytes. @param {string} path @param {AbortSignal} [signal] */
export async function blob(path, signal) {
  return (await request(path, { signal })).blob();
}

/**
 * One JSON object a line, as they come.
 * @param {string} path @param {unknown} body @param {AbortSignal} signal
 * @returns {AsyncGenerator<Line>}
 */
export async function* lines(path, body, signal) {
  const answer = await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
  if (!answer.body) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = done ? "" : /** @type {string} */ (parts.pop());
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
    if (done) return;
  }
}

/** @param {Blob} file @returns {Promise<string>} */
export function toBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).split(",", 2)[1] ?? "");
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** @param {Shown} shown */
export function urlOf(shown) {
  return `data:${shown.media_type};base64,${shown.content}`;
}

/** @param {string} base64 */
export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
}

/** What can go on without being asked for again: work that a view gives up when it is left. */
export class Leaving {
  constructor() {
    this.controller = new AbortController();
  }
  get signal() {
    return this.controller.signal;
  }
  get left() {
    return this.signal.aborted;
  }
}
