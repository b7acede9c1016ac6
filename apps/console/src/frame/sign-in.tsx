import { useMutation } from "@tanstack/react-query";
import { useState } from "react";
import { Button } from "react-aria-components/Button";
import { call } from "../data/api.ts";
import { client } from "../data/queries.ts";
import { shown } from "../parts/format.ts";

interface Field {
  name: string;
  label: string;
  type?: "password" | "text";
  autoComplete?: string;
  initial?: string;
  isOptional?: boolean;
}

const ofToken: readonly Field[] = [
  { name: "token", label: "Token", type: "password", autoComplete: "current-password" },
];
const ofKeystone: readonly Field[] = [
  { name: "user", label: "User", autoComplete: "username" },
  { name: "password", label: "Password", type: "password", autoComplete: "current-password" },
  { name: "project", label: "Project" },
  { name: "user_domain", label: "Domain of the user", initial: "Default" },
  { name: "project_domain", label: "Domain of the project", initial: "Default" },
  { name: "passcode", label: "Passcode, if the account has one", autoComplete: "one-time-code", isOptional: true },
];

/** In place of the page that was asked for, which comes back afterwards. */
export function SignIn({ mode }: { mode: string | null }) {
  const fields = mode === "keystone" ? ofKeystone : ofToken;
  const [values, setValues] = useState<Record<string, string>>({});
  const textOf = ({ name, initial = "" }: Field): string => values[name] ?? initial;
  const signIn = useMutation({
    mutationFn: () => {
      const filled = fields.map((field) => [field.name, textOf(field)] as const).filter(([, value]) => value !== "");
      return call("POST /ops/session", { body: Object.fromEntries(filled) });
    },
    onSuccess: () => client.invalidateQueries(),
    onSettled: () => setValues(({ password: _, token: __, passcode: ___, ...rest }) => rest),
  });
  return (
    <main className="sign-in">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          signIn.mutate();
        }}
      >
        <h1>Sign in to Tephra</h1>
        {fields.map((field) => (
          <div key={field.name} className="field">
            <label htmlFor={`sign-in-${field.name}`}>{field.label}</label>
            <input
              id={`sign-in-${field.name}`}
              name={field.name}
              type={field.type ?? "text"}
              autoComplete={field.autoComplete ?? "off"}
              required={!field.isOptional}
              value={textOf(field)}
              onChange={(event) => setValues({ ...values, [field.name]: event.target.value })}
            />
          </div>
        ))}
        {signIn.error && (
          <p className="fault" role="alert">
            {shown(signIn.error.message)}
          </p>
        )}
        <Button type="submit" className="button is-primary" isDisabled={signIn.isPending}>
          Sign in
        </Button>
      </form>
    </main>
  );
}
