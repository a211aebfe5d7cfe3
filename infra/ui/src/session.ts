/** Who uses the page. The token lives as long as the tab: in `sessionStorage`, and never in a cookie. */
import { computed, signal } from "@preact/signals";

const KEY = "slipway-token";

export interface User {
  username: string;
  is_superuser: boolean;
}

export const token = signal(sessionStorage.getItem(KEY));
export const user = signal<User | undefined>(undefined);
/** Why the last session ended, if it did not end by a click. */
export const farewell = signal("");
export const isSignedIn = computed(() => token.value !== null);

export function signIn(given: string, who: User): void {
  sessionStorage.setItem(KEY, given);
  user.value = who;
  farewell.value = "";
  token.value = given;
}

export function signOut(why = ""): void {
  sessionStorage.removeItem(KEY);
  user.value = undefined;
  farewell.value = why;
  token.value = null;
}
