import { useState } from "preact/hooks";
import { api, body } from "../api";
import { useLive } from "../live";
import { Answer, Field, Question, Sentences, fieldsOf, useDeed, words } from "../parts";
import { go, to } from "../routes";

export function ProjectSettings({ owner, project }: { owner: string; project: string }) {
  const path = { owner, project };
  const { run, isBusy, error } = useDeed();
  const [message, setMessage] = useState("");
  const [asked, setAsked] = useState<"" | "archive" | "delete">("");
  const { value, refused, refresh } = useLive(
    (signal) => body(api.GET("/{owner}/{project}", { params: { path }, signal })),
    `${owner}/${project}`,
  );
  const toList = () => go(to.projects(owner));
  return (
    <>
      <Answer value={value} refused={refused} />
      {value && (
        <form
          class="card form"
          key={value.updated_at}
          onSubmit={(event) => {
            event.preventDefault();
            const { description, tags = "", is_public, reuse } = fieldsOf(event.currentTarget);
            const choices = { is_public: is_public === "on", reuse: reuse === "on" };
            const changes = { description: description || null, tags: words(tags), ...choices };
            void run(() => api.PATCH("/{owner}/{project}", { params: { path }, body: changes })).then((isDone) => {
              setMessage(isDone ? "Saved." : "");
              if (isDone) refresh();
            });
          }}
        >
          <h2>Settings</h2>
          <Field label="Description">
            <textarea name="description" rows={3} defaultValue={value.description ?? ""} />
          </Field>
          <Field label="Tags" hint="With spaces or commas between them">
            <input name="tags" defaultValue={value.tags?.join(", ") ?? ""} />
          </Field>
          <label class="choice">
            <input type="checkbox" name="is_public" defaultChecked={value.is_public} /> Public: all users of this service may see it
          </label>
          <label class="choice">
            <input type="checkbox" name="reuse" defaultChecked={value.reuse} /> Reuse: a build with the same inputs as an earlier one gets its image
          </label>
          <Sentences of={error} />
          <p role="status">{message}</p>
          <p class="buttons">
            <button type="button" onClick={() => setAsked("archive")}>
              Archive project
            </button>
            <button type="button" class="danger" onClick={() => setAsked("delete")}>
              Delete project
            </button>
            <span class="spring" />
            <button class="primary" disabled={isBusy}>
              Save
            </button>
          </p>
        </form>
      )}
      {asked && (
        <Question
          title={`${asked === "delete" ? "Delete" : "Archive"} project ${project}?`}
          text={
            asked === "delete"
              ? `Its ${value?.num_builds ?? ""} builds, their logs and its code go for good, and what runs is stopped.`
              : "It is hidden with all its builds, and what runs is stopped. On the page “Archive” it can be restored for a while."
          }
          yes={asked === "delete" ? "Delete it" : "Archive it"}
          onClose={() => setAsked("")}
          onYes={() =>
            (asked === "delete"
              ? api.DELETE("/{owner}/{project}", { params: { path } })
              : api.POST("/{owner}/{project}/archive", { params: { path } })
            ).then(toList)
          }
        />
      )}
    </>
  );
}
