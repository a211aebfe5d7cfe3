import { useState } from "preact/hooks";
import { api, body } from "../api";
import { useLive } from "../live";
import { Ago, Answer, Copy, Field, Question, Sentences, fieldsOf, useDeed } from "../parts";

export function Tokens({ user }: { user: string }) {
  const path = { user };
  const { run, isBusy, error } = useDeed();
  const [made, setMade] = useState("");
  const [asked, setAsked] = useState("");
  const { value, refused, refresh } = useLive(
    (signal) => body(api.GET("/users/{user}/tokens", { params: { path }, signal })),
    user,
  );
  return (
    <>
      <h1>Your tokens</h1>
      <p class="muted">Everyone who has a token of yours can act as you. Make one for each program, and revoke it when you do not use that program any more.</p>
      <Answer value={value} refused={refused} />
      {value && (
        <table>
          <thead>
            <tr>
              <th scope="col">Name</th>
              <th scope="col">Made</th>
              <th scope="col">Good until</th>
              <th scope="col">Last used</th>
              <th scope="col">Revoke</th>
            </tr>
          </thead>
          <tbody>
            {value.results.map((token) => (
              <tr key={token.id}>
                <td>{token.name || <span class="muted">without a name</span>}</td>
                <td>
                  <Ago time={token.created_at} />
                </td>
                <td>{token.expires_at.slice(0, 10)}</td>
                <td>{token.last_used ?? "never"}</td>
                <td>
                  <button type="button" aria-label={`Revoke token ${token.name || token.id}`} onClick={() => setAsked(token.id)}>
                    Revoke
                  </button>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          const form = event.currentTarget;
          const name = fieldsOf(form)["name"] || null;
          void run(async () => {
            setMade((await body(api.POST("/users/{user}/tokens", { params: { path }, body: { name } }))).token);
            form.reset();
            refresh();
          });
        }}
      >
        <h2>Make a token</h2>
        <Field label="Name" hint="What it is for">
          <input name="name" placeholder="ci" />
        </Field>
        <Sentences of={error} />
        {made && (
          <p role="status">
            It is shown this once: <Copy text={made} what="the token" />
          </p>
        )}
        <p class="buttons">
          <button class="primary" disabled={isBusy}>
            Make it
          </button>
        </p>
      </form>
      {asked && (
        <Question
          title="Revoke this token?"
          text="What uses it is refused from then on, half a minute later at the latest. If it is the one that you signed in with, you are signed out."
          yes="Revoke it"
          onClose={() => setAsked("")}
          onYes={() =>
            api.DELETE("/users/{user}/tokens/{token_id}", { params: { path: { user, token_id: asked } } }).then(refresh)
          }
        />
      )}
    </>
  );
}
