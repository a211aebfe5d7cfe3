/** A build's log: it follows the end until one scrolls up, and draws only the lines that are in sight. */
import Anser from "anser";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { API, NoAnswer, Refused, failure, lost, outage } from "./api";
import { repeat } from "./live";
import { LogLines, MAX_LINES, last } from "./log_lines";
import { Sentences, clock } from "./parts";
import { address, place, replace } from "./routes";
import { token } from "./session";

const ROW_PIXELS = 20;
const SPARE_ROWS = 20; // drawn above and below what is in sight
const MAX_MARKED = 2_000; // characters of a line in which colours and words are looked for
const ESCAPE = "\u241b"; // what logs have in the place of the character that begins a colour

type Following = "loading" | "growing" | "complete";

/** Asks for a log from its start on, part after part, until it is complete. */
function useLog(owner: string, project: string, id: number) {
  const about = `${owner}/${project}/${id}`;
  const log = useMemo(() => new LogLines(), [about]);
  const [seen, setSeen] = useState<{ log?: LogLines; state: Following; refused?: Refused }>({ state: "loading" });
  useEffect(() => {
    const ending = new AbortController();
    const { signal } = ending;
    let cursor = "0";
    void repeat(async () => {
      const url = `${API}/${encodeURIComponent(owner)}/${encodeURIComponent(project)}/builds/${id}/logs?cursor=${cursor}`;
      const answer = await answered(url, signal);
      log.add(await answer.text().catch(() => Promise.reject(lost())));
      cursor = answer.headers.get("X-Slipway-Next-Cursor") ?? cursor;
      const isComplete = answer.headers.get("X-Slipway-Log-Complete") === "true" || log.isCut;
      const later = Number(answer.headers.get("Retry-After") ?? 0);
      if (!signal.aborted) setSeen({ log, state: isComplete ? "complete" : later > 0 ? "growing" : "loading" });
      return isComplete ? null : later;
    }, signal).catch((error: unknown) => {
      if (!(error instanceof Refused)) throw error;
      setSeen({ log, state: "complete", refused: error });
    });
    return () => ending.abort();
  }, [log]);
  return seen.log === log ? { ...seen, log } : { log, state: "loading" as Following, refused: undefined };
}

async function answered(url: string, signal: AbortSignal): Promise<Response> {
  const headers = { Authorization: `token ${token.peek()}` };
  const answer = await fetch(url, { headers, signal }).catch((error: unknown) => {
    throw signal.aborted ? error : lost();
  });
  if (!answer.ok) {
    const error = failure(answer.status, await answer.text(), answer.headers.get("Retry-After"));
    if (error instanceof NoAnswer) lost(error.message);
    throw error;
  }
  outage.value = undefined;
  return answer;
}

/** Which lines are shown in which rows, when the lines of some steps are folded away. */
class Rows {
  readonly count: number;
  readonly #spans: { row: number; line: number }[] = [];

  constructor(log: LogLines, folded: ReadonlySet<number>) {
    let row = 0;
    let line = 0;
    for (const [index, step] of log.steps.entries()) {
      if (!folded.has(step.line)) continue;
      this.#spans.push({ row, line });
      row += step.line + 1 - line;
      line = log.steps[index + 1]?.line ?? log.count;
    }
    this.#spans.push({ row, line });
    this.count = row + log.count - line;
  }

  line(row: number): number {
    const span = this.#spans[last(this.#spans.length, (index) => this.#spans[index]!.row <= row)]!;
    return span.line + row - span.row;
  }

