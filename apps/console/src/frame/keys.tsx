import { useNavigate } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import { Button } from "react-aria-components/Button";
import { Dialog, Heading } from "react-aria-components/Dialog";
import { Modal, ModalOverlay } from "react-aria-components/Modal";
import { togglePause } from "../data/live.ts";
import { client } from "../data/queries.ts";
import { getPreferences, setPreferences } from "../parts/preferences.ts";
import { places } from "./rail.tsx";

const pages = places.flat().filter(({ key }) => key !== undefined);

const list: readonly (readonly [keys: string, does: string])[] = [
  ["/ or Ctrl-K", "search"],
  ["?", "these keys"],
  ...pages.map(({ key, name }) => [`g ${key}`, name] as const),
  ["j k ↑ ↓", "rows of a table"],
  ["Enter", "opens a row"],
  ["x Shift-x", "chooses a row, or all up to it"],
  [".", "what can be done with a row"],
  ["c", "copies the id of a row"],
  ["[ ]", "first and next page of a list"],
  ["f", "filters"],
  ["r", "loads anew"],
  ["p", "pauses what moves, and lets it go on"],
  ["t", "times in UTC or here"],
  ["Esc", "closes"],
];

const isTyping = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement &&
  (target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName));

export const searchId = "search";

/** The keys of the whole console, and the dialog that lists them. */
export function Keys() {
  const [isOpen, setOpen] = useState(false);
  const isGoing = useRef(false);
  const navigate = useNavigate();
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const toSearch = () => {
        event.preventDefault();
        document.getElementById(searchId)?.focus();
      };
      if (event.key === "k" && (event.ctrlKey || event.metaKey)) return toSearch();
      if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || !getPreferences().letters) return;
      if (document.querySelector("[role=dialog]")) return;
      const wasGoing = isGoing.current;
      isGoing.current = event.key === "g" && !wasGoing;
      const page = wasGoing ? pages.find(({ key }) => key === event.key) : undefined;
      if (page) {
        event.preventDefault();
        void navigate({ to: page.to });
      } else if (event.key === "/") toSearch();
      else if (event.key === "[" || event.key === "]") {
        document.querySelector<HTMLElement>(`[data-key="${event.key}"]:not([disabled])`)?.click();
      } else if (event.key === "f") {
        event.preventDefault();
        const field = document.querySelector<HTMLElement>("main .filters input");
        (field ?? document.querySelector<HTMLElement>("main .chips button"))?.focus();
      } else if (event.key === "?") setOpen(true);
      else if (event.key === "p") togglePause();
      else if (event.key === "r") void client.invalidateQueries();
      else if (event.key === "t") setPreferences({ zone: getPreferences().zone === "utc" ? "local" : "utc" });
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, [navigate]);
  return (
    <ModalOverlay className="overlay" isDismissable isOpen={isOpen} onOpenChange={setOpen}>
      <Modal className="modal">
        <Dialog className="dialog">
          <Heading slot="title">Keys</Heading>
          <dl className="keys">
            {list.map(([keys, does]) => (
              <div key={keys}>
                <dt>
                  <kbd>{keys}</kbd>
                </dt>
                <dd>{does}</dd>
              </div>
            ))}
          </dl>
          <p className="second">Single letters can be turned off in About.</p>
          <div className="dialog-buttons">
            <Button className="button is-primary" onPress={() => setOpen(false)}>
              Close
            </Button>
          </div>
        </Dialog>
      </Modal>
    </ModalOverlay>
  );
}
