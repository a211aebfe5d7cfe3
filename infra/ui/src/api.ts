/** The API as the page uses it, typed by its OpenAPI document. */
import { signal } from "@preact/signals";
import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "../made/schema";
import { signOut, token } from "./session";

type Schemas = components["schemas"];
export type Build = Schemas["Build"];
export type BuildDetail = Schemas["BuildDetail"];
export type BuildStep = Schemas["BuildStep"];
export type Project = Schemas["Project"];
export type ProjectDetail = Schemas["ProjectDetail"];
export type StatusEntry = Schemas["StatusEntry"];
export type StatusName = Schemas["Status"];

/** The API is beside the page, below the same path. */
export const API = new URL("../v1", location.href).href;

/** What the API refused, in its own sentences. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly sentences: string[],
  ) {
    super(sentences.join(" "));
  }
}

/** There was no answer, or one that says to try again. The request may have had an effect. */
export class NoAnswer extends Error {
  constructor(
    sentence: string,
    readonly retrySeconds = 0,
  ) {
    super(sentence);
  }
}

/** Since when the service does not answer, and the message; undefined while it answers. */
export const outage = signal<{ since: Date; sentence: string } | undefined>(undefined);

const LOST = "There is no connection to Slipway.";

function reached(): void {
  outage.value = undefined;
}

export function lost(sentence = LOST): NoAnswer {
  outage.value = { since: outage.peek()?.since ?? new Date(), sentence };
  return new NoAnswer(sentence);
}

/** The sentences of a refusal: `{"detail": …}`, `[…]`, `{"field": […]}`, or a text. */
export function sentencesOf(body: string): string[] {
  let said: unknown = body;
  try {
    said = JSON.parse(body);
  } catch {
    // no JSON: shown as it is
  }
  if (typeof said !== "object" || said === null) return [String(said)];
  return Object.entries(said).flatMap(([field, texts]) => {
    const isSentence = Array.isArray(said) || field === "detail" || field === "message" || field === "non_field_errors";
    return [texts].flat().map((text) => (isSentence ? String(text) : `${field}: ${text}`));
  });
}

/** The error for an answer that is not a success. */
export function failure(status: number, body: string, retryAfter: string | null): Error {
  const sentences = sentencesOf(body);
  if (status === 429 || status >= 500) {
    return new NoAnswer(sentences.join(" ") || `Slipway answers with status ${status}.`, Number(retryAfter ?? 0));
  }
  if (status === 401) signOut(sentences.join(" "));
  return new Refused(status, sentences);
}

const errors: Middleware = {
  onRequest({ request }) {
    if (token.value !== null && !request.headers.has("Authorization")) {
      request.headers.set("Authorization", `token ${token.value}`);
    }
  },
  async onResponse({ response }) {
    if (response.ok) {
      reached();
      return;
    }
    const error = failure(response.status, await response.text(), response.headers.get("Retry-After"));
    if (error instanceof NoAnswer) lost(error.message);
    else reached();
    throw error;
  },
  onError({ error }) {
    return error instanceof DOMException && error.name === "AbortError" ? error : lost();
  },
};

export const api = createClient<paths>({ baseUrl: API });
api.use(errors);

/** The body of an answer; errors were thrown before. */
export async function body<T>(answer: Promise<{ data?: T }>): Promise<T> {
  return (await answer).data as T;
}

/** Sends a file, and reports its progress. */
export function send(
  method: string,
  url: string,
  content: Blob | FormData,
  headers: Record<string, string>,
  progress: (part: number) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new NoAnswer("The connection was lost while the file was sent. Send it again."));
    request.onload = () => {
      if (request.status < 300) resolve();
      else reject(failure(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    };
    request.send(content);
  });
}
