/**
 * Python's lenient base64: characters outside the alphabet are skipped, and sufficient padding ends the text, so that almost anything can
 * be decoded.
 *
 * @returns null where Python rejects the padding
 */
export function decodeBase64(text: string): Buffer | null {
  let digits = "";
  let padding = 0;
  for (const character of text) {
    if (character === "=") {
      padding += 1;
      if (digits.length % 4 >= 2 && (digits.length % 4) + padding >= 4) return Buffer.from(digits, "base64");
    } else if (/[A-Za-z0-9+/]/.test(character)) {
      digits += character;
      padding = 0;
    }
  }
  return digits.length % 4 === 0 ? Buffer.from(digits, "base64") : null;
}
