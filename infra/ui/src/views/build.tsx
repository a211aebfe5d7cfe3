import { useState } from "preact/hooks";
import { type BuildDetail, type BuildStep, type StatusEntry, api, body } from "../api";
import { useLive } from "../live";
import { LogView } from "../log_view";
import { Ago, Answer, Copy, Dialog, Field, Question, Sentences, Status, clock, duration, fieldsOf, isDone, useDeed, words } from "../parts";
import { go, place, to } from "../routes";

type Opened = { build: BuildDetail; history: StatusEntry[] };

const TABS = { log: "Log", timeline: "Timeline", dockerfile: "Dockerfile", specification: "Specification" };

export function BuildPage({ owner, project, id }: { owner: string; project: string; id: number }) {
  const path = { owner, project, build_id: id };
  const { value, refused, refresh } = useLive<Opened>(
    async (signal) => {
      const [build, history] = await Promise.all([
        body(api.GET("/{owner}/{project}/builds/{build_id}", { params: { path }, signal })),
        body(api.GET("/{owner}/{project}/builds/{build_id}/statuses", { params: { path, query: { limit: 500 } }, signal })),
      ]);
      return { build, history: history.results };
    },
    `${owner}/${project}/${id}`,
    // the words of a failure may follow the end
    ({ build }) => (isDone(build.last_status) ? 30 : build.finished_at ? 5 : 2),
  );
  const tab = place.value.path[5] ?? "log";
  return (
    <>
      <nav class="crumbs" aria-label="Where you are">
        <a href={to.projects(owner)}>{owner}</a> / <a href={to.project(owner, project)}>{project}</a> / build {id}
      </nav>
      <Answer value={value} refused={refused} />
      {value && (
        <>
          <Head opened={value} path={path} refresh={refresh} />
          <nav class="tabs" aria-label="Build">
            {Object.entries(TABS).map(([name, label]) => (
              <a
                key={name}
                href={name === "log" ? to.build(owner, project, id) : to.build(owner, project, id, name)}
                aria-current={name === tab ? "page" : undefined}
              >
                {label}
              </a>
            ))}
          </nav>
          {tab === "log" && <LogView owner={owner} project={project} id={id} isDone={isDone(value.build.last_status)} />}
          {tab === "timeline" && <Timeline opened={value} path={path} />}
          {tab === "dockerfile" && <Dockerfile build={value.build} />}
          {tab === "specification" && <Specification build={value.build} path={path} />}
        </>
      )}
    </>
  );
}

type Path = { owner: string; project: string; build_id: number };

function Head({ opened, path, refresh }: { opened: Opened; path: Path; refresh: () => void }) {
  const { build, history } = opened;
  const reason = build.waiting_reason ?? history.at(-1)?.message;
  const ended = isDone(build.last_status);
  const repository = build.image.replace(/:[^:/]*$/, "");
  return (
    <header class="build-head">
      <div class="head">
        <h1>
          #{build.id} {build.name}
        </h1>
        <span data-testid="status" role="status">
          <Status of={build.last_status} />
        </span>
        <span class="spring" />
        <Actions build={build} path={path} refresh={refresh} />
      </div>
      {reason && reason !== "Completed" && (
        <p class={`reason ${build.last_status}`} data-testid="reason">
          {reason}
        </p>
      )}
      {build.description && <p>{build.description}</p>}
      {build.image_digest ? (
        <p class="pull">
          <Copy text={`docker pull ${repository}@${build.image_digest}`} what="the command that pulls the image" />
        </p>
      ) : (
        build.is_managed && <p class="muted">{ended ? "No image was made." : `The image will be ${build.image}.`}</p>
      )}
      <dl class="facts">
        <Fact name="Created">
          <Ago time={build.created_at} /> by {build.on_behalf_of ? `${build.on_behalf_of} through ${build.user}` : build.user}
        </Fact>
        {build.duration_seconds !== null ? (
          <Fact name="Took">{duration(build.duration_seconds)}</Fact>
        ) : (
          build.started_at && (
            <Fact name="Started">
              <Ago time={build.started_at} />
            </Fact>
          )
        )}
        {build.billed_minutes !== null && build.billed_minutes > 0 && (
          <Fact name="Billed">
            {build.billed_minutes} min{build.estimated_cost !== null && `, about ${build.estimated_cost}`}
          </Fact>
        )}
        {build.commit && (
          <Fact name="Commit">
            <code title={build.commit}>{build.commit.slice(0, 12)}</code>
          </Fact>
        )}
        {build.reused_from !== null && (
          <Fact name="Image reused from">
            <a href={to.build(path.owner, path.project, build.reused_from)}>#{build.reused_from}</a>
          </Fact>
        )}
        {build.rebuild_of !== null && (
          <Fact name="Rebuild of">
            <a href={to.build(path.owner, path.project, build.rebuild_of)}>#{build.rebuild_of}</a>
          </Fact>
        )}
        <Fact name="Runs on">{build.is_managed ? build.backend : `${build.backend}, elsewhere`}</Fact>
        {build.tags && (
          <Fact name="Tags">
            {build.tags.map((tag) => (
              <span key={tag} class="tag">
                {tag}
              </span>
            ))}
          </Fact>
        )}
      </dl>
    </header>
  );
}

