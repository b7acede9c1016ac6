import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Button } from "react-aria-components/Button";
import { Dialog, DialogTrigger, Heading } from "react-aria-components/Dialog";
import { Modal, ModalOverlay } from "react-aria-components/Modal";
import { Input, Label, TextField } from "react-aria-components/TextField";
import { useLiveness } from "../data/liveness.ts";
import { shown } from "./format.ts";
import { Command } from "./texts.tsx";
import { tell } from "./toasts.tsx";

interface ActionProps {
  label: string;
  /** What will become of it, in words; without it, nobody is asked. */
  effects?: React.ReactNode;
  /** Has to be typed. */
  name?: string;
  /** The same on the command line. */
  command?: string;
  run: () => Promise<unknown>;
  done: string;
  /** Whether what is asked for in `effects` is there. */
  isFilled?: boolean;
  /** Why it is not possible now. */
  why?: string | null;
  isPrimary?: boolean;
  isDanger?: boolean;
}

/** The operation that an answer has begun. */
const operationOf = (answer: unknown): string | null =>
  (answer as { operation?: { id?: string } } | undefined)?.operation?.id ?? null;

/** A button that does something, after a confirmation of the weight that it needs. */
export function Action({ label, effects, name, command, run, done, isFilled, why, isPrimary, isDanger }: ActionProps) {
  const queries = useQueryClient();
  const [typed, setTyped] = useState("");
  const act = useMutation({
    mutationFn: run,
    onSuccess: (answer) => tell(done, { operation: operationOf(answer) }),
    onError: (error) => tell(`${label}: ${error.message}`, { isFault: true }),
    onSettled: () => queries.invalidateQueries(),
  });
  const looks = `button${isPrimary ? " is-primary" : ""}${isDanger ? " is-danger" : ""}`;
  const isAway = useLiveness().kind === "offline";
  const whyNot = isAway ? "the service does not answer" : why;
  const reason = whyNot ? <span className="why">{shown(whyNot)}</span> : null;
  if (effects === undefined) {
    return (
      <span className="action">
        <Button className={looks} isDisabled={act.isPending || Boolean(whyNot)} onPress={() => act.mutate()}>
          {label}
        </Button>
        {reason}
      </span>
    );
  }
  const isTyped = name === undefined || typed === name;
  return (
    <DialogTrigger onOpenChange={() => setTyped("")}>
      <span className="action">
        <Button className={looks} isDisabled={act.isPending || Boolean(whyNot)}>
          {label}…
        </Button>
        {reason}
      </span>
      <ModalOverlay className="overlay" isDismissable>
        <Modal className="modal">
          <Dialog className="dialog">
            {({ close }) => (
              <>
                <Heading slot="title">{label}?</Heading>
                <div className="dialog-text">{effects}</div>
                {name !== undefined && (
                  <TextField className="field" value={typed} onChange={setTyped} autoFocus>
                    <Label>
                      Type <bdi>{shown(name)}</bdi>
                    </Label>
                    <Input />
                  </TextField>
                )}
                {command && <Command text={command} />}
                <div className="dialog-buttons">
                  <Button className="button is-quiet" onPress={close}>
                    Leave it
                  </Button>
                  <Button
                    className={`button ${isDanger ? "is-danger" : "is-primary"}`}
                    isDisabled={!isTyped || isFilled === false}
                    onPress={() => {
                      act.mutate();
                      close();
                    }}
                  >
                    {label}
                  </Button>
                </div>
              </>
            )}
          </Dialog>
        </Modal>
      </ModalOverlay>
    </DialogTrigger>
  );
}

/** For `effects` of what is done with a reason. */
export function ReasonField({ value, onChange }: { value: string; onChange: (reason: string) => void }) {
  return (
    <TextField className="field" value={value} onChange={onChange}>
      <Label>Reason</Label>
      <Input maxLength={255} />
    </TextField>
  );
}
