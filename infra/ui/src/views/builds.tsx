/** Lists of builds: a project's, one's bookmarks, one's archive. */
import { type Build, api, body } from "../api";
import { useLive } from "../live";
import { Ago, Answer, Field, Pages, Sentences, Status, duration, fieldsOf, isDone, offsetOf, useDeed } from "../parts";
import { address, go, place, to } from "../routes";

const SIZE = 50;
const ORDERS = {
  "": "changed last",
  "-created_at": "created last",
  created_at: "created first",
  "-started_at": "started last",
  "-finished_at": "finished last",
  finished_at: "finished first",
};

export function ProjectBuilds({ owner, project }: { owner: string; project: string }) {
  const offset = offsetOf();
  const query = place.value.query.get("query") ?? "";
  const sort = place.value.query.get("sort") ?? "";
  const { value, refused } = useLive(
    (signal) =>
      body(
        api.GET("/{owner}/{project}/builds", {
          params: { path: { owner, project }, query: { limit: SIZE, offset, ...(query && { query }), ...(sort && { sort }) } },
          signal,
        }),
      ),
    JSON.stringify([owner, project, offset, query, sort]),
    (page) => (page.results.some((build) => !isDone(build.last_status)) ? 2 : 5),
  );
  const ask = (more: Record<string, string>) => go(address(place.value.path, { query, sort, ...more }));
  return (
    <>
      <div class="bar">
        <form
          role="search"
          class="grow"
          onSubmit={(event) => {
            event.preventDefault();
            ask({ query: fieldsOf(event.currentTarget)["query"]! });
          }}
        >
          <input
            key={query}
            name="query"
            type="search"
            data-search
            class="grow"
            defaultValue={query}
            aria-label="Find builds"
            aria-invalid={refused && query ? true : undefined}
            aria-describedby="query-help"
            placeholder="status:failed, created_at:>=2026-01-01, name:train%"
          />
          <button>Find</button>
        </form>
        <label>
          <span class="muted">Order</span>{" "}
          <select value={sort} onChange={(event) => ask({ sort: event.currentTarget.value })}>
            {Object.entries(ORDERS).map(([value, label]) => (
              <option key={value} value={value}>
                {label}
              </option>
            ))}
          </select>
        </label>
      </div>
      <p class="hint" id="query-help">
        Fields: status, name, tags, user, commit, backend, created_at, started_at, finished_at … <code>,</code> and, <code>|</code>{" "}
        or, <code>~</code> not, <code>%</code> anything.
      </p>
      <Answer value={value} refused={refused} />
      {value?.count === 0 && (
        <div class="empty card">
          {query ? (
            <>
              <h2>No build matches</h2>
              <p>
                Of the builds that changed last, none is what you asked for. <a href={to.project(owner, project)}>Show all builds</a>
              </p>
            </>
          ) : (
            <>
              <h2>No build yet</h2>
              <p>
                Begin with a base image and a command: <a href={to.project(owner, project, "new")}>new build</a>. To put your own code
                into the image, <a href={to.project(owner, project, "code")}>upload it</a> first.
              </p>
            </>
          )}
        </div>
      )}
      {value && value.count > 0 && (
        <>
          <BuildTable builds={value.results} />
          <Pages count={value.count} isMinimum={value.count_is_minimum} offset={offset} shown={value.results.length} size={SIZE} />
        </>
      )}
    </>
  );
}

