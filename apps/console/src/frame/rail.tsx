import { Link } from "@tanstack/react-router";
import { Activity, CalendarClock, HardDrive, Info, ListChecks, type LucideIcon } from "lucide-react";

export interface Place {
  to: string;
  name: string;
  Icon: LucideIcon;
  /** Behind `g`. */
  key?: string;
  /** Who may not is not shown it. */
  rule?: string;
}

/** The pages, in the order of the rail; a list a group. */
export const places: readonly (readonly Place[])[] = [
  [
    { to: "/volumes", name: "Volumes", Icon: HardDrive, key: "v", rule: "ops:volume" },
    { to: "/operations", name: "Operations", Icon: Activity, key: "p", rule: "ops:operations" },
  ],
  [{ to: "/policies", name: "Policies", Icon: CalendarClock, key: "s", rule: "ops:policy:get" }],
  [
    { to: "/audit", name: "Audit", Icon: ListChecks, key: "a", rule: "ops:audit" },
    { to: "/about", name: "About", Icon: Info },
  ],
];

export function Rail({ may }: { may: (rule: string) => boolean }) {
  return (
    <nav className="rail" aria-label="Pages">
      {places.map((group) => (
        <ul key={group[0]?.to}>
          {group
            .filter(({ rule }) => rule === undefined || may(rule))
            .map(({ to, name, Icon }) => (
              <li key={to}>
                <Link to={to} activeOptions={{ exact: to === "/" }} activeProps={{ className: "is-active" }}>
                  <Icon size={20} aria-hidden="true" />
                  <span>{name}</span>
                </Link>
              </li>
            ))}
        </ul>
      ))}
    </nav>
  );
}
