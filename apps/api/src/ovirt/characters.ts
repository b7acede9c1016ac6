/** Characters that XML 1.0 cannot hold, not even escaped; JSON could bring them. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
const forbidden = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g;

/** Whether a text has a character that no answer could repeat, or half of a surrogate pair. */
export const hasForbidden = (text: string): boolean => text.search(forbidden) >= 0 || !text.isWellFormed();

export const withoutForbidden = (text: string): string => text.replace(forbidden, "").toWellFormed();