function Fact({ name, children }: { name: string; children: preact.ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function Actions({ build, path, refresh }: { build: BuildDetail; path: Path; refresh: () => void }) {
  const { run, isBusy, error } = useDeed();
  const [asked, setAsked] = useState<"" | "edit" | "archive" | "delete">("");
  const params = { path };
  const toList = () => go(to.project(path.owner, path.project));
  const close = () => setAsked("");
  return (
    <>
      <div class="buttons" role="group" aria-label="What to do with this build">
        {!isDone(build.last_status) && (
          <button
            type="button"
            class="danger"
            disabled={isBusy}
            onClick={() => void run(() => api.POST("/{owner}/{project}/builds/{build_id}/stop", { params })).then(refresh)}
          >
            Stop
          </button>
        )}
        {build.is_managed && (
          <button
            type="button"
            disabled={isBusy}
            title="A new build of the same specification and the same code"
            onClick={() =>
              void run(() =>
                body(api.POST("/{owner}/{project}/builds/{build_id}/rebuild", { params, body: {} })).then((made) =>
                  go(to.build(path.owner, path.project, made.id)),
                ),
              )
            }
          >
            Rebuild
          </button>
        )}
        <button
          type="button"
          aria-pressed={build.bookmarked}
          disabled={isBusy}
          onClick={() =>
            void run(() =>
              build.bookmarked
                ? api.DELETE("/{owner}/{project}/builds/{build_id}/unbookmark", { params })
                : api.POST("/{owner}/{project}/builds/{build_id}/bookmark", { params }),
            ).then(refresh)
          }
        >
          {build.bookmarked ? "★ Bookmarked" : "☆ Bookmark"}
        </button>
        <button type="button" onClick={() => setAsked("edit")}>
          Edit
        </button>
        <button type="button" onClick={() => setAsked("archive")}>
          Archive
        </button>
        <button type="button" onClick={() => setAsked("delete")}>
          Delete
        </button>
      </div>
      <Sentences of={error} />
      {asked === "edit" && <Edit build={build} path={path} onClose={close} refresh={refresh} />}
      {asked === "archive" && (
        <Question
          title={`Archive build ${build.id}?`}
          text="It leaves the list, and is stopped if it still runs. On the page “Archive” it can be restored for a while."
          yes="Archive it"
          onClose={close}
          onYes={() => api.POST("/{owner}/{project}/builds/{build_id}/archive", { params }).then(toList)}
        />
      )}
      {asked === "delete" && (
        <Question
          title={`Delete build ${build.id}?`}
          text="Its record and its log go for good, and it is stopped if it still runs. The image stays in the registry."
          yes="Delete it"
          onClose={close}
          onYes={() => api.DELETE("/{owner}/{project}/builds/{build_id}", { params }).then(toList)}
        />
      )}
    </>
  );
}

function Edit({ build, path, onClose, refresh }: { build: BuildDetail; path: Path; onClose: () => void; refresh: () => void }) {
  const { run, isBusy, error } = useDeed();
  return (
    <Dialog title={`Edit build ${build.id}`} onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          const { name, description, tags = "" } = fieldsOf(event.currentTarget);
          const changes = { name: name || null, description: description || null, tags: words(tags) };
          void run(() => api.PATCH("/{owner}/{project}/builds/{build_id}", { params: { path }, body: changes })).then((isDone) => {
            if (!isDone) return;
            refresh();
            onClose();
          });
        }}
      >
        <Field label="Name" hint="Letters, digits, - and _; one build of the project has it">
          <input name="name" defaultValue={build.name ?? ""} />
        </Field>
        <Field label="Description">
          <textarea name="description" rows={3} defaultValue={build.description ?? ""} />
        </Field>
        <Field label="Tags" hint="With spaces or commas between them">
          <input name="tags" defaultValue={build.tags?.join(", ") ?? ""} />
        </Field>
        <Sentences of={error} />
        <p class="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button class="primary" disabled={isBusy}>
            Save
          </button>
        </p>
      </form>
    </Dialog>
  );
}

const PHASES: Partial<Record<StatusEntry["status"], string>> = {
  created: "waits in the queue",
  scheduled: "the executor prepares",
  building: "the source is fetched",
  running: "the engine builds and pushes",
  warning: "trouble that may pass",
  unknown: "the executor does not tell",
  unschedulable: "no machine takes it yet",
};

