/** A build from a form, or from a specification that one writes. */
import { useEffect, useState } from "preact/hooks";
import { api, body } from "../api";
import { Field, Sentences, fieldsOf, useDeed, words } from "../parts";
import { go, place, to } from "../routes";
import { readable } from "./build";

type Fields = Record<string, string>;

export function NewBuild({ owner, project }: { owner: string; project: string }) {
  const from = Number(place.value.query.get("from") ?? 0);
  const [written, setWritten] = useState<string>();
  const [fields, setFields] = useState<Fields>({});
  const [isWritten, setIsWritten] = useState(from > 0);
  // repeated, it gets the build that was made
  const [key, setKey] = useState(() => crypto.randomUUID());
  const [preview, setPreview] = useState<{ of: string; dockerfile: string | null }>();
  const { run, isBusy, error } = useDeed();
  useEffect(() => {
    if (!from) return;
    const path = { owner, project, build_id: from };
    void run(async () => {
      const build = await body(api.GET("/{owner}/{project}/builds/{build_id}", { params: { path } }));
      setWritten(readable(build.content ?? JSON.stringify({ version: 1, kind: "build", ...build.config })));
    });
  }, [from]);
  const content = isWritten ? (written ?? "") : JSON.stringify(specification(fields), null, 2);
  const post = async () => {
    const asked = { content, name: fields["name"] || null, description: fields["description"] || null, tags: words(fields["tags"] ?? "") };
    const params = { path: { owner, project }, header: { "Idempotency-Key": key } };
    const made = await body(api.POST("/{owner}/{project}/builds", { params, body: asked }));
    go(to.build(owner, project, made.id));
  };
  const look = async () => {
    const params = { path: { owner, project } };
    const { dockerfile } = await body(api.POST("/{owner}/{project}/dockerfile", { params, body: { content } }));
    setPreview({ of: content, dockerfile });
  };
  return (
    <form
      class="card form"
      onInput={(event) => {
        setFields(fieldsOf(event.currentTarget));
        setKey(crypto.randomUUID());
      }}
      onSubmit={(event) => {
        event.preventDefault();
        void run(post);
      }}
    >
      <h2>New build</h2>
      <div class="choice" role="radiogroup" aria-label="How to say what to build">
        <label>
          <input type="radio" name="way" checked={!isWritten} onChange={() => setIsWritten(false)} /> Form
        </label>
        <label>
          <input
            type="radio"
            name="way"
            checked={isWritten}
            onChange={() => {
              setWritten(written ?? content);
              setIsWritten(true);
            }}
          />{" "}
          Specification
        </label>
      </div>
      {isWritten ? (
        <Field label="Specification" hint="YAML or JSON, as in polyaxonfiles of kind build">
          <textarea
            class="mono"
            rows={14}
            spellcheck={false}
            required
            value={written ?? ""}
            onInput={(event) => setWritten(event.currentTarget.value)}
          />
        </Field>
      ) : (
        <>
          <Field label="Base image" hint="Leave it empty to build a Dockerfile of the project's code">
            <input name="image" placeholder="docker.io/library/python:3.12-slim" autofocus defaultValue={fields["image"]} />
          </Field>
          {!fields["image"] && (
            <Field label="Dockerfile" hint="Its path in the code">
              <input name="dockerfile" placeholder="Dockerfile" defaultValue={fields["dockerfile"]} />
            </Field>
          )}
          {(fields["image"] || !fields["dockerfile"]) && (
            <>
              <Field label="Build steps" hint="A command on each line">
                <textarea name="steps" class="mono" rows={5} spellcheck={false} defaultValue={fields["steps"]} />
              </Field>
              <Field label="Environment variables" hint="NAME=value on each line">
                <textarea name="env" class="mono" rows={2} spellcheck={false} defaultValue={fields["env"]} />
              </Field>
            </>
          )}
          <details>
            <summary>More</summary>
            <Field label="Build arguments" hint="NAME=value on each line; everybody who sees the build sees them">
              <textarea name="args" class="mono" rows={2} spellcheck={false} defaultValue={fields["args"]} />
            </Field>
            <Field label="Secrets of the project" hint="Their names; steps find each in /run/secrets/NAME">
              <input name="secrets" defaultValue={fields["secrets"]} />
            </Field>
            <Field label="Branch or commit of the code" hint="Of a git repository; the default branch if not given">
              <input name="commit" defaultValue={fields["commit"]} />
            </Field>
            <label class="choice">
              <input type="checkbox" name="nocache" defaultChecked={fields["nocache"] === "on"} /> Without cached layers
            </label>
          </details>
        </>
      )}
      <div class="columns">
        <Field label="Name">
          <input name="name" defaultValue={fields["name"]} />
        </Field>
        <Field label="Tags">
          <input name="tags" defaultValue={fields["tags"]} />
        </Field>
      </div>
      <Field label="Description">
        <input name="description" defaultValue={fields["description"]} />
      </Field>
      {!isWritten && (
        <details>
          <summary>The specification that is sent</summary>
          <pre class="code">{content}</pre>
        </details>
      )}
      <Sentences of={error} />
      {preview?.of === content && (
        <section aria-label="Dockerfile" aria-live="polite">
          <h3>The Dockerfile of this build</h3>
          {preview.dockerfile === null ? <p>It is in the repository, and is read when the build fetches it.</p> : <pre class="code">{preview.dockerfile}</pre>}
        </section>
      )}
      <p class="buttons">
        <a class="button" href={to.project(owner, project)}>
          Cancel
        </a>
        <button type="button" disabled={isBusy} onClick={() => void run(look)}>
          Preview the Dockerfile
        </button>
        <button class="primary" disabled={isBusy}>
          Build
        </button>
      </p>
    </form>
  );
}

/** What the form says, in the fields of a specification; the API checks it. */
function specification(fields: Fields): Record<string, unknown> {
  const lines = (name: string) => (fields[name] ?? "").split("\n").filter((line) => line.trim());
  const pairs = (name: string) => lines(name).map((line) => [line.split("=", 1)[0]!.trim(), line.slice(line.indexOf("=") + 1)]);
  const image = fields["image"]?.trim();
  const some = <T,>(list: T[]) => (list.length ? list : undefined);
  return {
    version: 1,
    kind: "build",
    ...(image ? { image } : { dockerfile: fields["dockerfile"]?.trim() || undefined }),
    build_steps: some(lines("steps")),
    env_vars: some(pairs("env")),
    build_args: lines("args").length ? Object.fromEntries(pairs("args")) : undefined,
    secrets: some(words(fields["secrets"] ?? "").map((name) => ({ id: name, from: name }))),
    commit: fields["commit"]?.trim() || undefined,
    nocache: fields["nocache"] === "on" || undefined,
  };
}
