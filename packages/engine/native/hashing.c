// The two digests of the backup format, many at a time. SHA-256: blocks of equal length in step, 16 lanes with AVX-512 or 8 with
// AVX2, or two at a time with the SHA extensions. MD5, which has no instructions of its own and whose steps depend on each
// other: several objects in step. What the processor cannot do is never called: see tephra_paths.
#include "hashing.h"

#include <immintrin.h>
#include <string.h>

static const uint32_t sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
static const uint32_t sha256_start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
static const uint32_t md5_t[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};
static const uint32_t md5_start[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};

static inline void put_be32(uint8_t *to, uint32_t word) {
  word = __builtin_bswap32(word);
  memcpy(to, &word, 4);
}

// ---- 16 lanes of 512 bits -------------------------------------------------------------------------------------------
#define LANES 16
#define V __m512i
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))
#define FN(name) name##_16
#define ADD(a, b) _mm512_add_epi32(a, b)
#define ROR(x, n) _mm512_ror_epi32(x, n)
#define ROL(x, n) _mm512_rol_epi32(x, n)
#define SHR(x, n) _mm512_srli_epi32(x, n)
#define XOR3(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0x96)
#define CHOOSE(e, f, g) _mm512_ternarylogic_epi32(e, f, g, 0xca)
#define MAJORITY(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0xe8)
#define MD5_I(b, c, d) _mm512_ternarylogic_epi32(b, c, d, 0x39)
#define SET1(x) _mm512_set1_epi32((int)(x))
#define ZERO _mm512_setzero_si512()
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)

/** Word i of the 64 bytes at `at` of every message goes to w[i]: a transposition of 16 × 16 words. */
TARGET static inline void load_words_16(const uint8_t *const *message, size_t at, V *w, int big_endian) {
  const V swap = _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
  V r[16], t[16];
  for (int i = 0; i < 16; i++) {
    r[i] = _mm512_loadu_si512(message[i] + at);
    if (big_endian) r[i] = _mm512_shuffle_epi8(r[i], swap);
  }
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    const int from = i & 3, high = i >> 2;
    w[i] = _mm512_shuffle_i32x4(t[from + 4 * high], t[from + 8 + 4 * high], 0x88);
    w[i + 8] = _mm512_shuffle_i32x4(t[from + 4 * high], t[from + 8 + 4 * high], 0xdd);
  }
}
#include "sha256-lanes.h"
#define SETS 1
#define MD5_FN md5_lanes_16
#include "md5-lanes.h"
#undef LANES
#undef V
#undef TARGET
#undef FN
#undef ADD
#undef ROR
#undef ROL
#undef SHR
#undef XOR3
#undef CHOOSE
#undef MAJORITY
#undef MD5_I
#undef SET1
#undef ZERO
#undef LOAD
#undef STORE

// ---- 8 lanes of 256 bits --------------------------------------------------------------------------------------------
#define LANES 8
#define V __m256i
#define TARGET __attribute__((target("avx2")))
#define FN(name) name##_8
#define ADD(a, b) _mm256_add_epi32(a, b)
#define ROR(x, n) _mm256_or_si256(_mm256_srli_epi32(x, n), _mm256_slli_epi32(x, 32 - (n)))
#define ROL(x, n) ROR(x, 32 - (n))
#define SHR(x, n) _mm256_srli_epi32(x, n)
#define XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define CHOOSE(e, f, g) _mm256_xor_si256(g, _mm256_and_si256(e, _mm256_xor_si256(f, g)))
#define MAJORITY(a, b, c) _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_or_si256(a, b)))
#define MD5_I(b, c, d) _mm256_xor_si256(c, _mm256_or_si256(b, _mm256_xor_si256(d, _mm256_set1_epi32(-1))))
#define SET1(x) _mm256_set1_epi32((int)(x))
#define ZERO _mm256_setzero_si256()
#define LOAD(p) _mm256_loadu_si256((const void *)(p))
#define STORE(p, v) _mm256_storeu_si256((void *)(p), v)

