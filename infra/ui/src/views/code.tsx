/** A project's code: uploaded, or fetched with git. */
import { useState } from "preact/hooks";
import { API, api, body, send } from "../api";
import { useLive } from "../live";
import { Answer, Copy, Field, Sentences, fieldsOf, useDeed } from "../parts";
import { to } from "../routes";
import { token } from "../session";

const MAX_DIRECT_BYTES = 4_000_000; // a request carries a little more; larger archives go straight to storage
const COMMANDS = [
  `curl --fail --remote-name ${new URL("slipway", location.href).href}`,
  `python3 slipway login ${new URL(".", location.href).href.replace(/\/ui\/$/, "")}`,
  "python3 slipway build . --project PROJECT --follow",
];

export function Code({ owner, project }: { owner: string; project: string }) {
  const path = { owner, project };
  const { value, refused, refresh } = useLive(
    (signal) => body(api.GET("/{owner}/{project}", { params: { path }, signal })),
    `${owner}/${project}`,
  );
  const { run, isBusy, error } = useDeed();
  const [part, setPart] = useState<number>();
  const [message, setMessage] = useState("");
  const upload = async (file: File) => {
    setPart(0);
    try {
      if (file.size <= MAX_DIRECT_BYTES) {
        const headers = { Authorization: `token ${token.value}`, "Content-Type": "application/gzip" };
        await send("PUT", `${API}/${encodeURIComponent(owner)}/${encodeURIComponent(project)}/repo/upload`, file, headers, setPart);
      } else {
        const offer = await body(api.POST("/{owner}/{project}/repo/upload/offers", { params: { path } }));
        const form = new FormData();
        for (const [name, text] of Object.entries(offer.fields)) form.append(name, text);
        form.append("file", file);
        await send("POST", offer.url, form, {}, setPart);
        const offer_id = offer.complete.split("/").at(-1)!;
        await api.POST("/{owner}/{project}/repo/upload/offers/{offer_id}", { params: { path: { ...path, offer_id } } });
      }
      setMessage(`${file.name} is the project's code now.`);
      refresh();
    } finally {
      setPart(undefined);
    }
  };
  const download = async () => {
    const answer = api.GET("/{owner}/{project}/repo/download", { params: { path }, parseAs: "blob" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL((await body<unknown>(answer)) as Blob);
    link.download = `${project}.tar.gz`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  return (
    <>
      <Answer value={value} refused={refused} />
      {value && (
        <p>
          {value.git_url ? (
            <>
              Builds fetch the code from <code>{value.git_url}</code>.
            </>
          ) : value.has_code ? (
            <>
              The project has code that was uploaded.{" "}
              <button type="button" disabled={isBusy} onClick={() => void run(download)}>
                Download it
              </button>
            </>
          ) : (
            "The project has no code yet. A build from a base image alone needs none."
          )}
        </p>
      )}
      <div class="columns">
        <form
          class="card"
          onSubmit={(event) => {
            event.preventDefault();
            setMessage("");
            const file = new FormData(event.currentTarget).get("archive");
            if (file instanceof File && file.size > 0) void run(() => upload(file));
          }}
        >
          <h2>Upload code</h2>
          <Field label="A gzipped tar archive" hint="tar --create --gzip --file code.tar.gz --directory my-code .">
            <input type="file" name="archive" accept=".gz,.tgz,application/gzip" required />
          </Field>
          {part !== undefined && (
            <p>
              <progress value={part} aria-label="Upload" /> {Math.round(part * 100)} %
            </p>
          )}
          <Sentences of={error} />
          <p role="status">
            {message} {message && <a href={to.project(owner, project, "new")}>New build</a>}
          </p>
          <p class="buttons">
            <button class="primary" disabled={isBusy}>
              Upload
            </button>
          </p>
        </form>
        <GitForm path={path} git={value?.git_url ?? ""} refresh={refresh} />
      </div>
      <section class="card">
        <h2>Or build from a terminal</h2>
        <p>One file, which needs Python 3.9 or newer and nothing else, uploads a folder and builds its Dockerfile:</p>
        {COMMANDS.map((command) => (
          <Copy key={command} text={command.replace("PROJECT", `${owner}/${project}`)} what="the command" />
        ))}
      </section>
    </>
  );
}

function GitForm({ path, git, refresh }: { path: { owner: string; project: string }; git: string; refresh: () => void }) {
  const { run, isBusy, error } = useDeed();
  return (
    <form
      class="card"
      key={git}
      onSubmit={(event) => {
        event.preventDefault();
        const git_url = fieldsOf(event.currentTarget)["git_url"]!.trim();
        void run(() => api.POST("/{owner}/{project}/repo/external", { params: { path }, body: { git_url } })).then(refresh);
      }}
    >
      <h2>Or use git</h2>
      <Field label="Address of a git repository" hint="For a private one, set the secret git-token.">
        <input name="git_url" type="url" required placeholder="https://example.com/team/code" defaultValue={git} />
      </Field>
      <Sentences of={error} />
      <p class="buttons">
        <button disabled={isBusy}>Use it</button>
      </p>
    </form>
  );
}
