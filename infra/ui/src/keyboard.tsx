/** `j` and `k` go through the rows of a list, Enter opens one, `/` goes to the search, `?` shows this. */
import { useEffect, useState } from "preact/hooks";
import { Dialog } from "./parts";

const KEYS = {
  "j, k": "next and previous row of a list",
  Enter: "open the row",
  "/": "search",
  "?": "this list",
  Esc: "close a dialog",
  "Shift + Enter": "previous line that matches, in the search of a log",
};

export function Keyboard() {
  const [isOpen, setOpen] = useState(false);
  useEffect(() => {
    const listen = (event: KeyboardEvent) => {
      const target = event.target as Element;
      if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input, textarea, select, dialog[open]")) return;
      if (event.key === "?") setOpen(true);
      else if (event.key === "/") {
        const search = document.querySelector<HTMLInputElement>("[data-search]");
        if (!search) return;
        event.preventDefault();
        search.focus();
      } else if (event.key === "j" || event.key === "k") {
        const rows = [...document.querySelectorAll<HTMLElement>("a.row-link")];
        const at = rows.indexOf(document.activeElement as HTMLElement);
        rows[at === -1 ? 0 : at + (event.key === "j" ? 1 : -1)]?.focus();
      }
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, []);
  if (!isOpen) return null;
  return (
    <Dialog title="Keys" onClose={() => setOpen(false)}>
      <dl class="keys">
        {Object.entries(KEYS).map(([key, what]) => (
          <div key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <form method="dialog" class="buttons">
        <button>Close</button>
      </form>
    </Dialog>
  );
}
