import { NoAnswer, Refused, api, body } from "../api";
import { Field, Sentences, fieldsOf, useDeed } from "../parts";
import { farewell, signIn } from "../session";

export function Login() {
  const { run, isBusy, error } = useDeed();
  const why = error ?? (farewell.value ? new Refused(401, [farewell.value]) : undefined);
  return (
    <section class="narrow">
      <h1>Sign in to Slipway</h1>
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          const token = fieldsOf(event.currentTarget)["token"]!.trim();
          const headers = { Authorization: `token ${token}` };
          void run(async () => signIn(token, await body(api.GET("/users", { headers }))));
        }}
      >
        <Field label="Your token" hint="It stays in this tab, until you close it.">
          <input name="token" type="password" autocomplete="off" spellcheck={false} required autofocus />
        </Field>
        <Sentences of={why} />
        <p class="buttons">
          <button class="primary" disabled={isBusy}>
            Sign in
          </button>
        </p>
        {!(why instanceof NoAnswer) && (
          <p class="hint">
            <code>make up</code> and <code>make bootstrap</code> print the first token. With one you can make more on the page
            “Tokens”, or with <code>POST users/USER/tokens</code>.
          </p>
        )}
      </form>
    </section>
  );
}
