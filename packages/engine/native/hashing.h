#ifndef TEPHRA_HASHING_H
#define TEPHRA_HASHING_H

#include <stddef.h>
#include <stdint.h>

/** Ways to compute; the numbers are those of the addon's interface. */
enum { PATH_PLAIN = 0, PATH_AVX2 = 1, PATH_AVX512 = 2, PATH_SHA = 3 };

/** Messages of one call of tephra_md5_update at most. */
enum { MESSAGES_MAX = 16 };

/** The ways that this processor and its operating system allow: bit n for path n. */
int tephra_paths(void);

/**
 * SHA-256 of every block of `data` to `digests` (32 bytes each), the last one over its actual bytes, and to `zero` whether it is
 * all zero. `zero_digest` is that of a whole block of zeros.
 */
void tephra_hash_blocks(int path, const uint8_t *data, size_t length, size_t block, const uint8_t *zero_digest,
                        uint8_t *digests, uint8_t *zero);

/** The states of `count` MD5 digests of nothing. */
void tephra_md5_start(uint32_t (*state)[4], int count);

/** Takes the whole 64-byte blocks of `count` messages into their states; what is left over is the caller's. */
void tephra_md5_update(int path, const uint8_t *const *message, const size_t *length, int count, uint32_t (*state)[4]);

/** Ends one digest with its last bytes, fewer than 64. */
void tephra_md5_finish(uint32_t *state, const uint8_t *tail, size_t tail_bytes, uint64_t total_bytes, uint8_t *out);

#endif
