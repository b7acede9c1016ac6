import type { Session } from "@tephra/wire";
import { createContext, useContext } from "react";

const Current = createContext<Session | null>(null);
export const SessionProvider = Current.Provider;

/** Who is signed in; only within the frame. */
export function useSession(): Session {
  const session = useContext(Current);
  if (session === null) throw new Error("outside of the frame");
  return session;
}

/** Whether the signed-in caller meets a rule of the API. */
export const useMay = (): ((rule: string) => boolean) => {
  const { may } = useSession();
  return (rule) => may.includes(rule);
};