/** The same for 8 messages: two transpositions of 8 × 8 words. */
TARGET static inline void load_words_8(const uint8_t *const *message, size_t at, V *w, int big_endian) {
  const V swap = _mm256_broadcastsi128_si256(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
  for (int half = 0; half < 2; half++) {
    V r[8], t[8];
    for (int i = 0; i < 8; i++) {
      r[i] = LOAD(message[i] + at + 32 * half);
      if (big_endian) r[i] = _mm256_shuffle_epi8(r[i], swap);
    }
    for (int i = 0; i < 4; i++) {
      t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
      r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
      r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
      w[8 * half + i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
      w[8 * half + i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
  }
}
#include "sha256-lanes.h"
#define SETS 1
#define MD5_FN md5_lanes_8
#include "md5-lanes.h"
#define SETS 2
#define MD5_FN md5_lanes_2x8
#include "md5-lanes.h"

// ---- SHA extensions -------------------------------------------------------------------------------------------------
#define SHA_TARGET __attribute__((target("sha,sse4.1,ssse3")))

/** Two messages at once, since the instructions of one alone wait for each other. `blocks` of 64 bytes each. */
SHA_TARGET static void sha256_ni_blocks(const uint8_t *const *message, size_t blocks, __m128i (*state)[2]) {
  const __m128i swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
  for (size_t block = 0; block < blocks; block++) {
    __m128i w[2][4], abef[2], cdgh[2];
    for (int m = 0; m < 2; m++) {
      abef[m] = state[m][0];
      cdgh[m] = state[m][1];
      for (int i = 0; i < 4; i++)
        w[m][i] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(message[m] + 64 * block + 16 * i)), swap);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      const __m128i k = _mm_loadu_si128((const void *)(sha256_k + 4 * i));
#pragma GCC unroll 2
      for (int m = 0; m < 2; m++) {
        const __m128i sum = _mm_add_epi32(w[m][i & 3], k);
        cdgh[m] = _mm_sha256rnds2_epu32(cdgh[m], abef[m], sum);
        abef[m] = _mm_sha256rnds2_epu32(abef[m], cdgh[m], _mm_shuffle_epi32(sum, 0x0e));
        if (i < 12) {
          const __m128i last = w[m][(i + 3) & 3], before = w[m][(i + 2) & 3];
          __m128i next = _mm_sha256msg1_epu32(w[m][i & 3], w[m][(i + 1) & 3]);
          next = _mm_add_epi32(next, _mm_alignr_epi8(last, before, 4));
          w[m][i & 3] = _mm_sha256msg2_epu32(next, last);
        }
      }
    }
    for (int m = 0; m < 2; m++) {
      state[m][0] = _mm_add_epi32(state[m][0], abef[m]);
      state[m][1] = _mm_add_epi32(state[m][1], cdgh[m]);
    }
  }
}

/** Two messages of equal length, a multiple of 64. */
SHA_TARGET static void sha256_ni(const uint8_t *const *message, size_t length, uint8_t (*out)[32]) {
  __m128i state[2][2];
  for (int m = 0; m < 2; m++) {
    const uint32_t *s = sha256_start;
    state[m][0] = _mm_set_epi32((int)s[0], (int)s[1], (int)s[4], (int)s[5]);
    state[m][1] = _mm_set_epi32((int)s[2], (int)s[3], (int)s[6], (int)s[7]);
  }
  sha256_ni_blocks(message, length / 64, state);
  uint8_t padding[64] = {0x80};
  put_be32(padding + 56, (uint32_t)((uint64_t)length >> 29));
  put_be32(padding + 60, (uint32_t)(length << 3));
  const uint8_t *const both[2] = {padding, padding};
  sha256_ni_blocks(both, 1, state);
  for (int m = 0; m < 2; m++) {
    uint32_t abef[4], cdgh[4];
    _mm_storeu_si128((void *)abef, state[m][0]);
    _mm_storeu_si128((void *)cdgh, state[m][1]);
    const uint32_t words[8] = {abef[3], abef[2], cdgh[3], cdgh[2], abef[1], abef[0], cdgh[1], cdgh[0]};
    for (int i = 0; i < 8; i++) put_be32(out[m] + 4 * i, words[i]);
  }
}

// ---- One message at a time, for what does not fill lanes --------------------------------------------------------------
static inline uint32_t ror(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t *state, const uint8_t *data) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++) {
    memcpy(&w[i], data + 4 * i, 4);
    w[i] = __builtin_bswap32(w[i]);
  }
  for (int i = 16; i < 64; i++) {
    const uint32_t x = w[i - 15], y = w[i - 2];
    w[i] = w[i - 16] + w[i - 7] + (ror(x, 7) ^ ror(x, 18) ^ x >> 3) + (ror(y, 17) ^ ror(y, 19) ^ y >> 10);
  }
  uint32_t s[8];
  memcpy(s, state, 32);
  for (int i = 0; i < 64; i++) {
    const uint32_t a = s[0], e = s[4];
    const uint32_t t = s[7] + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + (s[6] ^ (e & (s[5] ^ s[6]))) + sha256_k[i] + w[i];
    const uint32_t u = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & s[1]) | (s[2] & (a | s[1])));
    memmove(s + 1, s, 28);
    s[4] += t;
    s[0] = t + u;
  }
  for (int i = 0; i < 8; i++) state[i] += s[i];
}