function BuildTable({ builds, isAnywhere, restore }: { builds: Build[]; isAnywhere?: boolean; restore?: (build: Build) => void }) {
  return (
    <table class="builds">
      <thead>
        <tr>
          <th scope="col">Status</th>
          <th scope="col">Build</th>
          <th scope="col" class="wide">
            By
          </th>
          <th scope="col" class={restore && "wide"}>
            Took
          </th>
          <th scope="col">Created</th>
          {restore && <th scope="col">Restore</th>}
        </tr>
      </thead>
      <tbody>
        {builds.map((build) => {
          const [owner = "", project = ""] = build.project.split(".");
          return (
            <tr key={build.uuid}>
              <td>
                <Status of={build.last_status} />
              </td>
              <td class="what">
                <Link build={build} isLive={!restore}>
                  {isAnywhere && `${owner}/${project} `}#{build.id} {build.name}
                </Link>
                {build.bookmarked && <span title="bookmarked"> ★</span>}{" "}
                {build.tags?.map((tag) => (
                  <span key={tag} class="tag">
                    {tag}
                  </span>
                ))}
                {build.description && <div class="muted clip">{build.description}</div>}
                {build.waiting_reason && <div class="muted clip">{build.waiting_reason}</div>}
              </td>
              <td class="wide">{build.user}</td>
              <td class={restore ? "number wide" : "number"}>{build.started_at && <Took build={build} />}</td>
              <td>
                <Ago time={build.created_at} />
              </td>
              {restore && (
                <td>
                  <button type="button" aria-label={`Restore build ${build.id} of ${build.project}`} onClick={() => restore(build)}>
                    Restore
                  </button>
                </td>
              )}
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

function Link({ build, isLive, children }: { build: Build; isLive: boolean; children: preact.ComponentChildren }) {
  const [owner = "", project = ""] = build.project.split(".");
  if (!isLive) return <span>{children}</span>;
  return (
    <a class="row-link" href={to.build(owner, project, build.id)}>
      {children}
    </a>
  );
}

function Took({ build }: { build: Build }) {
  const end = build.finished_at ? Date.parse(build.finished_at) : Date.now();
  return <>{duration(Math.max(0, (end - Date.parse(build.started_at!)) / 1000))}</>;
}

export function Bookmarks({ user }: { user: string }) {
  const offset = offsetOf();
  const { value, refused } = useLive(
    (signal) => body(api.GET("/bookmarks/{user}/builds", { params: { path: { user }, query: { limit: SIZE, offset } }, signal })),
    `${user} ${offset}`,
    () => 10,
  );
  return (
    <>
      <h1>Bookmarked builds</h1>
      <Answer value={value} refused={refused} />
      {value?.count === 0 && (
        <div class="empty card">
          <h2>No bookmark yet</h2>
          <p>The button “Bookmark” of a build keeps it here.</p>
        </div>
      )}
      {value && value.count > 0 && (
        <>
          <BuildTable builds={value.results.map((each) => each.content_object)} isAnywhere />
          <Pages count={value.count} offset={offset} shown={value.results.length} size={SIZE} />
        </>
      )}
    </>
  );
}

export function Archive({ user }: { user: string }) {
  const offset = offsetOf();
  const { run, error } = useDeed();
  const { value, refused, refresh } = useLive(
    (signal) => body(api.GET("/archives/{user}/builds", { params: { path: { user }, query: { limit: SIZE, offset } }, signal })),
    `${user} ${offset}`,
    () => 10,
  );
  const restore = (build: Build) => {
    const [owner = "", project = ""] = build.project.split(".");
    void run(() =>
      api.POST("/{owner}/{project}/builds/{build_id}/restore", { params: { path: { owner, project, build_id: build.id } } }),
    ).then(refresh);
  };
  return (
    <>
      <h1>Archived builds</h1>
      <Answer value={value} refused={refused} />
      <Sentences of={error} />
      {value?.count === 0 && (
        <div class="empty card">
          <h2>Nothing is archived</h2>
          <p>A build that you archive leaves its project's list, and can be restored here until it is cleaned up.</p>
        </div>
      )}
      {value && value.count > 0 && (
        <>
          <BuildTable builds={value.results} isAnywhere restore={restore} />
          <Pages count={value.count} offset={offset} shown={value.results.length} size={SIZE} />
        </>
      )}
      <RestoreProject user={user} />
    </>
  );
}

/** There is no list of archived projects: one says which. */
function RestoreProject({ user }: { user: string }) {
  const { run, isBusy, error } = useDeed();
  return (
    <form
      class="card"
      onSubmit={(event) => {
        event.preventDefault();
        const named = fieldsOf(event.currentTarget)["project"]!.trim().split("/");
        const [project = "", owner = user] = named.reverse();
        void run(() => api.POST("/{owner}/{project}/restore", { params: { path: { owner, project } } })).then(
          (isDone) => isDone && go(to.project(owner, project)),
        );
      }}
    >
      <h2>Restore a project</h2>
      <Field label="Archived project" hint="NAME or OWNER/NAME">
        <input name="project" required />
      </Field>
      <Sentences of={error} />
      <p class="buttons">
        <button disabled={isBusy}>Restore</button>
      </p>
    </form>
  );
}