  /** The row of a line, or of the step that hides it. */
  row(line: number): number {
    const at = last(this.#spans.length, (index) => this.#spans[index]!.line <= line);
    const span = this.#spans[at]!;
    const row = span.row + line - span.line;
    const next = this.#spans[at + 1];
    return next ? Math.min(row, next.row - 1) : row;
  }
}

export function LogView({ owner, project, id, isDone }: { owner: string; project: string; id: number; isDone: boolean }) {
  const { log, state, refused } = useLog(owner, project, id);
  const [folded, setFolded] = useState<ReadonlySet<number>>(new Set());
  const rows = useMemo(() => new Rows(log, folded), [log, log.count, folded]);
  const fold = (line: number) =>
    setFolded((before) => {
      const after = new Set(before);
      if (!after.delete(line)) after.add(line);
      return after;
    });
  const target = Number(place.value.query.get("line") ?? 0) - 1;

  const area = useRef<HTMLDivElement>(null);
  const [sight, setSight] = useState({ top: 0, height: 600 });
  const [follows, setFollows] = useState(target < 0);
  const measure = () => {
    const { scrollTop, clientHeight, scrollHeight } = area.current!;
    setSight({ top: scrollTop, height: clientHeight });
    return scrollTop + clientHeight >= scrollHeight - 2 * ROW_PIXELS;
  };
  const wanted = useRef<number | undefined>(undefined); // a line whose step has to be unfolded first
  const show = (line: number) => {
    setFollows(false);
    const step = log.steps[last(log.steps.length, (index) => log.steps[index]!.line < line)];
    if (step && folded.has(step.line)) {
      wanted.current = line;
      fold(step.line);
      return;
    }
    area.current!.scrollTop = (rows.row(line) + 0.5) * ROW_PIXELS - area.current!.clientHeight / 2;
    measure();
  };
  useEffect(() => {
    const observer = new ResizeObserver(() => area.current && measure());
    observer.observe(area.current!);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => {
    if (!follows) return;
    area.current!.scrollTop = rows.count * ROW_PIXELS;
    measure();
  }, [rows.count, follows]);
  useLayoutEffect(() => {
    const line = wanted.current;
    wanted.current = undefined;
    if (line !== undefined) show(line);
  }, [rows]);
  const isThere = target >= 0 && target < log.count;
  useLayoutEffect(() => {
    if (isThere) show(target);
  }, [isThere, target]);

  const found = useSearch(log);
  useLayoutEffect(() => {
    if (found.line !== undefined) show(found.line);
  }, [found.line, found.turn]);

  const begin = Math.max(0, Math.floor(sight.top / ROW_PIXELS) - SPARE_ROWS);
  const end = Math.min(rows.count, Math.ceil((sight.top + sight.height) / ROW_PIXELS) + SPARE_ROWS);
  const heads = useMemo(() => new Map(log.steps.map((step, index) => [step.line, index])), [log, log.steps.length]);
  const drawn = [];
  for (let row = begin; row < end; row++) {
    const line = rows.line(row);
    const step = heads.get(line);
    const { time, at, message } = log.line(line);
    const hidden = step === undefined ? 0 : (log.steps[step + 1]?.line ?? log.count) - line - 1;
    const look = ["row", line === target ? "target" : "", line === found.line ? "current" : "", step === undefined ? "" : "step"];
    drawn.push(
      <div key={line} class={look.filter(Boolean).join(" ")} style={{ top: `${row * ROW_PIXELS}px` }}>
        <a
          class="number"
          href={address(place.value.path, { line: String(line + 1) })}
          aria-label={`Link to line ${line + 1}`}
          onClick={(event) => {
            event.preventDefault();
            replace(address(place.value.path, { line: String(line + 1) }));
          }}
        >
          {line + 1}
        </a>
        <span class="time" title={at}>
          {time}
        </span>
        <span class="fold">
          {hidden > 0 && (
            <button
              type="button"
              aria-expanded={!folded.has(line)}
              aria-label={`Lines of this step: ${hidden}`}
              onClick={() => fold(line)}
            >
              {folded.has(line) ? "▸" : "▾"}
            </button>
          )}
        </span>
        <span class="message">
          <Message text={message} words={found.words} />
          {folded.has(line) && <span class="muted"> … {hidden.toLocaleString("en")} lines</span>}
        </span>
      </div>,
    );
  }

  return (
    <section class="log" aria-label="Log">
      <div class="bar" role="group" aria-label="Log tools">
        <form
          role="search"
          onSubmit={(event) => {
            event.preventDefault();
            found.next((event.submitter as HTMLButtonElement | null)?.value === "previous" ? -1 : 1);
          }}
        >
          <input
            type="search"
            data-search
            placeholder="Search the log"
            aria-label="Search the log"
            onInput={(event) => found.search(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key !== "Enter" || !event.shiftKey) return;
              event.preventDefault();
              found.next(-1);
            }}
          />
          {found.words && (
            <>
              <output data-testid="matches">{found.summary}</output>
              <button type="submit" value="next" aria-label="Next line that matches">
                ↓
              </button>
              <button type="submit" value="previous" aria-label="Previous line that matches">
                ↑
              </button>
            </>
          )}
        </form>
        {log.steps.length > 1 && (
          <select
            aria-label="Go to a step"
            value=""
            onChange={(event) => {
              show(Number(event.currentTarget.value));
              event.currentTarget.value = "";
            }}
          >
            <option value="">Go to a step …</option>
            {log.steps.map((step) => (
              <option key={step.line} value={step.line}>
                {step.title.slice(0, 80)}
              </option>
            ))}
          </select>
        )}
        {log.steps.length > 1 && (
          <button type="button" onClick={() => setFolded(folded.size ? new Set() : new Set(log.steps.map((step) => step.line)))}>
            {folded.size ? "Unfold steps" : "Fold steps"}
          </button>
        )}
        <span class="spring" />
        <span class="muted" role="status" data-testid="log-state">
          {stateWords(state, log, isDone, follows)}
        </span>
        <button type="button" disabled={follows || log.count === 0} onClick={() => setFollows(true)}>
          Jump to end
        </button>
      </div>
      {refused && <Sentences of={refused} />}
      <div
        class="area"
        ref={area}
        tabIndex={0}
        role="region"
        aria-label="Lines of the log"
        onScroll={() => setFollows(measure())}
      >
        <div class="rows" style={{ height: `${rows.count * ROW_PIXELS}px` }}>
          {drawn}
        </div>
        {log.count === 0 && <p class="empty">{state === "complete" ? "This build has no log." : "No line yet."}</p>}
      </div>
      {log.isCut && (
        <p class="muted">
          The page shows the first {MAX_LINES.toLocaleString("en")} lines. The whole log: <code>GET …/builds/{id}/logs</code>
        </p>
      )}
    </section>
  );
}

function stateWords(state: Following, log: LogLines, isDone: boolean, follows: boolean): string {
  const lines = `${log.count.toLocaleString("en")} ${log.count === 1 ? "line" : "lines"}`;
  if (outage.value) return `${lines}; no connection since ${clock(outage.value.since)}`;
  if (state === "loading") return `${lines}, loading …`;
  if (state === "complete") return lines;
  return `${lines}, ${isDone ? "the last ones may follow" : follows ? "following" : "more at the end"}`;
}

/** Looks for words in all lines that are there, and in those that come. */
function useSearch(log: LogLines) {
  const [words, setWords] = useState("");
  const [at, setAt] = useState({ index: -1, turn: 0 });
  const seen = useRef<{ words: string; log: LogLines; parts: number; lines: number[] } | undefined>(undefined);
  let state = seen.current;
  if (state?.words !== words || state.log !== log) state = seen.current = { words, log, parts: 0, lines: [] };
  if (words) {
    for (; state.parts < log.parts.length; state.parts++) state.lines = state.lines.concat(log.matches(log.parts[state.parts]!, words));
  }
  const { lines } = state;
  const search = (given: string) => {
    setWords(given);
    setAt(({ turn }) => ({ index: given ? 0 : -1, turn: turn + 1 }));
  };
  const next = (step: number) =>
    setAt(({ index, turn }) => ({ index: lines.length ? (index + step + lines.length) % lines.length : 0, turn: turn + 1 }));
  const count = lines.length.toLocaleString("en");
  const summary = lines.length ? `${(at.index + 1).toLocaleString("en")} of ${count}` : "nothing found";
  return { words, search, next, summary, line: lines[at.index], turn: at.turn };
}

/** A line's text with its colours, and the words that are looked for marked. */
function Message({ text, words }: { text: string; words: string }) {
  if (text.length > MAX_MARKED || (!words && !text.includes(ESCAPE))) return <>{text}</>;
  if (!text.includes(ESCAPE)) return <Marked text={text} words={words} />;
  const pieces = Anser.ansiToJson(text.replaceAll(ESCAPE, "\u001b"), { use_classes: true, remove_empty: true });
  return (
    <>
      {pieces.map((piece, index) => (
        <span
          key={index}
          class={[piece.fg, piece.bg && `${piece.bg}-back`, ...(piece.decorations ?? [])].filter(Boolean).join(" ")}
          style={piece.fg_truecolor ? { color: `rgb(${piece.fg_truecolor})` } : undefined}
        >
          <Marked text={piece.content.replaceAll("\u001b", ESCAPE)} words={words} />
        </span>
      ))}
    </>
  );
}

function Marked({ text, words }: { text: string; words: string }) {
  if (!words) return <>{text}</>;
  const parts = [];
  const small = text.toLowerCase();
  const wanted = words.toLowerCase();
  let from = 0;
  for (let at = small.indexOf(wanted); at !== -1; at = small.indexOf(wanted, from)) {
    parts.push(text.slice(from, at), <mark key={at}>{text.slice(at, at + wanted.length)}</mark>);
    from = at + wanted.length;
  }
  return <>{[...parts, text.slice(from)]}</>;
}
