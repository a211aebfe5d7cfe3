/** What several views are made of. */
import { type ComponentChildren, type VNode, cloneElement } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { NoAnswer, Refused, type StatusName } from "./api";
import { address, place } from "./routes";

const SIGNS: Partial<Record<StatusName, string>> = {
  created: "○",
  scheduled: "◔",
  building: "◑",
  running: "◕",
  succeeded: "✓",
  failed: "✕",
  upstream_failed: "✕",
  stopped: "■",
  skipped: "■",
};
const DONE: readonly StatusName[] = ["succeeded", "failed", "upstream_failed", "stopped", "skipped"];

export const isDone = (status: StatusName): boolean => DONE.includes(status);

/** A status: a sign and a colour, but always the word as well. */
export function Status({ of }: { of: StatusName }) {
  return (
    <span class={`status ${of}`}>
      <span aria-hidden="true">{SIGNS[of] ?? "▲"}</span> {of.replace("_", " ")}
    </span>
  );
}

const date = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const hours = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

export const clock = (time: Date): string => hours.format(time);

/** How long ago, with the time itself when one points at it. */
export function Ago({ time }: { time: string }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 30_000);
    return () => clearInterval(timer);
  }, []);
  const at = new Date(time);
  const seconds = Math.max(0, (Math.max(now, Date.now()) - at.getTime()) / 1000);
  return (
    <time dateTime={time} title={date.format(at)}>
      {seconds < 10 ? "just now" : `${rough(seconds)} ago`}
    </time>
  );
}

function rough(seconds: number): string {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** What the API said against something. */
export function Sentences({ of }: { of: Refused | NoAnswer | undefined }) {
  if (!of) return null;
  const sentences = of instanceof Refused ? of.sentences : [of.message];
  return (
    <div class="refusal" role="alert">
      {sentences.map((sentence) => (
        <p key={sentence}>{sentence}</p>
      ))}
    </div>
  );
}

/** In the place of what was asked for: that it has not come yet, or why it does not. */
export function Answer({ value, refused }: { value: unknown; refused: Refused | undefined }) {
  if (refused) return <Sentences of={refused} />;
  return value === undefined ? <p class="empty">Loading …</p> : null;
}

/** A text with a button that copies it. */
export function Copy({ text, what }: { text: string; what: string }) {
  const [isCopied, setCopied] = useState(false);
  return (
    <span class="copy">
      <code>{text}</code>
      <button
        type="button"
        aria-label={`Copy ${what}`}
        onClick={() =>
          void navigator.clipboard.writeText(text).then(() => {
            setCopied(true);
            setTimeout(() => setCopied(false), 2000);
          })
        }
      >
        {isCopied ? "Copied" : "Copy"}
      </button>
    </span>
  );
}

/** Something to do that may be refused: a button that says so, beside it. */
export function useDeed(): { run: (deed: () => Promise<unknown>) => Promise<boolean>; isBusy: boolean; error: Refused | NoAnswer | undefined } {
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState<Refused | NoAnswer>();
  const run = async (deed: () => Promise<unknown>) => {
    setBusy(true);
    setError(undefined);
    try {
      await deed();
      return true;
    } catch (problem) {
      if (!(problem instanceof Refused || problem instanceof NoAnswer)) throw problem;
      setError(problem);
      return false;
    } finally {
      setBusy(false);
    }
  };
  return { run, isBusy, error };
}

/** A dialog that is open as long as it is there. */
export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current!.showModal(), []);
  return (
    <dialog ref={dialog} onClose={onClose} aria-label={title}>
      <h2>{title}</h2>
      {children}
    </dialog>
  );
}

/** Asks back before something is done. */
export function Question(props: {
  title: string;
  text: string;
  yes: string;
  onYes: () => Promise<unknown>;
  onClose: () => void;
}) {
  const { run, isBusy, error } = useDeed();
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <p>{props.text}</p>
      <Sentences of={error} />
      <p class="buttons">
        <button type="button" onClick={props.onClose}>
          Cancel
        </button>
        <button
          type="button"
          class="danger"
          disabled={isBusy}
          onClick={() => void run(props.onYes).then((isDone) => isDone && props.onClose())}
        >
          {props.yes}
        </button>
      </p>
    </Dialog>
  );
}

/** A field of a form: its control gets the label as name and the hint as description. */
export function Field({ label, hint, children }: { label: string; hint?: string; children: VNode<Record<string, unknown>> }) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {cloneElement(children, { id, "aria-describedby": hint && `${id}-hint` })}
      {hint && (
        <span class="hint" id={`${id}-hint`}>
          {hint}
        </span>
      )}
    </div>
  );
}

const MAX_OFFSET = 10_000; // the API's

/** Links to the pages of a list, and which rows are shown; with `isMinimum`, there may be more than `count`. */
export function Pages(props: { count: number; isMinimum?: boolean; offset: number; shown: number; size: number }) {
  const { count, isMinimum, offset, shown, size } = props;
  if (count === 0) return null;
  const query = Object.fromEntries(place.value.query);
  const at = (first: number) => address(place.value.path, { ...query, offset: first > 0 ? String(first) : "" });
  const last = Math.min(count - 1, MAX_OFFSET);
  return (
    <nav class="pages" aria-label="Pages">
      <span>
        {(offset + 1).toLocaleString("en")} to {(offset + shown).toLocaleString("en")} of {isMinimum && "at least "}
        {count.toLocaleString("en")}
      </span>
      {offset > 0 && (
        <>
          <a class="button" href={at(0)}>
            First
          </a>
          <a class="button" href={at(offset - size)} rel="prev">
            Newer
          </a>
        </>
      )}
      {offset + shown <= last && (
        <>
          <a class="button" href={at(offset + shown)} rel="next">
            Older
          </a>
          <a class="button" href={at(last - (last % size))}>
            Last
          </a>
        </>
      )}
    </nav>
  );
}

export const offsetOf = (): number => Number(place.value.query.get("offset") ?? 0) || 0;

/** The fields of a form, as texts. */
export function fieldsOf(form: HTMLFormElement): Record<string, string> {
  return Object.fromEntries([...new FormData(form)].filter((pair): pair is [string, string] => typeof pair[1] === "string"));
}

export const words = (text: string): string[] => text.split(/[\s,]+/).filter(Boolean);