static void sha256_one(const uint8_t *data, size_t length, uint8_t *out) {
  uint32_t state[8];
  memcpy(state, sha256_start, 32);
  size_t at = 0;
  for (; at + 64 <= length; at += 64) sha256_block(state, data + at);
  uint8_t last[128] = {0};
  const size_t rest = length - at, total = rest < 56 ? 64 : 128;
  memcpy(last, data + at, rest);
  last[rest] = 0x80;
  put_be32(last + total - 8, (uint32_t)((uint64_t)length >> 29));
  put_be32(last + total - 4, (uint32_t)(length << 3));
  for (size_t i = 0; i < total; i += 64) sha256_block(state, last + i);
  for (int i = 0; i < 8; i++) put_be32(out + 4 * i, state[i]);
}

static void md5_block(uint32_t *state, const uint8_t *data) {
  static const uint8_t turns[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
#pragma GCC unroll 64
  for (int i = 0; i < 64; i++) {
    uint32_t f, word;
    int k;
    if (i < 16) {
      f = d ^ (b & (c ^ d));
      k = i;
    } else if (i < 32) {
      f = c ^ (d & (b ^ c));
      k = 5 * i + 1;
    } else if (i < 48) {
      f = b ^ c ^ d;
      k = 3 * i + 5;
    } else {
      f = c ^ (b | ~d);
      k = 7 * i;
    }
    memcpy(&word, data + 4 * (k & 15), 4);
    const uint32_t t = a + f + md5_t[i] + word;
    a = d;
    d = c;
    c = b;
    b += ror(t, 32 - turns[i >> 4][i & 3]);
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
}

// ---- What the addon calls -------------------------------------------------------------------------------------------
int tephra_paths(void) {
  __builtin_cpu_init();
  int paths = 1 << PATH_PLAIN;
  if (__builtin_cpu_supports("avx2")) paths |= 1 << PATH_AVX2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    paths |= 1 << PATH_AVX512;
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (b >> 29 & 1 && __builtin_cpu_supports("sse4.1")) paths |= 1 << PATH_SHA;
  return paths;
}

static int lanes_of(int path) { return path == PATH_AVX512 ? 16 : path == PATH_AVX2 ? 8 : path == PATH_SHA ? 2 : 1; }

static void sha256_in_step(int path, const uint8_t *const *message, size_t length, uint8_t (*out)[32]) {
  if (path == PATH_AVX512)
    sha256_lanes_16(message, length, out);
  else if (path == PATH_AVX2)
    sha256_lanes_8(message, length, out);
  else if (path == PATH_SHA)
    sha256_ni(message, length, out);
  else
    sha256_one(message[0], length, out[0]);
}

static int is_zero(const uint8_t *data, size_t length) {
  return length == 0 || (data[0] == 0 && memcmp(data, data + 1, length - 1) == 0);
}

void tephra_hash_blocks(int path, const uint8_t *data, size_t length, size_t block, const uint8_t *zero_digest,
                        uint8_t *digests, uint8_t *zero) {
  const int lanes = block % 64 == 0 ? lanes_of(path) : 1;
  const int in_step = block % 64 == 0 ? path : PATH_PLAIN;
  const uint8_t *message[16];
  size_t place[16];
  uint8_t out[16][32];
  int filled = 0;
  const size_t count = (length + block - 1) / block;
  for (size_t i = 0; i < count; i++) {
    const uint8_t *at = data + i * block;
    const size_t bytes = length - i * block < block ? length - i * block : block;
    zero[i] = is_zero(at, bytes);
    if (bytes < block) {
      sha256_one(at, bytes, digests + 32 * i);
      continue;
    }
    if (zero[i]) {
      memcpy(digests + 32 * i, zero_digest, 32);
      continue;
    }
    message[filled] = at;
    place[filled++] = i;
    if (filled < lanes) continue;
    sha256_in_step(in_step, message, block, out);
    for (int l = 0; l < filled; l++) memcpy(digests + 32 * place[l], out[l], 32);
    filled = 0;
  }
  if (filled == 0) return;
  // Idle lanes repeat the first message: computing it again costs nothing.
  for (int l = filled; l < lanes; l++) message[l] = message[0];
  sha256_in_step(in_step, message, block, out);
  for (int l = 0; l < filled; l++) memcpy(digests + 32 * place[l], out[l], 32);
}

void tephra_md5_start(uint32_t (*state)[4], int count) {
  for (int i = 0; i < count; i++) memcpy(state[i], md5_start, 16);
}

/** Takes `length` bytes, a multiple of 64, of every running message. */
static void md5_in_step(int path, const uint8_t *const *message, size_t length, const int *running, int count,
                        uint32_t (*state)[4]) {
  const uint8_t *in_step[16];
  uint32_t wide[4][16], narrow[4][8];
  // Idle lanes repeat the first message.
  for (int l = 0; l < 16; l++) {
    const int from = running[l < count ? l : 0];
    in_step[l] = message[from];
    for (int w = 0; w < 4; w++) {
      wide[w][l] = state[from][w];
      if (l < 8) narrow[w][l] = state[from][w];
    }
  }
  const int is_narrow = path == PATH_AVX2 && count <= 8;
  if (is_narrow)
    md5_lanes_8(in_step, length, narrow);
  else if (path == PATH_AVX2)
    md5_lanes_2x8(in_step, length, wide);
  else
    md5_lanes_16(in_step, length, wide);
  for (int l = 0; l < count; l++)
    for (int w = 0; w < 4; w++) state[running[l]][w] = is_narrow ? narrow[w][l] : wide[w][l];
}

void tephra_md5_update(int path, const uint8_t *const *message, const size_t *length, int count, uint32_t (*state)[4]) {
  const uint8_t *at[MESSAGES_MAX];
  size_t left[MESSAGES_MAX];
  for (int i = 0; i < count; i++) {
    at[i] = message[i];
    left[i] = length[i] & ~(size_t)63;
  }
  // As long as two messages go on: all of them in step, up to where the shortest ends.
  while (path == PATH_AVX512 || path == PATH_AVX2) {
    int running[MESSAGES_MAX], some = 0;
    size_t common = (size_t)-1;
    for (int i = 0; i < count; i++) {
      if (left[i] == 0) continue;
      running[some++] = i;
      if (left[i] < common) common = left[i];
    }
    if (some < 2) break;
    md5_in_step(path, at, common, running, some, state);
    for (int l = 0; l < some; l++) {
      at[running[l]] += common;
      left[running[l]] -= common;
    }
  }
  for (int i = 0; i < count; i++)
    for (; left[i] > 0; left[i] -= 64, at[i] += 64) md5_block(state[i], at[i]);
}

void tephra_md5_finish(uint32_t *state, const uint8_t *tail, size_t tail_bytes, uint64_t total_bytes, uint8_t *out) {
  uint8_t last[128] = {0};
  const size_t total = tail_bytes < 56 ? 64 : 128;
  memcpy(last, tail, tail_bytes);
  last[tail_bytes] = 0x80;
  const uint64_t bits = total_bytes << 3;
  memcpy(last + total - 8, &bits, 8);
  for (size_t at = 0; at < total; at += 64) md5_block(state, last + at);
  memcpy(out, state, 16);
}

