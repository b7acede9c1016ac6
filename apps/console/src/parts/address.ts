import { useNavigate, useParams, useSearch } from "@tanstack/react-router";

/** The query string of the page, and how to change it: what is undefined goes. */
export function useAddress(): [
  Readonly<Record<string, string | undefined>>,
  (change: Record<string, string | undefined>) => void,
] {
  const search = useSearch({ strict: false }) as Readonly<Record<string, string | undefined>>;
  const navigate = useNavigate();
  const change = (changed: Record<string, string | undefined>) =>
    void navigate({ to: ".", search: ((now: object) => ({ ...now, ...changed })) as never });
  return [search, change];
}

/** The `:id` of the page's path. */
export const useId = (): string => String(useParams({ strict: false })["id" as never] ?? "");
