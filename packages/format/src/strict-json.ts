import { Tokenizer, TokenType } from "@streamparser/json";

/** The text is not JSON, repeats a key, or exceeds a limit that no legitimate document reaches. */
export class UnusableJsonError extends Error {}

/** Maximum nesting depth of lists and objects. Documents of Cinder and this service have four levels. */
export const jsonDepthMax = 32;
/** Maximum number of values within one value: bounds what is built from a megabyte of `[1,1,1,…`. */
export const jsonValuesMax = 100_000;
/** Maximum number of members of the document itself. */
const rootMembersMax = 1000;

/** What to do with a member of the document: build it and hand it over whole, hand it over element by element, or only check it. */
export type JsonWish = "value" | "elements" | "check";

export interface JsonReaderOptions {
  wish: (key: string) => JsonWish;
  onValue: (key: string, value: unknown, inList: boolean) => void;
}

type Frame = { made: boolean } & (
  | { kind: "object"; value: Record<string, unknown>; keys: Set<string>; key: string }
  | { kind: "list"; value: unknown[] }
);
type Expected = "value" | "first value" | "first key" | "key" | "colon" | "comma" | "nothing";

/**
 * Reads one JSON object from bytes as they arrive. Refuses a key that any object repeats (after unescaping; at any depth, wanted or not),
 * nesting beyond `jsonDepthMax`, a value of more than `jsonValuesMax` values, text that is not UTF-8, and anything after the end. Memory
 * use is that of the value being built. Throws UnusableJsonError.
 */
export class JsonReader {
  readonly #options: JsonReaderOptions;
  readonly #tokenizer = new Tokenizer();
  readonly #frames: Frame[] = [];
  #expected: Expected = "value";
  #values = 0;
  #failure: Error | null = null;
  #wish: JsonWish = "check";

