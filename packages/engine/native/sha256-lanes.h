// SHA-256 of LANES messages of equal length in step, one message per 32-bit lane of a vector (FIPS 180-4 section 6.2).
// Included once per vector width, after these are defined: LANES, V, TARGET, FN(name), ADD, ROR(x, n), SHR(x, n),
// XOR3(a, b, c), CHOOSE(e, f, g), MAJORITY(a, b, c), SET1, ZERO, STORE(p, v) and LOAD_BE (16 transposed message words).

#define ROUND(a, b, c, d, e, f, g, h, i)                                                              \
  {                                                                                                   \
    V t = ADD(ADD(h, XOR3(ROR(e, 6), ROR(e, 11), ROR(e, 25))),                                        \
              ADD(ADD(CHOOSE(e, f, g), SET1(sha256_k[i])), w[(i) & 15]));                             \
    d = ADD(d, t);                                                                                    \
    h = ADD(t, ADD(XOR3(ROR(a, 2), ROR(a, 13), ROR(a, 22)), MAJORITY(a, b, c)));                      \
    if ((i) < 48) {                                                                                   \
      V x = w[((i) + 1) & 15], y = w[((i) + 14) & 15];                                                \
      w[(i) & 15] = ADD(ADD(w[(i) & 15], XOR3(ROR(x, 7), ROR(x, 18), SHR(x, 3))),                     \
                        ADD(w[((i) + 9) & 15], XOR3(ROR(y, 17), ROR(y, 19), SHR(y, 10))));            \
    }                                                                                                 \
  }
#define ROUNDS8(i)                                                                                    \
  ROUND(a, b, c, d, e, f, g, h, i)                                                                    \
  ROUND(h, a, b, c, d, e, f, g, i + 1)                                                                \
  ROUND(g, h, a, b, c, d, e, f, i + 2)                                                                \
  ROUND(f, g, h, a, b, c, d, e, i + 3)                                                                \
  ROUND(e, f, g, h, a, b, c, d, i + 4)                                                                \
  ROUND(d, e, f, g, h, a, b, c, i + 5)                                                                \
  ROUND(c, d, e, f, g, h, a, b, i + 6)                                                                \
  ROUND(b, c, d, e, f, g, h, a, i + 7)

/** `length` is a multiple of 64. Every one of the LANES pointers must be readable; digests go to `out`. */
TARGET static void FN(sha256_lanes)(const uint8_t *const *message, size_t length, uint8_t (*out)[32]) {
  V state[8];
  for (int i = 0; i < 8; i++) state[i] = SET1(sha256_start[i]);
  for (size_t at = 0; at <= length; at += 64) {
    V w[16];
    if (at < length) {
      FN(load_words)(message, at, w, 1);
    } else {
      // The padding of a message whose length is a multiple of 64 is a block of its own, the same for all.
      for (int i = 1; i < 14; i++) w[i] = ZERO;
      w[0] = SET1(0x80000000u);
      w[14] = SET1((uint32_t)((uint64_t)length >> 29));
      w[15] = SET1((uint32_t)(length << 3));
    }
    V a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    ROUNDS8(0) ROUNDS8(8) ROUNDS8(16) ROUNDS8(24) ROUNDS8(32) ROUNDS8(40) ROUNDS8(48) ROUNDS8(56)
    state[0] = ADD(state[0], a);
    state[1] = ADD(state[1], b);
    state[2] = ADD(state[2], c);
    state[3] = ADD(state[3], d);
    state[4] = ADD(state[4], e);
    state[5] = ADD(state[5], f);
    state[6] = ADD(state[6], g);
    state[7] = ADD(state[7], h);
  }
  uint32_t words[8][LANES];
  for (int i = 0; i < 8; i++) STORE(words[i], state[i]);
  for (int lane = 0; lane < LANES; lane++)
    for (int i = 0; i < 8; i++) put_be32(out[lane] + 4 * i, words[i][lane]);
}

#undef ROUND
#undef ROUNDS8
