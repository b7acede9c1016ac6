import { useId } from "react";

/** A part of a page, with its heading. */
export function Panel({
  title,
  facts,
  children,
}: {
  title: React.ReactNode;
  facts?: React.ReactNode;
  children: React.ReactNode;
}) {
  const id = useId();
  return (
    <section className="panel" aria-labelledby={id}>
      <header className="panel-head">
        <h2 id={id}>{title}</h2>
        {facts && <span className="second">{facts}</span>}
      </header>
      {children}
    </section>
  );
}

/** The head of a page: its title, facts in one line, actions. */
export function PageHead({
  title,
  facts,
  actions,
}: {
  title: React.ReactNode;
  facts?: React.ReactNode;
  actions?: React.ReactNode;
}) {
  return (
    <header className="page-head">
      <div>
        <h1>{title}</h1>
        {facts && <p className="page-facts">{facts}</p>}
      </div>
      {actions && <div className="page-actions">{actions}</div>}
    </header>
  );
}

/** Names and values, one below the other. */
export function Facts({ of }: { of: readonly (readonly [name: string, value: React.ReactNode])[] }) {
  return (
    <dl className="facts">
      {of.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value ?? "—"}</dd>
        </div>
      ))}
    </dl>
  );
}

/** How far something is: a bar with its number. */
export function Meter({ value, label, tone = "work" }: { value: number; label: string; tone?: string }) {
  return (
    <span className={`meter tone-${tone}`}>
      <progress max={100} value={value} aria-label={label} />
      <span className="meter-text">{value} %</span>
    </span>
  );
}
