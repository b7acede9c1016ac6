import { useQuery } from "@tanstack/react-query";
import type { About } from "@tephra/wire";
import { route } from "../data/queries.ts";
import { useMay, useSession } from "../data/session.tsx";
import { useFilters } from "../parts/address.ts";
import { FilterBar } from "../parts/filter.tsx";
import { shown } from "../parts/format.ts";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { type Preferences, setPreferences, usePreferences } from "../parts/preferences.ts";
import { Loaded } from "../parts/states.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Command, Foreign } from "../parts/texts.tsx";
import { Moment } from "../parts/time.tsx";

const choices = {
  theme: ["system", "light", "dark"],
  zone: ["local", "utc"],
  density: ["normal", "compact"],
} as const;
const titles = { theme: "Theme", zone: "Times", density: "Density" } as const;

type Setting = About["settings"][number];

const valueText = ({ value, is_hidden }: Setting): string =>
  is_hidden ? "set, not shown" : value === null ? "none" : [value].flat().join(", ");

const columns: readonly Column<Setting>[] = [
  { name: "Setting", cell: ({ name }) => <code>{name}</code> },
  { name: "Value", cell: (setting) => <Foreign text={valueText(setting)} /> },
  { name: "From", cell: ({ is_default }) => (is_default ? "default" : "configuration") },
];

/** The settings of the API process that answers; what may be a secret never comes here. */
function Configuration() {
  const filters = useFilters("from");
  const { from } = filters.values;
  const query = useQuery(route("GET /ops/about", {}, { everyMs: false }));
  return (
    <Panel title="Configuration">
      <Loaded query={query}>
        {({ about: { versions, host, config_file, settings } }) => (
          <>
            <Facts
              of={[
                ["Answered by", <Foreign key="host" text={host} />],
                ["Tephra", versions.tephra],
                ["Node", versions.node],
                ["Volume API", versions.volume_api],
                ["Configuration file", <Foreign key="file" text={config_file} empty="none" />],
              ]}
            />
            <FilterBar
              filters={filters}
              of={{ name: "from", label: "Where settings are from", states: ["configuration", "default"] }}
            />
            <DataTable
              caption="Settings"
              columns={columns}
              rows={settings.filter(({ is_default }) => from === undefined || is_default === (from === "default"))}
              keyOf={({ name }) => name}
              empty={<p>No setting is from there.</p>}
            />
          </>
        )}
      </Loaded>
    </Panel>
  );
}

/** What this is, who looks, and how it looks. */
export function AboutPage() {
  const { server, mode, user_id, project_id, roles, expires_at } = useSession();
  const preferences = usePreferences();
  const may = useMay();
  return (
    <>
      <PageHead title="About" facts={`Tephra ${shown(server.version)}`} />
      <Panel title="You">
        <Facts
          of={[
            ["User", shown(user_id)],
            ["Project", shown(project_id)],
            ["Roles", roles.join(", ") || "none"],
            ["Signed in by", mode === "none" ? "nobody signs in here" : mode],
            ["Until", expires_at ? <Moment key="until" at={expires_at} /> : "the browser ends"],
          ]}
        />
      </Panel>
      <Panel title="How it looks">
        {(Object.keys(choices) as (keyof typeof choices)[]).map((name) => (
          <label key={name} className="field">
            {titles[name]}
            <select
              value={preferences[name]}
              onChange={(event) => setPreferences({ [name]: event.target.value } as Partial<Preferences>)}
            >
              {choices[name].map((choice) => (
                <option key={choice} value={choice}>
                  {choice}
                </option>
              ))}
            </select>
          </label>
        ))}
        <label className="check">
          <input
            type="checkbox"
            checked={preferences.letters}
            onChange={(event) => setPreferences({ letters: event.target.checked })}
          />
          Single letters are keys ( ? lists them)
        </label>
      </Panel>
      <Panel title="Elsewhere">
        <p>
          <a href="/docs/">The API</a> · <a href="/ops/queues">The queue board</a> · <a href="/metrics">Metrics</a>
        </p>
        <p>Whether the configuration fits its servers:</p>
        <Command text="tephra doctor" />
      </Panel>
      {may("ops:about") && <Configuration />}
    </>
  );
}
