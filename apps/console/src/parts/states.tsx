import type { UseQueryResult } from "@tanstack/react-query";
import { RefreshCw } from "lucide-react";
import { createContext, useEffect, useState } from "react";
import { Button } from "react-aria-components/Button";
import { Fault } from "../data/api.ts";
import { durationText, shown } from "./format.ts";
import { CopyButton } from "./texts.tsx";
import { useNow } from "./time.tsx";

/** As tall as what will come; nothing at all in the first 200 ms. */
export function Skeleton({ lines = 4 }: { lines?: number }) {
  const [isSlow, setSlow] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setSlow(true), 200);
    return () => clearTimeout(timer);
  }, []);
  return (
    <div className={`skeleton${isSlow ? " is-slow" : ""}`} aria-busy="true">
      <span className="away">Loading…</span>
      {Array.from({ length: lines }, (_, at) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: lines without any content
        <div key={at} className="skeleton-line" />
      ))}
    </div>
  );
}

const unknownText = "Not here, or not yours.";

/** What the service has refused, in its words, and what can be done. */
export function FaultNote({ error, onRetry }: { error: unknown; onRetry?: () => void }) {
  const fault = error instanceof Fault ? error : new Fault("The console has failed to show this.", { status: -1 });
  const title =
    fault.status === 404 ? unknownText : fault.status === 403 ? "You may not see this." : "This could not be loaded.";
  return (
    <div className="fault" role="alert">
      <strong>{title}</strong>
      <p>{shown(fault.message)}</p>
      {fault.requestId && (
        <p className="second">
          Request <code>{fault.requestId}</code>{" "}
          <CopyButton text={fault.requestId} label="Copy the id of the request" />
        </p>
      )}
      {onRetry && fault.status !== 403 && (
        <Button className="button is-quiet" onPress={onRetry}>
          <RefreshCw size={16} aria-hidden="true" /> Retry
        </Button>
      )}
    </div>
  );
}

/** Data that could not be asked for again, though it was there. */
function Stale({ since }: { since: number }) {
  const now = useNow();
  return <p className="stale">{durationText((now - since) / 1_000)} old: the service does not answer.</p>;
}

/** Whether what is shown is still the answer to the question before: to another filter, or of another page. */
export const OfBefore = createContext(false);

/** What a query has: loading, a fault, or its data, which stay below a later fault. */
export function Loaded<T>({
  query,
  lines,
  children,
}: {
  query: UseQueryResult<T>;
  lines?: number;
  children: (data: T) => React.ReactNode;
}) {
  const { data, error, refetch, dataUpdatedAt, isPlaceholderData } = query;
  if (data === undefined && error) return <FaultNote error={error} onRetry={() => void refetch()} />;
  if (data === undefined) return <Skeleton {...(lines !== undefined && { lines })} />;
  return (
    <>
      {error && <Stale since={dataUpdatedAt} />}
      <OfBefore value={isPlaceholderData}>
        <div className={error ? "is-stale" : undefined}>{children(data)}</div>
      </OfBefore>
    </>
  );
}
