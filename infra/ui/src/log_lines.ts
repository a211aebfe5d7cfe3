/** A log as it was answered: texts of whole lines, and where in them each line begins. A line is cut out of its
 * text when it is shown, so that 200,000 of them take little more memory than the text. */

/** At most so many lines are held and shown: browsers cannot scroll through more. */
export const MAX_LINES = 800_000;

/** The line where a step of the Dockerfile begins. */
export interface Step {
  line: number;
  title: string;
}

interface Part {
  text: string;
  /** Where its lines begin, and where the last one ends. */
  starts: Uint32Array;
  first: number;
}

const TIME_CHARACTERS = "2026-01-01 00:00:00 UTC -- ".length;
// as buildah and podman, and as BuildKit name them
const STEP = /^(?:STEP (\d+\/\d+): |#\d+ \[(?:\S+ +)?(\d+\/\d+)\] )(.+)/;
const FIRST_WORDS = /^(?:STEP |#\d+ \[)/;

export class LogLines {
  count = 0;
  isCut = false;
  readonly steps: Step[] = [];
  readonly parts: Part[] = [];

  /** Takes whole lines. */
  add(text: string): void {
    if (text === "" || this.isCut) return;
    const starts = [0];
    for (let end = text.indexOf("\n"); end !== -1; end = text.indexOf("\n", end + 1)) {
      this.#noteStep(text, starts.at(-1)!, end, this.count + starts.length - 1);
      starts.push(end + 1);
      if (this.count + starts.length > MAX_LINES) {
        this.isCut = true;
        break;
      }
    }
    if (!this.isCut && starts.at(-1)! < text.length) starts.push(text.length + 1);
    this.parts.push({ text, starts: Uint32Array.from(starts), first: this.count });
    this.count += starts.length - 1;
  }

  #noteStep(text: string, start: number, end: number, line: number): void {
    const at = start + TIME_CHARACTERS;
    if (at >= end || (text[at] !== "S" && text[at] !== "#") || !FIRST_WORDS.test(text.slice(at, at + 16))) return;
    const found = STEP.exec(text.slice(at, Math.min(end, at + 200)));
    const title = found && `${found[1] ?? found[2]} ${found[3]}`;
    if (title && !this.steps.some((step) => step.title === title)) this.steps.push({ line, title });
  }

  /** Its time, `HH:MM:SS`, with the whole in `at`, and what it says. Lines count from 0. */
  line(number: number): { time: string; at: string; message: string } {
    const part = this.parts[last(this.parts.length, (index) => this.parts[index]!.first <= number)]!;
    const from = number - part.first;
    const line = part.text.slice(part.starts[from], part.starts[from + 1]! - 1);
    return { time: line.slice(11, 19), at: line.slice(0, 23), message: line.slice(TIME_CHARACTERS) };
  }

  /** The numbers of the lines of one part that contain the words, in any case. */
  matches(part: Part, words: string): number[] {
    const pattern = new RegExp(words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
    const found: number[] = [];
    for (let match = pattern.exec(part.text); match; match = pattern.exec(part.text)) {
      const line = last(part.starts.length, (index) => part.starts[index]! <= match.index);
      if (line >= part.starts.length - 1) break;
      found.push(part.first + line);
      pattern.lastIndex = part.starts[line + 1]!;
    }
    return found;
  }
}

/** The last index for which something holds that holds for the first ones. */
export function last(length: number, holds: (index: number) => boolean): number {
  let low = 0;
  let high = length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (holds(middle)) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
