import { Link } from "@tanstack/react-router";
import { X } from "lucide-react";
import { useEffect, useState, useSyncExternalStore } from "react";
import { Button } from "react-aria-components/Button";
import { shown } from "./format.ts";
import { ToneIcon } from "./status.tsx";

interface Toast {
  id: number;
  text: string;
  isFault: boolean;
  /** The operation that was begun. */
  operation: string | null;
}

let toasts: readonly Toast[] = [];
let counter = 0;
const listeners = new Set<() => void>();

function put(next: readonly Toast[]): void {
  toasts = next;
  for (const tell of listeners) tell();
}

/** Tells how an action has ended. */
export function tell(text: string, { isFault = false, operation = null as string | null } = {}): void {
  counter += 1;
  put([...toasts.slice(-4), { id: counter, text, isFault, operation }]);
}

const shownMs = 8_000;

/** Failures stay until they are closed, the others while they are pointed at. */
function OneToast({ toast }: { toast: Toast }) {
  const [isHeld, setHeld] = useState(false);
  const close = () => put(toasts.filter(({ id }) => id !== toast.id));
  // biome-ignore lint/correctness/useExhaustiveDependencies: closing looks at what is there then
  useEffect(() => {
    if (toast.isFault || isHeld) return;
    const timer = setTimeout(close, shownMs);
    return () => clearTimeout(timer);
  }, [toast, isHeld]);
  return (
    <li
      className={`toast tone-${toast.isFault ? "bad" : "ok"}`}
      onPointerEnter={() => setHeld(true)}
      onPointerLeave={() => setHeld(false)}
    >
      <ToneIcon tone={toast.isFault ? "bad" : "ok"} />
      <span>
        {shown(toast.text)}{" "}
        {toast.operation && (
          <Link to="/operations/$id" params={{ id: toast.operation }}>
            Show the operation
          </Link>
        )}
      </span>
      <Button className="icon-button" aria-label="Close" onPress={close}>
        <X size={16} aria-hidden="true" />
      </Button>
    </li>
  );
}

export function Toasts() {
  const current = useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => toasts,
  );
  return (
    <ul className="toasts" aria-live="polite" aria-label="What has happened">
      {current.map((toast) => (
        <OneToast key={toast.id} toast={toast} />
      ))}
    </ul>
  );
}
