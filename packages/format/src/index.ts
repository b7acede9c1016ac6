export * from "./names.ts";
export * from "./strict-json.ts";
