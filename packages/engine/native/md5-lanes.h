// MD5 of SETS × LANES messages in step, one per 32-bit lane of a vector (RFC 1321 section 3.4). Every step waits for the one
// before: where the registers suffice, a second set of messages fills the time. Included once per number of vectors, after the
// names that sha256-lanes.h lists, ROL(x, n), MD5_I(b, c, d), SETS and MD5_FN are defined.

#define STEP(function, k, i, n)                                                   \
  _Pragma("GCC unroll 2") for (int s = 0; s < SETS; s++) {                        \
    const V b = r[s][1], c = r[s][2], d = r[s][3];                                \
    const V t = ADD(ADD(r[s][0], ADD(w[s][(k) & 15], SET1(md5_t[i]))), function); \
    r[s][0] = d;                                                                  \
    r[s][3] = c;                                                                  \
    r[s][2] = b;                                                                  \
    r[s][1] = ADD(b, ROL(t, n));                                                  \
  }

/** Takes `length` bytes, a multiple of 64, of every message into the states. `state[i]` holds word i of every lane. */
TARGET static void MD5_FN(const uint8_t *const *message, size_t length, uint32_t (*state)[SETS * LANES]) {
  V sum[SETS][4];
  for (int s = 0; s < SETS; s++)
    for (int i = 0; i < 4; i++) sum[s][i] = LOAD(state[i] + s * LANES);
  for (size_t at = 0; at < length; at += 64) {
    V w[SETS][16], r[SETS][4];
    for (int s = 0; s < SETS; s++) {
      FN(load_words)(message + s * LANES, at, w[s], 0);
      for (int i = 0; i < 4; i++) r[s][i] = sum[s][i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      STEP(CHOOSE(b, c, d), i, i, 7)
      STEP(CHOOSE(b, c, d), i + 1, i + 1, 12)
      STEP(CHOOSE(b, c, d), i + 2, i + 2, 17)
      STEP(CHOOSE(b, c, d), i + 3, i + 3, 22)
    }
#pragma GCC unroll 16
    for (int i = 16; i < 32; i += 4) {
      STEP(CHOOSE(d, b, c), 5 * i + 1, i, 5)
      STEP(CHOOSE(d, b, c), 5 * i + 6, i + 1, 9)
      STEP(CHOOSE(d, b, c), 5 * i + 11, i + 2, 14)
      STEP(CHOOSE(d, b, c), 5 * i + 16, i + 3, 20)
    }
#pragma GCC unroll 16
    for (int i = 32; i < 48; i += 4) {
      STEP(XOR3(b, c, d), 3 * i + 5, i, 4)
      STEP(XOR3(b, c, d), 3 * i + 8, i + 1, 11)
      STEP(XOR3(b, c, d), 3 * i + 11, i + 2, 16)
      STEP(XOR3(b, c, d), 3 * i + 14, i + 3, 23)
    }
#pragma GCC unroll 16
    for (int i = 48; i < 64; i += 4) {
      STEP(MD5_I(b, c, d), 7 * i, i, 6)
      STEP(MD5_I(b, c, d), 7 * i + 7, i + 1, 10)
      STEP(MD5_I(b, c, d), 7 * i + 14, i + 2, 15)
      STEP(MD5_I(b, c, d), 7 * i + 21, i + 3, 21)
    }
    for (int s = 0; s < SETS; s++)
      for (int i = 0; i < 4; i++) sum[s][i] = ADD(sum[s][i], r[s][i]);
  }
  for (int s = 0; s < SETS; s++)
    for (int i = 0; i < 4; i++) STORE(state[i] + s * LANES, sum[s][i]);
}

#undef STEP
#undef SETS
#undef MD5_FN
