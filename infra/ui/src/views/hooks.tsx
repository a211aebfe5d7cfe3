import { useState } from "preact/hooks";
import { api, body } from "../api";
import { useLive } from "../live";
import { Ago, Answer, Copy, Field, Question, Sentences, fieldsOf, useDeed } from "../parts";

/** A project's webhooks, with what became of their last call. */
export function Hooks({ owner, project }: { owner: string; project: string }) {
  const path = { owner, project };
  const { run, isBusy, error } = useDeed();
  const [made, setMade] = useState("");
  const [asked, setAsked] = useState("");
  const { value, refused, refresh } = useLive(
    (signal) => body(api.GET("/{owner}/{project}/hooks", { params: { path }, signal })),
    `${owner}/${project}`,
    () => 5,
  );
  return (
    <>
      <Answer value={value} refused={refused} />
      {value?.results.length === 0 && <p class="empty">No webhook yet. Each is called when a build of this project has ended.</p>}
      {value && value.results.length > 0 && (
        <ul class="rows-list">
          {value.results.map((hook) => (
            <li key={hook.name}>
              <div class="grow">
                <strong>{hook.name}</strong> <code>{hook.url}</code>
                {hook.updated_at && (
                  <p>
                    <Ago time={hook.updated_at} />: {hook.failure ?? "The receiver accepted the call."}
                    {hook.is_disabled && " The webhook is disabled: set it again."}
                  </p>
                )}
              </div>
              <span class="buttons">
                <button
                  type="button"
                  aria-label={`Test webhook ${hook.name}`}
                  disabled={isBusy || hook.is_disabled}
                  onClick={() =>
                    void run(() => api.POST("/{owner}/{project}/hooks/{hook}/test", { params: { path: { ...path, hook: hook.name } } }))
                  }
                >
                  Test
                </button>
                <button type="button" aria-label={`Delete webhook ${hook.name}`} onClick={() => setAsked(hook.name)}>
                  Delete
                </button>
              </span>
            </li>
          ))}
        </ul>
      )}
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          const form = event.currentTarget;
          const { name = "", url = "" } = fieldsOf(form);
          const params = { path: { ...path, hook: name.trim() } };
          void run(async () => {
            setMade((await body(api.PUT("/{owner}/{project}/hooks/{hook}", { params, body: { url: url.trim() } }))).secret);
            form.reset();
            refresh();
          });
        }}
      >
        <h2>Set a webhook</h2>
        <div class="columns">
          <Field label="Name">
            <input name="name" required autocomplete="off" placeholder="ci" />
          </Field>
          <Field label="Address" hint="It must answer 2xx within ten seconds.">
            <input name="url" type="url" required autocomplete="off" placeholder="https://ci.example.com/builds" />
          </Field>
        </div>
        <Sentences of={error} />
        {made && (
          <p role="status">
            Its calls are signed with this secret, which is shown this once: <Copy text={made} what="the secret" />
          </p>
        )}
        <p class="buttons">
          <button class="primary" disabled={isBusy}>
            Set
          </button>
        </p>
      </form>
      {asked && (
        <Question
          title={`Delete webhook ${asked}?`}
          text="It is not called any more, also not for builds that have ended already."
          yes="Delete it"
          onClose={() => setAsked("")}
          onYes={() => api.DELETE("/{owner}/{project}/hooks/{hook}", { params: { path: { ...path, hook: asked } } }).then(refresh)}
        />
      )}
    </>
  );
}
