// MD5 of LANES messages in step, one per 32-bit lane of a vector (RFC 1321 section 3.4). Included once per vector width, after
// the names that sha256-lanes.h lists, ROL(x, n) and MD5_I(b, c, d) are defined.

#define STEP(function, k, i, n)                                          \
  {                                                                      \
    V t = ADD(ADD(a, function), ADD(w[(k) & 15], SET1(md5_t[i])));       \
    a = d;                                                               \
    d = c;                                                               \
    c = b;                                                               \
    b = ADD(b, ROL(t, n));                                               \
  }

/** Takes `length` bytes, a multiple of 64, of every message into the states. `state[i]` holds word i of every lane. */
TARGET static void FN(md5_lanes)(const uint8_t *const *message, size_t length, uint32_t (*state)[LANES]) {
  V a0 = LOAD(state[0]), b0 = LOAD(state[1]), c0 = LOAD(state[2]), d0 = LOAD(state[3]);
  for (size_t at = 0; at < length; at += 64) {
    V w[16];
    FN(load_words)(message, at, w, 0);
    V a = a0, b = b0, c = c0, d = d0;
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
    a0 = ADD(a0, a);
    b0 = ADD(b0, b);
    c0 = ADD(c0, c);
    d0 = ADD(d0, d);
  }
  STORE(state[0], a0);
  STORE(state[1], b0);
  STORE(state[2], c0);
  STORE(state[3], d0);
}

#undef STEP
