import { useSession } from "../data/session.tsx";
import { shown } from "../parts/format.ts";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { type Preferences, setPreferences, usePreferences } from "../parts/preferences.ts";
import { Command } from "../parts/texts.tsx";
import { Moment } from "../parts/time.tsx";

const choices = {
  theme: ["system", "light", "dark"],
  zone: ["local", "utc"],
  density: ["normal", "compact"],
} as const;
const titles = { theme: "Theme", zone: "Times", density: "Density" } as const;

/** What this is, who looks, and how it looks. */
export function AboutPage() {
  const { server, mode, user_id, project_id, roles, expires_at } = useSession();
  const preferences = usePreferences();
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
    </>
  );
}
