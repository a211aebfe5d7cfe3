import { useState } from "preact/hooks";
import { api, body } from "../api";
import { useLive } from "../live";
import { Ago, Answer, Dialog, Field, Pages, Sentences, fieldsOf, offsetOf, useDeed } from "../parts";
import { go, place, to } from "../routes";
import { user } from "../session";

const SIZE = 50;

export function Projects({ owner }: { owner: string }) {
  const offset = offsetOf();
  const isMine = owner === user.value?.username;
  const [isMaking, setMaking] = useState(false);
  const { value, refused } = useLive(
    (signal) => body(api.GET("/{owner}", { params: { path: { owner }, query: { limit: SIZE, offset } }, signal })),
    `${owner} ${offset}`,
    () => 15,
  );
  return (
    <>
      <div class="head">
        <h1>{isMine ? "Your projects" : `Projects of ${owner}`}</h1>
        <span class="spring" />
        <form
          role="search"
          onSubmit={(event) => {
            event.preventDefault();
            go(to.projects(fieldsOf(event.currentTarget)["owner"]!.trim() || undefined));
          }}
        >
          <input name="owner" data-search type="search" aria-label="Projects of another user" placeholder="Another user" />
        </form>
        {isMine && (
          <button type="button" class="primary" onClick={() => setMaking(true)}>
            New project
          </button>
        )}
      </div>
      <Answer value={value} refused={refused} />
      {value?.count === 0 && (
        <div class="empty card">
          <h2>No project yet</h2>
          {isMine ? <p>A project holds builds, and the code they are made from. Make one first.</p> : <p>None that you may see.</p>}
        </div>
      )}
      {value && value.count > 0 && (
        <>
          <ul class="rows-list">
            {value.results.map((project) => (
              <li key={project.uuid}>
                <a class="row-link" href={to.project(project.owner, project.name)}>
                  {project.name}
                </a>
                <span class="muted grow">{project.description}</span>
                {project.is_public && <span class="tag">public</span>}
                {project.tags?.map((tag) => (
                  <span key={tag} class="tag">
                    {tag}
                  </span>
                ))}
                <span class="muted">
                  changed <Ago time={project.updated_at} />
                </span>
              </li>
            ))}
          </ul>
          <Pages count={value.count} offset={offset} shown={value.results.length} size={SIZE} />
        </>
      )}
      {isMaking && <NewProject onClose={() => setMaking(false)} />}
    </>
  );
}

function NewProject({ onClose }: { onClose: () => void }) {
  const { run, isBusy, error } = useDeed();
  return (
    <Dialog title="New project" onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          const { name = "", description } = fieldsOf(event.currentTarget);
          void run(async () => {
            const made = await body(api.POST("/projects", { body: { name, description: description || null } }));
            go(to.project(made.owner, made.name));
          });
        }}
      >
        <Field label="Name" hint="Letters, digits, - and _">
          <input name="name" required autofocus />
        </Field>
        <Field label="Description">
          <input name="description" />
        </Field>
        <Sentences of={error} />
        <p class="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button class="primary" disabled={isBusy}>
            Make it
          </button>
        </p>
      </form>
    </Dialog>
  );
}

/** What is above all views of one project. */
export function ProjectHead({ owner, project }: { owner: string; project: string }) {
  const [, , , view = "builds"] = place.value.path;
  const tabs = { builds: "Builds", code: "Code", secrets: "Secrets", hooks: "Webhooks", settings: "Settings" };
  return (
    <>
      <nav class="crumbs" aria-label="Where you are">
        <a href={to.projects(owner)}>{owner}</a> / <a href={to.project(owner, project)}>{project}</a>
      </nav>
      <div class="head">
        <h1>{project}</h1>
        <span class="spring" />
        <a class="button primary" href={to.project(owner, project, "new")}>
          New build
        </a>
      </div>
      <nav class="tabs" aria-label="Project">
        {Object.entries(tabs).map(([name, label]) => (
          <a
            key={name}
            href={name === "builds" ? to.project(owner, project) : to.project(owner, project, name)}
            aria-current={name === view ? "page" : undefined}
          >
            {label}
          </a>
        ))}
      </nav>
    </>
  );
}
