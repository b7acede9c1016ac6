/** Whether the long forms run (`npm run test:long`): all cases of what is alike, many repetitions of what is random. */
export const isLong = process.env["TEPHRA_TEST_LONG"] !== undefined;

/** How often something is repeated. */
export const times = ({ usual, long }: { usual: number; long: number }): number => (isLong ? long : usual);

/** Of cases that are alike, the first ones: all of them are the long form. */
export const firstOf = <T>(count: number, cases: readonly T[]): T[] => cases.slice(0, isLong ? cases.length : count);