  constructor(options: JsonReaderOptions) {
    this.#options = options;
    this.#tokenizer.onToken = ({ token, value }) => this.#onToken(token, value);
    this.#tokenizer.onError = (error) => {
      this.#failure ??=
        error instanceof UnusableJsonError
          ? error
          : new UnusableJsonError("it is not well-formed JSON", { cause: error });
    };
  }

  write(bytes: Uint8Array): void {
    this.#tokenizer.write(bytes);
    if (this.#failure !== null) throw this.#failure;
  }

  /** Whether an element of this list, handed over one by one, may begin where the text ends so far. */
  beginsElement(list: string): boolean {
    const [root, inner] = this.#frames;
    if (this.#frames.length !== 2 || this.#wish !== "elements" || inner?.kind !== "list") return false;
    const expected = this.#expected === "first value" || this.#expected === "value";
    return expected && root?.kind === "object" && root.key === list;
  }

  /** Where an element may begin: one has been read by other means, with the comma behind it or without. */
  passElement(options: { comma: boolean }): void {
    this.#expected = options.comma ? "value" : "comma";
  }

  /** Signals the end of the text. */
  end(): void {
    if (this.#expected !== "nothing") throw new UnusableJsonError("it ends in the middle");
    this.#tokenizer.end();
    if (this.#failure !== null) throw behindTheEnd();
  }

  #onToken(token: TokenType, value: unknown): void {
    switch (token) {
      case TokenType.LEFT_BRACE:
        this.#open({ kind: "object", value: {}, keys: new Set(), key: "", made: this.#isMade() }, "first key");
        break;
      case TokenType.LEFT_BRACKET:
        this.#open({ kind: "list", value: [], made: this.#isMade() }, "first value");
        break;
      case TokenType.RIGHT_BRACE:
        this.#close("object", "first key");
        break;
      case TokenType.RIGHT_BRACKET:
        this.#close("list", "first value");
        break;
      case TokenType.COLON:
        this.#step("colon", "value");
        break;
      case TokenType.COMMA:
        this.#step("comma", this.#frames.at(-1)?.kind === "object" ? "key" : "value");
        break;
      default:
        if (this.#expected === "key" || this.#expected === "first key") this.#onKey(token, value);
        else this.#onScalar(value);
    }
  }

  #onScalar(value: unknown): void {
    this.#expectValue();
    if (this.#frames.length === 0) throw notAnObject();
    if (this.#frames.length === 1 && this.#wish === "elements") throw notAList(this.#frames[0]);
    this.#complete(value);
  }

  #step(from: Expected, to: Expected): void {
    if (this.#expected !== from) throw misplaced();
    this.#expected = to;
  }

  #onKey(token: TokenType, key: unknown): void {
    const frame = this.#frames.at(-1);
    if (token !== TokenType.STRING || typeof key !== "string" || frame?.kind !== "object") throw misplaced();
    if (frame.keys.has(key)) throw new UnusableJsonError(`the key ${JSON.stringify(key.slice(0, 100))} occurs twice`);
    frame.keys.add(key);
    frame.key = key;
    this.#expected = "colon";
    if (this.#frames.length > 1) {
      this.#count();
      return;
    }
    if (frame.keys.size > rootMembersMax) throw new UnusableJsonError("it has too many keys");
    this.#values = 0;
    this.#wish = this.#options.wish(key);
  }

  #open(frame: Frame, expected: Expected): void {
    this.#expectValue();
    if (this.#frames.length === 0 && frame.kind !== "object") throw notAnObject();
    if (this.#frames.length === 1 && this.#wish === "elements" && frame.kind !== "list")
      throw notAList(this.#frames[0]);
    if (this.#frames.length >= jsonDepthMax)
      throw new UnusableJsonError(`it is nested deeper than ${jsonDepthMax} levels`);
    this.#frames.push(frame);
    this.#expected = expected;
  }

  #close(kind: Frame["kind"], empty: Expected): void {
    const frame = this.#frames.at(-1);
    if (frame?.kind !== kind || (this.#expected !== "comma" && this.#expected !== empty)) throw misplaced();
    this.#frames.pop();
    if (this.#frames.length === 0) this.#expected = "nothing";
    else this.#complete(frame.value);
  }

  #expectValue(): void {
    if (this.#expected !== "value" && this.#expected !== "first value") {
      throw this.#expected === "nothing" ? behindTheEnd() : misplaced();
    }
    if (this.#frames.length > 0) this.#count();
  }

  #count(): void {
    this.#values += 1;
    if (this.#values > jsonValuesMax)
      throw new UnusableJsonError(`a value of it has more than ${jsonValuesMax} values`);
  }

  /** Whether the object or list that begins here is kept: not the document itself, nor a list that is handed over element by element. */
  #isMade(): boolean {
    const depth = this.#frames.length;
    if (depth === 0 || this.#wish === "check") return false;
    return depth > 1 || this.#wish === "value";
  }

  #complete(value: unknown): void {
    this.#expected = "comma";
    const frame = this.#frames.at(-1) as Frame;
    if (frame.made) {
      if (frame.kind === "list") frame.value.push(value);
      else setOwn(frame.value, frame.key, value);
      return;
    }
    const [root] = this.#frames;
    if (this.#wish === "check" || root?.kind !== "object") return;
    const inList = this.#wish === "elements";
    if (this.#frames.length !== (inList ? 2 : 1)) return;
    this.#values = 0;
    this.#options.onValue(root.key, value, inList);
  }
}

/** Default limit for a whole document, in bytes. */
const documentBytesMax = 1024 * 1024;

/**
 * One JSON object, under the rules of JsonReader. A bare number, list or string is not a document.
 *
 * @throws UnusableJsonError also for more than `bytesMax` bytes
 */
export function parseStrictJson(text: string | Uint8Array, bytesMax = documentBytesMax): Record<string, unknown> {
  const bytes = typeof text === "string" ? Buffer.from(text) : text;
  if (bytes.length > bytesMax) throw new UnusableJsonError(`it is longer than ${bytesMax} bytes`);
  const document: Record<string, unknown> = {};
  const reader = new JsonReader({ wish: () => "value", onValue: (key, value) => setOwn(document, key, value) });
  reader.write(bytes);
  reader.end();
  return document;
}

/** `__proto__` is a key like any other. */
function setOwn(object: Record<string, unknown>, key: string, value: unknown): void {
  if (key !== "__proto__") object[key] = value;
  else Object.defineProperty(object, key, { value, enumerable: true, writable: true, configurable: true });
}

const misplaced = () => new UnusableJsonError("it is not well-formed JSON");
const behindTheEnd = () => new UnusableJsonError("there is data behind the end of the document");
const notAnObject = () => new UnusableJsonError("it is not a JSON object");
const notAList = (frame: Frame | undefined) =>
  new UnusableJsonError(`the value of ${frame?.kind === "object" ? frame.key : "a key"} is not a list`);
