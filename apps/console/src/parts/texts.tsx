import { Check, Copy } from "lucide-react";
import { useEffect, useState } from "react";
import { Button } from "react-aria-components/Button";
import { bytesText, countText, shortId, shown } from "./format.ts";

/** A name or another text that somebody chose. */
export function Foreign({ text, empty = "no name" }: { text: string | null | undefined; empty?: string }) {
  return text ? <bdi className="foreign">{shown(text)}</bdi> : <span className="second">{empty}</span>;
}

/** The start of an id; whole on hover. */
export function Id({ id }: { id: string | null | undefined }) {
  if (!id) return <span className="second">—</span>;
  return (
    <code className="id" title={id}>
      {shown(shortId(id))}
    </code>
  );
}

export function Bytes({ bytes }: { bytes: number | null | undefined }) {
  const exact = bytes === null || bytes === undefined ? undefined : `${countText(bytes)} bytes`;
  return <span title={exact}>{bytesText(bytes)}</span>;
}

/** Copies a text whole. */
export function CopyButton({ text, label }: { text: string; label: string }) {
  const [isCopied, setCopied] = useState(false);
  useEffect(() => {
    if (!isCopied) return;
    const timer = setTimeout(() => setCopied(false), 2_000);
    return () => clearTimeout(timer);
  }, [isCopied]);
  return (
    <Button
      className="icon-button"
      aria-label={isCopied ? "Copied" : label}
      onPress={() =>
        void navigator.clipboard.writeText(text).then(
          () => setCopied(true),
          () => {},
        )
      }
    >
      {isCopied ? <Check size={16} aria-hidden="true" /> : <Copy size={16} aria-hidden="true" />}
    </Button>
  );
}

/** A command to copy. */
export function Command({ text }: { text: string }) {
  return (
    <span className="command">
      <code>{shown(text)}</code>
      <CopyButton text={text} label="Copy the command" />
    </span>
  );
}
