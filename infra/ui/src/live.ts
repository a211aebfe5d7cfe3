/** Polls a value while its view is visible. */
import { useEffect, useRef, useState } from "preact/hooks";
import { NoAnswer, Refused } from "./api";

const LONGEST_WAIT_SECONDS = 30;

/** Ends after so many seconds in a tab that is seen; a hidden tab waits until it is seen again. */
export async function pause(seconds: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
  while (document.hidden && !signal.aborted) {
    await new Promise<void>((resolve) => {
      document.addEventListener("visibilitychange", () => resolve(), { once: true });
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
  }
}

/** Runs `step` until it answers null; it answers the seconds until it is to run again. Without an answer from
 * the service it is tried again, after longer and longer. Whatever else it throws ends this. */
export async function repeat(step: () => Promise<number | null>, signal: AbortSignal): Promise<void> {
  let wait = 1;
  while (!signal.aborted) {
    try {
      const seconds = await step();
      if (seconds === null) return;
      wait = 1;
      if (seconds > 0) await pause(seconds, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof NoAnswer)) throw error;
      await pause(error.retrySeconds || wait, signal);
      wait = Math.min(wait * 2, LONGEST_WAIT_SECONDS);
    }
  }
}

export interface Live<T> {
  value: T | undefined;
  refused: Refused | undefined;
  /** Asks at once. */
  refresh: () => void;
}

/** What `load` answers, asked for again after the seconds that `every` says; null: never again. It begins anew
 * when `about` changes. */
export function useLive<T>(
  load: (signal: AbortSignal) => Promise<T>,
  about: string,
  every: (value: T) => number | null = () => null,
): Live<T> {
  const [known, setKnown] = useState<{ about: string; value?: T; refused?: Refused }>({ about });
  const [turn, setTurn] = useState(0);
  const latest = useRef({ load, every });
  latest.current = { load, every };
  useEffect(() => {
    const ending = new AbortController();
    const { signal } = ending;
    void repeat(async () => {
      const value = await latest.current.load(signal);
      if (!signal.aborted) setKnown({ about, value });
      return latest.current.every(value);
    }, signal).catch((error: unknown) => {
      if (!(error instanceof Refused)) throw error;
      if (!signal.aborted) setKnown((before) => ({ about, value: before.about === about ? before.value : undefined, refused: error }));
    });
    return () => ending.abort();
  }, [about, turn]);
  const current = known.about === about ? known : undefined;
  return { value: current?.value, refused: current?.refused, refresh: () => setTurn((now) => now + 1) };
}
