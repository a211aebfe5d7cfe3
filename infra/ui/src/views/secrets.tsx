import { useState } from "preact/hooks";
import { api, body } from "../api";
import { useLive } from "../live";
import { Answer, Field, Question, Sentences, fieldsOf, useDeed } from "../parts";

/** Names only: nobody reads a value back. */
export function Secrets({ owner, project }: { owner: string; project: string }) {
  const path = { owner, project };
  const { run, isBusy, error } = useDeed();
  const [asked, setAsked] = useState("");
  const { value, refused, refresh } = useLive(
    (signal) => body(api.GET("/{owner}/{project}/secrets", { params: { path }, signal })),
    `${owner}/${project}`,
  );
  return (
    <>
      <Answer value={value} refused={refused} />
      {value?.names.length === 0 && <p class="empty">No secret yet. A build's steps find each one that it names in /run/secrets/NAME.</p>}
      {value && value.names.length > 0 && (
        <ul class="rows-list">
          {value.names.map((name) => (
            <li key={name}>
              <code class="grow">{name}</code>
              <button type="button" aria-label={`Delete secret ${name}`} onClick={() => setAsked(name)}>
                Delete
              </button>
            </li>
          ))}
        </ul>
      )}
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          const form = event.currentTarget;
          const { name: secret = "", value = "" } = fieldsOf(form);
          const params = { path: { ...path, secret: secret.trim() } };
          void run(() => api.PUT("/{owner}/{project}/secrets/{secret}", { params, body: { value } })).then((isDone) => {
            if (!isDone) return;
            form.reset();
            refresh();
          });
        }}
      >
        <h2>Set a secret</h2>
        <div class="columns">
          <Field label="Name">
            <input name="name" required autocomplete="off" />
          </Field>
          <Field label="Value" hint="Nobody reads it back; builds of this project can use it.">
            <input name="value" type="password" required autocomplete="new-password" />
          </Field>
        </div>
        <Sentences of={error} />
        <p class="buttons">
          <button class="primary" disabled={isBusy}>
            Set
          </button>
        </p>
      </form>
      {asked && (
        <Question
          title={`Delete secret ${asked}?`}
          text="Builds that name it fail from then on."
          yes="Delete it"
          onClose={() => setAsked("")}
          onYes={() =>
            api.DELETE("/{owner}/{project}/secrets/{secret}", { params: { path: { ...path, secret: asked } } }).then(refresh)
          }
        />
      )}
    </>
  );
}
