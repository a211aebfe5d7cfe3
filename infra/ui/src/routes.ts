/** Where in the page one is: the part of the address behind `#`, which the server never sees. */
import { signal } from "@preact/signals";

export interface Place {
  /** Decoded: `["projects", "root", "quick-start"]`. */
  path: string[];
  query: URLSearchParams;
}

function parsed(hash: string): Place {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  return { path: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const place = signal(parsed(location.hash));
addEventListener("hashchange", () => {
  place.value = parsed(location.hash);
});

export function address(path: (string | number)[], query: Record<string, string> = {}): string {
  const words = Object.entries(query).filter(([, value]) => value !== "");
  const asked = words.length ? `?${new URLSearchParams(words)}` : "";
  return `#/${path.map(encodeURIComponent).join("/")}${asked}`;
}

export function go(to: string): void {
  location.hash = to;
}

/** Goes there without a step back to here. */
export function replace(to: string): void {
  history.replaceState(null, "", to);
  place.value = parsed(to);
}

export const to = {
  projects: (owner?: string) => address(owner === undefined ? ["projects"] : ["projects", owner]),
  project: (owner: string, project: string, ...more: string[]) => address(["projects", owner, project, ...more]),
  build: (owner: string, project: string, id: number, ...more: string[]) =>
    address(["projects", owner, project, "builds", id, ...more]),
};
