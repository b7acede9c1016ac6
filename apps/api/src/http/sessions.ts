import type { Config, Principal } from "@tephra/control";
import type { Authenticate } from "./auth.ts";
import { type Credentials, openKeystone } from "./keystone.ts";
import { badRequest, Refusal, UnauthenticatedError } from "./refusals.ts";
import { ofPeople, openFailureLimit } from "./throttle.ts";

/** What a browser shows: a token, a user of Keystone, or another project for the token that it has. */
export type Shown = { token: string } | Credentials | { other_project_id: string };

/** How browsers come to a token. None is kept here. */
export interface Sessions {
  /**
   * The token for what was shown, and its owner. `current`: that of the request's cookie. Failures are counted by `address` and user.
   *
   * @throws UnauthenticatedError; Refusal 400 where `auth.mode` does not know this way, 401 for a passcode, 429 after too many failures
   */
  signIn(
    shown: Shown,
    from: { address: string; current: string | undefined; requestId: string },
  ): Promise<{ token: string; principal: Principal }>;
  /** The projects that the owner of a token may change to; null: the mode knows of none. */
  projectsOf(token: string | undefined): Promise<{ id: string; name: string }[] | null>;
  /** Makes a token of a Keystone invalid. */
  revoke(token: string): Promise<void>;
}

export function openSessions(auth: Config["auth"], authenticate: Authenticate): Sessions {
  const keystone = auth.mode === "keystone" && auth.keystone !== null ? openKeystone(auth.keystone) : null;
  const failures = openFailureLimit(ofPeople);

  const tokenOf = async (shown: Shown, current: string | undefined): Promise<string> => {
    if (auth.mode === "none")
      throw badRequest("auth.mode is none: nobody signs in, everybody on this machine is an admin.");
    if (keystone === null) {
      if ("token" in shown) return shown.token;
      throw badRequest("auth.mode is static: one signs in with a token.");
    }
    if ("user" in shown) return keystone.signIn(shown);
    if ("token" in shown) return shown.token;
    if (current === undefined) throw new UnauthenticatedError();
    return keystone.rescope(current, shown.other_project_id);
  };

  return {
    signIn: async (shown, { address, current, requestId }) => {
      const about = `${address} ${"user" in shown ? `${shown.user_domain} ${shown.user}` : ""}`;
      const retryAfter = await failures.left(about);
      if (retryAfter !== null) throw new Refusal(429, "Too many failed sign-ins. Try again later.", { retryAfter });
      try {
        const token = await tokenOf(shown, current);
        return { token, principal: await authenticate(token, requestId) };
      } catch (error) {
        if (error instanceof UnauthenticatedError) await failures.count(about);
        throw error;
      }
    },
    projectsOf: async (token) => (keystone === null || token === undefined ? null : keystone.projectsOf(token)),
    revoke: async (token) => keystone?.revoke(token),
  };
}
