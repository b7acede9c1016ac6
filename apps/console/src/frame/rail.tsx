import { Link } from "@tanstack/react-router";
import {
  Activity,
  Archive,
  Bell,
  CalendarClock,
  Cpu,
  Database,
  Gauge,
  HardDrive,
  Info,
  ListChecks,
  type LucideIcon,
  Server,
  Users,
} from "lucide-react";

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
    { to: "/", name: "Overview", Icon: Gauge, key: "o", rule: "ops:overview" },
    { to: "/volumes", name: "Volumes", Icon: HardDrive, key: "v", rule: "ops:volume" },
    { to: "/machines", name: "Machines", Icon: Server, key: "m", rule: "ops:instance:get" },
    { to: "/backups", name: "Backups", Icon: Archive, key: "b", rule: "backup:get_all" },
    { to: "/operations", name: "Operations", Icon: Activity, key: "p", rule: "ops:operations" },
  ],
  [
    { to: "/workers", name: "Workers & queue", Icon: Cpu, key: "w", rule: "volume_extension:services:index" },
    { to: "/repositories", name: "Repositories", Icon: Database, key: "r", rule: "ops:repository" },
    { to: "/policies", name: "Policies", Icon: CalendarClock, key: "s", rule: "ops:policy:get" },
  ],
  [
    { to: "/audit", name: "Audit", Icon: ListChecks, key: "a", rule: "ops:audit" },
    { to: "/notifications", name: "Notifications", Icon: Bell, rule: "ops:notifications" },
    { to: "/projects", name: "Projects", Icon: Users, rule: "ops:projects" },
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