/** How long each status lasted; before the end, what the engine did. */
function Timeline({ opened, path }: { opened: Opened; path: Path }) {
  const { build, history } = opened;
  const working = history.findLastIndex((entry) => !isDone(entry.status));
  const times = history.map((entry) => Date.parse(entry.created_at));
  const end = isDone(build.last_status) ? times.at(-1)! : Math.max(Date.now(), times.at(-1)!);
  const whole = Math.max(1, end - times[0]!);
  return (
    <ol class="timeline">
      {history.map((entry, index) => {
        const until = times[index + 1] ?? end;
        const lasted = until - times[index]!;
        return (
          <li key={entry.uuid}>
            <time dateTime={entry.created_at} title={entry.created_at}>
              {clock(new Date(entry.created_at))}
            </time>
            <Status of={entry.status} />
            <span class="muted">{isDone(entry.status) ? "" : `${duration(lasted / 1000)} · ${PHASES[entry.status] ?? ""}`}</span>
            {!isDone(entry.status) && (
              <span class="lane" aria-hidden="true">
                <span
                  class={`span ${entry.status}`}
                  style={{ left: `${((times[index]! - times[0]!) / whole) * 100}%`, width: `${(lasted / whole) * 100}%` }}
                />
              </span>
            )}
            {entry.message && <p>{entry.message}</p>}
            {entry.traceback && (
              <details>
                <summary>Traceback</summary>
                <pre>{entry.traceback}</pre>
              </details>
            )}
            {index === working && <Steps path={path} isEnded={isDone(build.last_status)} />}
          </li>
        );
      })}
    </ol>
  );
}

const MAX_STEPS = 500; // of one answer

/** What the engine did. It is asked for while the build goes on, and once after its end. */
function Steps({ path, isEnded }: { path: Path; isEnded: boolean }) {
  const { value, refused } = useLive(
    async (signal) => ({
      ...(await body(
        api.GET("/{owner}/{project}/builds/{build_id}/steps", { params: { path, query: { limit: MAX_STEPS } }, signal }),
      )),
      isLast: isEnded,
    }),
    JSON.stringify(path),
    ({ isLast }) => (isLast ? null : 5), // each answer is read from the whole log
  );
  if (value === undefined || refused) return <Answer value={value} refused={refused} />;
  if (value.count === 0) return <p class="empty">{isEnded ? "The log shows no step." : "The log shows no step yet."}</p>;
  const seconds = value.results.map((step) => secondsOf(step, isEnded));
  const longest = Math.max(...seconds, 0.1);
  return (
    <>
      <p class="muted">Steps, with bars relative to the longest</p>
      <ol aria-label="Steps">
        {value.results.map((step, index) => (
          <li key={step.name}>
            <time dateTime={step.started_at} title={step.started_at}>
              {clock(new Date(step.started_at))}
            </time>
            <span>{outcome(step, seconds[index]!, isEnded)}</span>
            <code>{step.name}</code>
            <span class="lane" aria-hidden="true">
              {!step.is_cached && (
                <span class={step.error ? "span failed" : "span"} style={{ width: `${(seconds[index]! / longest) * 100}%` }} />
              )}
            </span>
            {step.error && <p class="reason failed">{step.error}</p>}
          </li>
        ))}
      </ol>
      {value.count > value.results.length && (
        <p class="muted">
          The first {value.results.length} of {value.count} steps
        </p>
      )}
    </>
  );
}

/** Until now, of a step that goes on. */
function secondsOf(step: BuildStep, isEnded: boolean): number {
  if (step.duration_seconds !== null || step.is_cached || isEnded) return step.duration_seconds ?? 0;
  return Math.max(0, (Date.now() - Date.parse(step.started_at)) / 1000);
}

function outcome(step: BuildStep, seconds: number, isEnded: boolean): string {
  if (step.is_cached) return "cached";
  if (step.error) return `failed after ${duration(seconds)}`;
  if (step.duration_seconds !== null) return duration(seconds);
  return isEnded ? "did not end" : `running, ${duration(seconds)}`;
}

function Dockerfile({ build }: { build: BuildDetail }) {
  if (build.dockerfile === null) {
    return <p class="empty">The Dockerfile is shown once the build has fetched it.</p>;
  }
  return (
    <pre class="code" tabIndex={0} role="region" aria-label="Dockerfile">
      {build.dockerfile.trim()}
    </pre>
  );
}

function Specification({ build, path }: { build: BuildDetail; path: Path }) {
  const text = build.content ?? (build.config ? JSON.stringify(build.config, null, 2) : null);
  if (text === null) return <p class="empty">This build runs elsewhere and has no specification.</p>;
  return (
    <>
      <p>
        <a class="button" href={`${to.project(path.owner, path.project, "new")}?from=${build.id}`}>
          New build from this
        </a>
      </p>
      <pre class="code" tabIndex={0} role="region" aria-label="Specification">
        {readable(text)}
      </pre>
    </>
  );
}

/** JSON with a line for each field; other text as it is. */
export function readable(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
