/** The page: who is signed in, where one is, and the view that belongs there. */
import "./style.css";
import { type ComponentType, render } from "preact";
import { useEffect } from "preact/hooks";
import { api, body, outage } from "./api";
import { Keyboard } from "./keyboard";
import { useLive } from "./live";
import { clock } from "./parts";
import { address, place, to } from "./routes";
import { isSignedIn, signOut, user } from "./session";
import { BuildPage } from "./views/build";
import { Archive, Bookmarks, ProjectBuilds } from "./views/builds";
import { Code } from "./views/code";
import { Login } from "./views/login";
import { NewBuild } from "./views/new_build";
import { ProjectHead, Projects } from "./views/projects";
import { Hooks } from "./views/hooks";
import { Secrets } from "./views/secrets";
import { ProjectSettings } from "./views/settings";
import { Tokens } from "./views/tokens";

const MENU = { projects: "Projects", bookmarks: "Bookmarks", archive: "Archive", tokens: "Tokens" };

function Page() {
  const [first = "projects"] = place.value.path;
  useEffect(() => {
    document.title = ["Slipway", ...place.value.path.slice(1)].reverse().join(" · ");
  });
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), document.querySelector("main")!.focus())}>
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href={to.projects()}>
          Slipway
        </a>
        <nav aria-label="Slipway">
          {Object.entries(MENU).map(([name, label]) => (
            <a key={name} href={address([name])} aria-current={name === first ? "page" : undefined}>
              {label}
            </a>
          ))}
          <a href="api">API</a>
        </nav>
        <span class="spring" />
        {user.value && (
          <>
            <span class="muted">{user.value.username}</span>
            <button type="button" onClick={() => signOut()}>
              Sign out
            </button>
          </>
        )}
      </header>
      <div role="status" class="outage">
        {outage.value && isSignedIn.value && (
          <p>
            {outage.value.sentence} What you see is from {clock(outage.value.since)}; builds go on without this page. Trying again …
          </p>
        )}
      </div>
      <main id="main" tabIndex={-1}>{isSignedIn.value ? <Member /> : <Login />}</main>
      <footer>
        <a href="licences.txt">Licences</a>
        <span class="wide">
          Keys: press <kbd>?</kbd>
        </span>
      </footer>
      <Keyboard />
    </>
  );
}

/** What is for users alone. Who it is, the token says. */
function Member() {
  const { value } = useLive(async (signal) => user.peek() ?? (user.value = await body(api.GET("/users", { signal }))), "me");
  if (!value) return <p class="empty">Asking Slipway who you are …</p>;
  return <View me={value.username} />;
}

function View({ me }: { me: string }) {
  const [first = "projects", owner, project, view = "builds", id] = place.value.path;
  if (first === "tokens") return <Tokens user={me} />;
  if (first === "bookmarks") return <Bookmarks user={me} />;
  if (first === "archive") return <Archive user={me} />;
  if (first !== "projects") return <Nowhere />;
  if (owner === undefined || project === undefined) return <Projects owner={owner ?? me} />;
  const at = { owner, project };
  if (view === "builds" && id !== undefined) return <BuildPage {...at} id={Number(id)} />;
  const views: Record<string, ComponentType<typeof at>> = {
    builds: ProjectBuilds,
    new: NewBuild,
    code: Code,
    secrets: Secrets,
    hooks: Hooks,
    settings: ProjectSettings,
  };
  const Chosen = views[view] ?? Nowhere;
  return (
    <>
      <ProjectHead {...at} />
      <Chosen {...at} />
    </>
  );
}

function Nowhere() {
  return (
    <>
      <h1>There is nothing here</h1>
      <p>
        <a href={to.projects()}>Your projects</a>
      </p>
    </>
  );
}

render(<Page />, document.getElementById("page")!);
