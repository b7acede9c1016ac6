/** The end of a switch that names every case: the compiler proves that it is never reached. */
export function unreachable(value: never): never {
  throw new Error(`There is no case for ${JSON.stringify(value)}.`);
}
