/** Whether the long forms run (`npm run test:long`): all cases of what is alike, many repetitions of what is random. */
export const isLong = process.env["TEPHRA_TEST_LONG"] !== undefined;

/** How often something is repeated. */
export const times = ({ usual, long }: { usual: number; long: number }): number => (isLong ? long : usual);
