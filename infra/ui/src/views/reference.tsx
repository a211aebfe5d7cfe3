/** The API reference: the OpenAPI document as a page, each operation with a command that calls it. */
import { useState } from "preact/hooks";
import { API, api, body } from "../api";
import { useLive } from "../live";
import { Answer, Copy } from "../parts";
import { address, place } from "../routes";

interface Schema {
  $ref?: string;
  type?: string | string[];
  anyOf?: Schema[];
  items?: Schema;
  enum?: string[];
  properties?: Record<string, Schema>;
  required?: string[];
  format?: string;
  pattern?: string;
  maxLength?: number;
  maxItems?: number;
  minimum?: number;
  maximum?: number;
  description?: string;
  examples?: unknown[];
}
type Content = Record<string, { schema: Schema }>;
interface Parameter {
  name: string;
  in: string;
  required: boolean;
  schema: Schema;
}
interface Response {
  $ref?: string;
  description: string;
  content?: Content;
}
interface Operation {
  summary: string;
  description: string;
  tags: string[];
  parameters: Parameter[];
  requestBody?: { content: Content };
  responses: Record<string, Response>;
  security?: Record<string, unknown>[];
}
interface Document {
  info: { version: string };
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, Schema>; responses: Record<string, Response> };
}
interface Entry {
  method: string;
  path: string;
  operation: Operation;
}

export function Reference() {
  const { value, refused } = useLive(
    async (signal) => (await body(api.GET("/openapi.json", { signal }))) as unknown as Document,
    "reference",
  );
  const [wanted, setWanted] = useState("");
  const entries = Object.entries(value?.paths ?? {}).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => ({ method, path, operation })),
  );
  const found = entries.filter(({ method, path, operation }) =>
    `${method} ${path} ${operation.summary}`.toLowerCase().includes(wanted.toLowerCase()),
  );
  const tags = [...new Set(found.flatMap(({ operation }) => operation.tags))];
  return (
    <>
      <div class="head">
        <h1>API reference</h1>
        {value && <span class="muted">Slipway {value.info.version}</span>}
        <span class="spring" />
        <input
          type="search"
          data-search
          aria-label="Find operations"
          placeholder="Find operations"
          onInput={(event) => setWanted(event.currentTarget.value)}
        />
      </div>
      <p class="muted">
        Paths are below <code>{API}</code>; <a href={`${API}/openapi.json`}>openapi.json</a> is the whole in OpenAPI 3.1. Each request has
        the header <code>Authorization: token …</code>, unless it says that it needs none.
      </p>
      <Answer value={value} refused={refused} />
      {tags.map((tag) => (
        <section key={tag}>
          <h2>{tag}</h2>
          {found
            .filter(({ operation }) => operation.tags.includes(tag))
            .map((entry) => (
              <Described key={`${entry.method} ${entry.path}`} {...entry} document={value!} />
            ))}
        </section>
      ))}
      {value && !wanted && <Types schemas={value.components.schemas} />}
    </>
  );
}

