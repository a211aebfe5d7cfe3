// Uses the types that openapi-typescript made: `node use.js URL TOKEN`. Prints as JSON what the answers say.
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

const [, , baseUrl, token] = process.argv;
const client = createClient<paths>({ baseUrl, headers: { Authorization: `token ${token}` } });
const path = { owner: "root", project: "quick-start" };

const content = '{"version": 1, "kind": "build", "image": "python:3.12-slim"}';
const { data: created, error: none } = await client.POST("/{owner}/{project}/builds", {
  params: { path, header: { "Idempotency-Key": "typescript" } },
  body: { content, is_managed: false, config: { version: 1, environment: { resources: {} } } },
});
if (!created) throw new Error(JSON.stringify(none));
const build = { ...path, build_id: created.id };
await client.POST("/{owner}/{project}/builds/{build_id}/statuses", {
  params: { path: build },
  body: { status: "running" },
});
await client.POST("/{owner}/{project}/builds/{build_id}/logs", { params: { path: build }, body: "a line" });
const { data: got } = await client.GET("/{owner}/{project}/builds/{build_id}", { params: { path: build } });
const { data: listed } = await client.GET("/{owner}/{project}/builds", {
  params: { path, query: { limit: 5, query: "status:running" } },
});
const { data: log } = await client.GET("/{owner}/{project}/builds/{build_id}/logs", {
  params: { path: build },
  parseAs: "text",
});
const { error } = await client.POST("/{owner}/{project}/builds", { params: { path }, body: { name: "no spaces" } });
const sentence: string | undefined =
  error && "name" in error && Array.isArray(error.name) ? error.name[0] : undefined;

// What must not compile.
// @ts-expect-error an id is a number
void (() => client.GET("/{owner}/{project}/builds/{build_id}", { params: { path: { ...path, build_id: "1" } } }));
// @ts-expect-error there is no such status
const wrong: typeof created.last_status = "finished";
void wrong;

console.log(
  JSON.stringify({
    managed: created.is_managed,
    status: got?.last_status,
    listed: listed?.results.map((each) => each.id === created.id),
    log: log?.trim().split(" -- ")[1],
    sentence,
  }),
);