function Described({ method, path, operation, document }: Entry & { document: Document }) {
  const [isOpen, setOpen] = useState(false);
  return (
    <details class="operation" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <span class={`method ${method}`}>{method.toUpperCase()}</span> <code>{path}</code> <span>{operation.summary}</span>
      </summary>
      {isOpen && (
        <>
          {operation.description && <p>{operation.description}</p>}
          <Copy text={command({ method, path, operation })} what="the command" />
          {operation.parameters.length > 0 && (
            <table>
              <thead>
                <tr>
                  <th scope="col">Parameter</th>
                  <th scope="col">In</th>
                  <th scope="col">Type</th>
                </tr>
              </thead>
              <tbody>
                {operation.parameters.map(({ name, in: where, schema }) => (
                  <tr key={name}>
                    <td>
                      <code>{name}</code>
                    </td>
                    <td>{where}</td>
                    <td>
                      <Type of={schema} /> <Words of={schema} />
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          )}
          {operation.requestBody && (
            <p>
              Body: <Bodies content={operation.requestBody.content} />
            </p>
          )}
          <table>
            <thead>
              <tr>
                <th scope="col">Status</th>
                <th scope="col">Answer</th>
              </tr>
            </thead>
            <tbody>
              {Object.entries(operation.responses).map(([status, response]) => {
                const { description, content } = document.components.responses[nameOf(response.$ref)] ?? response;
                return (
                  <tr key={status}>
                    <td>{status}</td>
                    <td>
                      {description} {content && <Bodies content={content} />}
                    </td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </>
      )}
    </details>
  );
}

function Bodies({ content }: { content: Content }) {
  return (
    <>
      {Object.entries(content).map(([kind, { schema }], index) => (
        <span key={kind}>
          {index > 0 && ", or "}
          <span class="muted">{kind}</span> <Type of={schema} />
        </span>
      ))}
    </>
  );
}

function Types({ schemas }: { schemas: Record<string, Schema> }) {
  const chosen = place.value.query.get("type");
  return (
    <section>
      <h2>Types</h2>
      {Object.entries(schemas).map(([name, schema]) => (
        <details key={`${name} ${name === chosen}`} class="operation" open={name === chosen} ref={name === chosen ? scrollTo : undefined}>
          <summary>
            <code>{name}</code>
          </summary>
          {schema.description && <p>{schema.description}</p>}
          {schema.properties ? (
            <table>
              <thead>
                <tr>
                  <th scope="col">Field</th>
                  <th scope="col">Type</th>
                </tr>
              </thead>
              <tbody>
                {Object.entries(schema.properties).map(([field, type]) => (
                  <tr key={field}>
                    <td>
                      <code>{field}</code>
                      {!schema.required?.includes(field) && <span class="muted"> optional</span>}
                    </td>
                    <td>
                      <Type of={type} /> <Words of={type} />
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          ) : (
            <p>
              <Type of={schema} />
            </p>
          )}
        </details>
      ))}
    </section>
  );
}

const scrollTo = (element: Element | null) => element?.scrollIntoView({ block: "start" });

const nameOf = (reference = ""): string => reference.slice(reference.lastIndexOf("/") + 1);

/** A type in the words of TypeScript. */
function Type({ of }: { of: Schema }) {
  if (of.$ref) return <a href={address(["reference"], { type: nameOf(of.$ref) })}>{nameOf(of.$ref)}</a>;
  if (of.anyOf) {
    return (
      <>
        {of.anyOf.map((each, index) => (
          <span key={index}>
            {index > 0 && " | "}
            <Type of={each} />
          </span>
        ))}
      </>
    );
  }
  if (of.enum) return <code>{of.enum.map((each) => JSON.stringify(each)).join(" | ")}</code>;
  if (of.items) {
    return (
      <>
        <Type of={of.items} />
        []
      </>
    );
  }
  return <code>{[of.type ?? "any"].flat().join(" | ")}</code>;
}

/** What else is said of a type: its limits, what it means, an example. */
function Words({ of }: { of: Schema }) {
  const limits = [
    of.format,
    of.pattern,
    of.minimum !== undefined && `at least ${of.minimum}`,
    of.maximum !== undefined && `at most ${of.maximum}`,
    of.maxLength !== undefined && `at most ${of.maxLength} characters`,
    of.maxItems !== undefined && `at most ${of.maxItems} items`,
    of.description,
    of.examples?.length && `for example ${of.examples.map((each) => (typeof each === "string" ? each : JSON.stringify(each))).join(", ")}`,
  ].filter(Boolean);
  return <span class="muted">{limits.join("; ")}</span>;
}

/** A command of curl that calls the operation, with NAMES in the place of what one fills in. */
function command({ method, path, operation }: Entry): string {
  const kinds = Object.keys(operation.requestBody?.content ?? {});
  const data = kinds.includes("application/json") ? ["--json '{…}'"] : kinds.length ? ["--form repo=@code.tar.gz"] : [];
  const needsToken = !operation.security?.some((each) => Object.keys(each).length === 0);
  return [
    "curl",
    method !== "get" && `--request ${method.toUpperCase()}`,
    needsToken && '--header "Authorization: token $TOKEN"',
    ...data,
    `"${API}${path.replace(/{(\w+)}/g, (_, name: string) => name.toUpperCase())}"`,
  ]
    .filter(Boolean)
    .join(" ");
}
